"""What all commands share: options that say where the cluster is, a connection, one-line errors."""

import asyncio
import inspect
import os
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from hypergpu.client import connect
from hypergpu.cluster import Cluster, find, local_clusters
from hypergpu.common.address import is_loopback, split_address
from hypergpu.common.errors import HyperGPUError
from hypergpu.common.extras import missing_extra
from hypergpu.common.text import one_line
from hypergpu.common.tls import Tls
from hypergpu.common.token import find_token
from hypergpu.show import say

Command = Callable[..., Coroutine[Any, Any, None]]
_PANEL = "Which cluster (found by itself where it runs here)"
Coordinator = Annotated[
    str,
    typer.Option(envvar="HYPERGPU_COORDINATOR", metavar="HOST:PORT", help="The coordinator.", rich_help_panel=_PANEL),
]
Proxy = Annotated[
    str,
    typer.Option(
        envvar="HYPERGPU_PROXY", metavar="HOST:PORT", help="The netsim proxy's control service.", rich_help_panel=_PANEL
    ),
]
Token = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="The join token; also from HYPERGPU_TOKEN.", rich_help_panel=_PANEL),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A file with the token; also from HYPERGPU_TOKEN_FILE.", rich_help_panel=_PANEL),
]
Run = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="One of several that run here: its name, directory or process.", rich_help_panel=_PANEL
    ),
]
Authority = Annotated[
    Path | None,
    typer.Option(
        "--tls-ca", envvar="HYPERGPU_TLS_CA", metavar="FILE", help="Who signed its certificate.", rich_help_panel=_PANEL
    ),
]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure", envvar="HYPERGPU_INSECURE", help="No TLS, also beyond this machine.", rich_help_panel=_PANEL
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def locate(
    *,
    run: Run = "",
    coordinator: Coordinator = "",
    proxy: Proxy = "",
    token: Token = None,
    token_file: TokenFile = None,
    changes: bool = False,
) -> Cluster:
    """Return the cluster that the options mean, and name it where the user named no address.

    Raises:
        InvalidInput: none is running, several are and it is to be changed, or the token cannot be read.
    """
    cluster = find(coordinator, proxy, find_token(token, token_file, os.environ), run, changes=changes)
    if not coordinator and not proxy:
        others = len(local_clusters()) - 1 if not run else 0
        hint = f"; the newest of {others + 1} here, --run NAME takes another" if others > 0 else ""
        say(f"hypergpu: run {one_line(cluster.name)}{hint}", error=True)
    return cluster


def _options(
    *,
    run: Run = "",
    coordinator: Coordinator = "",
    proxy: Proxy = "",
    token: Token = None,
    token_file: TokenFile = None,
    tls_ca: Authority = None,
    insecure: Insecure = False,
) -> None:
    """The options that say where the cluster is and how to talk to it."""


def on_cluster(command: Command) -> Callable[..., None]:
    """Make an asynchronous function of a connected client into a command that looks; of several clusters at the newest.

    It also takes the options that say which cluster.
    """
    return _as_command(command, changes=False)


def changing(command: Command) -> Callable[..., None]:
    """As `on_cluster`, for a command that changes something: it guesses among no several clusters."""
    return _as_command(command, changes=True)


def _as_command(command: Command, *, changes: bool) -> Callable[..., None]:
    shared = inspect.signature(_options).parameters
    _, *own = inspect.signature(command).parameters.values()

    @wraps(command)
    def run(**options: Any) -> None:
        authority, insecure = options.pop("tls_ca"), options.pop("insecure")
        where = {name: options.pop(name) for name in shared if name not in {"tls_ca", "insecure"}}
        cluster = locate(**where, changes=changes)
        tls = transport(cluster.coordinator, authority, insecure) if cluster.coordinator else None
        proxy_tls = proxy_transport(cluster.proxy, authority, insecure)

        async def talk() -> None:
            async with connect(cluster, tls, proxy_tls) as client:
                await command(client, **options)

        asyncio.run(talk())

    take_options(run, (*own, *shared.values()))
    return run


def take_options(command: Callable[..., Any], parameters: Iterable[inspect.Parameter]) -> None:
    """Let Typer read these as the parameters of `command`."""
    told = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    command.__signature__ = inspect.Signature(told)  # type: ignore[attr-defined]  # any function may have one
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in told}


def transport(address: str, authority: Path | None, insecure: bool) -> Tls | None:
    """TLS with `authority`, or with what the system trusts; plaintext on this machine, or where `insecure` says so."""
    if authority:
        split_address(address)
        return Tls(authority=authority)
    return None if insecure or is_loopback(address) else Tls()


def proxy_transport(address: str, authority: Path | None, insecure: bool) -> Tls | None:
    """As `transport` for the proxy's control service, which speaks plaintext on this machine in any case."""
    if not address or address.startswith("unix:") or is_loopback(address):
        return None
    return transport(address, authority, insecure)


def run_app(app: typer.Typer, arguments: Sequence[str]) -> NoReturn:
    """Run the command line: bad input is one line on standard error and exit code 2, never a traceback."""
    try:
        code = app(list(arguments) or ["--help"], standalone_mode=False)
    except typer.TyperException as error:
        _fail(error.format_message())
    except HyperGPUError as error:
        _fail(str(error))
    except ImportError as error:
        if (missing := missing_extra(error)) is None:
            raise
        _fail(str(missing))
    except typer.Abort:
        sys.exit(130)
    except BrokenPipeError:
        sys.stdout = None  # the reader went away: nothing is left to flush
        sys.exit(141)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    say(f"hypergpu: {one_line(message)}", error=True)
    sys.exit(2)
