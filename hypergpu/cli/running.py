"""What all commands share: options that say where the cluster is, a connection, one-line errors."""

import asyncio
import inspect
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from common.address import split_address
from common.errors import HyperGPUError, InvalidInput
from common.tls import Tls
from hypergpu.client import connect
from hypergpu.cluster import Cluster, find

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
    str, typer.Option(envvar="HYPERGPU_TOKEN", metavar="TEXT", help="The join token.", rich_help_panel=_PANEL)
]
TokenFile = Annotated[
    Path | None,
    typer.Option(envvar="HYPERGPU_TOKEN_FILE", metavar="FILE", help="A file with the token.", rich_help_panel=_PANEL),
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
    coordinator: Coordinator = "",
    proxy: Proxy = "",
    token: Token = "",
    token_file: TokenFile = None,
    tls_ca: Authority = None,
    insecure: Insecure = False,
) -> tuple[Cluster, Tls | None]:
    """The cluster that the options mean, and how to talk to it.

    Raises:
        InvalidInput: none is running, or the token file cannot be read.
    """
    cluster = find(coordinator, proxy, token or read_token(token_file))
    return cluster, transport(cluster.coordinator, tls_ca, insecure)


def on_cluster(command: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make an asynchronous function of a connected client into a command that also takes the options of `locate`."""
    shared = inspect.signature(locate).parameters
    _, *own = inspect.signature(command).parameters.values()

    @wraps(command)
    def run(**options: Any) -> None:
        cluster, tls = locate(**{name: options.pop(name) for name in shared})

        async def talk() -> None:
            async with connect(cluster, tls) as client:
                await command(client, **options)

        asyncio.run(talk())

    take_options(run, (*own, *shared.values()))
    return run


def take_options(command: Callable[..., Any], parameters: Iterable[inspect.Parameter]) -> None:
    """Let Typer read these as the parameters of `command`."""
    told = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    command.__signature__ = inspect.Signature(told)  # type: ignore[attr-defined]  # any function may have one
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in told}


def read_token(file: Path | None) -> str:
    """The join token in `file`.

    Raises:
        InvalidInput: it cannot be read.
    """
    if file is None:
        return ""
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise InvalidInput(f"cannot read the token file {file}: {error.strerror}") from error


def transport(address: str, authority: Path | None, insecure: bool) -> Tls | None:
    """TLS with `authority`, or with what the system trusts; plaintext on this machine, or where `insecure` says so."""
    host, _ = split_address(address)
    if authority:
        return Tls(authority=authority)
    return None if insecure or host in ("localhost", "[::1]") or host.startswith("127.") else Tls()


def run_app(app: typer.Typer, arguments: Sequence[str]) -> NoReturn:
    """Run the command line: bad input is one line on standard error and exit code 2, never a traceback."""
    try:
        code = app(list(arguments) or ["--help"], standalone_mode=False)
    except typer.TyperException as error:
        _fail(error.format_message())
    except HyperGPUError as error:
        _fail(str(error))
    except typer.Abort:
        sys.exit(130)
    except BrokenPipeError:
        sys.stdout = None  # the reader went away: nothing is left to flush
        sys.exit(141)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    print("hypergpu:", " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
