"""`hypergpu node`: one worker process. Only wiring."""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import structlog
import typer
from prometheus_client import disable_created_metrics

from hypergpu.common.address import is_loopback
from hypergpu.common.config import SystemConfig, load_config
from hypergpu.common.errors import HyperGPUError, InvalidInput
from hypergpu.common.extras import missing_extra
from hypergpu.common.log import configure
from hypergpu.common.malloc import tune_allocator
from hypergpu.common.rpc import check_node_id
from hypergpu.common.text import one_line
from hypergpu.common.tls import Tls, read_authority
from hypergpu.common.token import find_token
from hypergpu.node.naming import own_name, replica_name

log = structlog.get_logger()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def work(  # noqa: PLR0917  (one per option)
    coordinator: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="What to dial: the coordinator, or a netsim proxy before it."),
    ] = None,
    node_id: Annotated[
        str | None, typer.Option(metavar="NAME", help="Unique in the cluster. By default made of the host's name.")
    ] = None,
    replica_id: Annotated[
        bool,
        typer.Option(
            "--replica-id",
            help="Take the name from the replica of a Compose service that this container is: node-1, node-2, …",
        ),
    ] = False,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="`auto`: this machine's CUDA card, or its CPU. Or a card to simulate: T4, V100, A100, H100, RTX-3090, "
            "RTX-4090, laptop-cpu.",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FACTORY",
            help="Your own task, or the name of an installed one, where the run trains it: a node loads no code but "
            "what is named here. Shipped tasks need no option.",
        ),
    ] = None,
    http_listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where to serve /metrics and /healthz; port 0 takes a free one."),
    ] = None,
    metrics_address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Under which others reach /metrics, if that differs.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The cluster's join token; also from HYPERGPU_TOKEN.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file that holds it; also from HYPERGPU_TOKEN_FILE.")
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", envvar="HYPERGPU_INSECURE", help="Plain text: for one machine or a lab network."),
    ] = False,
    tls_ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="PEM of who signed the coordinator's certificate, unless the system knows."),
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Configuration as YAML.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Such as node.grace_seconds=30. Repeatable.")
    ] = None,
    log_level: Annotated[str, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")] = "info",
    log_json: Annotated[
        bool | None, typer.Option("--log-json/--log-text", help="By default JSON where stderr is no terminal.")
    ] = None,
) -> None:
    """Run one worker: join a coordinator, train what it assigns, and push the updates.

    Start any number, on any machine that can reach the coordinator. Workers may join and leave at any time. SIGTERM
    finishes the current work, or returns it once node.grace_seconds are over.

    Example: hypergpu node --coordinator 10.0.0.5:50051 --token-file join-token --tls-ca ca.pem
    """
    tune_allocator()
    disable_created_metrics()
    try:
        configure(log_level, log_json)
        options = {
            "node.coordinator": coordinator,
            "node.gpu": gpu,
            "node.http_listen": http_listen,
            "node.metrics_address": metrics_address,
        }
        settings = load_config(SystemConfig, config, os.environ, set_ or (), options)
        is_local = is_loopback(settings.node.coordinator)
        if not insecure and tls_ca is None and is_local:
            raise InvalidInput("say --insecure to talk in plain text, or --tls-ca FILE to use TLS")
        if node_id is not None:
            check_node_id(node_id)
        if tls_ca is not None and not insecure:
            read_authority(tls_ca)
        secret = find_token(token, token_file, os.environ) or None
        name = node_id or (_replica() if replica_id else None)
        asyncio.run(_run(settings, name, task, secret, None if insecure else Tls(authority=tls_ca)))
    except (HyperGPUError, ValueError) as error:
        _fail(error)
    except ImportError as error:
        _fail(missing_extra(error) or error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


async def _run(
    settings: SystemConfig, node_id: str | None, task: str | None, token: str | None, tls: Tls | None
) -> None:
    # torch takes seconds to import: a mistake on the command line is told before.
    from hypergpu.node.app import run  # noqa: PLC0415
    from hypergpu.tasks.loading import is_own, require_found  # noqa: PLC0415

    if task is not None and is_own(task):
        require_found(task)  # a mistake in it is told now, not when the run begins
    await run(settings, node_id or own_name(), task, token, tls)


def _replica() -> str | None:
    """Return this container's name as a replica of its Compose service, if its engine's DNS knows it."""
    name = replica_name()
    if name is None:
        text = "the engine's DNS does not know this container as a replica; its name will be another after a restart"
        log.warning(text)
    return name


def _fail(error: Exception) -> NoReturn:
    print(f"node: {one_line(str(error))}", file=sys.stderr)
    raise SystemExit(2) from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the service; the arguments default to those of the process."""
    app(arguments, prog_name="hypergpu node")


if __name__ == "__main__":
    main()
