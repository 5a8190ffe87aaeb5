"""`hypergpu node`: options, and the process around a worker."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import structlog
import typer
from prometheus_client import disable_created_metrics

from hypergpu.common.address import is_loopback
from hypergpu.common.command_line import Service
from hypergpu.common.config import SystemConfig
from hypergpu.common.config_options import ConfigOptions
from hypergpu.common.errors import InvalidInput
from hypergpu.common.log import configure
from hypergpu.common.malloc import tune_allocator
from hypergpu.common.options import (
    ADDRESS,
    FLAG,
    HttpListen,
    TlsCa,
    TlsCert,
    TlsKey,
)
from hypergpu.common.rpc import check_node_id
from hypergpu.common.tls import Tls, client_tls
from hypergpu.common.token import find_token
from hypergpu.node.countersigning import Countersigning
from hypergpu.node.credentials import Credentials
from hypergpu.node.lease_file import LeaseFile, lease_path
from hypergpu.node.naming import own_name, replica_name

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class NodeOptions(ConfigOptions):
    """Run one worker: join a coordinator, train what it assigns, and push the updates.

    Start any number, on any machine that can reach the coordinator. Workers may join and leave at any time. SIGTERM
    finishes the current work, or returns it after node.grace_seconds.

    Example: hypergpu node --coordinator 10.0.0.5:50051 --token-file join-token --tls-ca ca.pem
    """

    coordinator: Annotated[
        str | None,
        typer.Option(metavar=ADDRESS, help="Address of the coordinator, or of a proxy in front of it."),
    ] = None
    node_id: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name, unique in the cluster; by default from the host name.")
    ] = None
    replica_id: Annotated[
        bool,
        typer.Option(
            "--replica-id", metavar=FLAG, help="Take the name from this container's Compose replica: node-1, node-2, …"
        ),
    ] = False
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="`auto`: this machine's CUDA card, or its CPU. Or a card to simulate: T4, V100, A100, H100, RTX-3090, "
            "RTX-4090, laptop-cpu.",
        ),
    ] = None
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Task of your own that this node may load, as package.module:factory or the name of an installed one. "
            "Shipped tasks need no option.",
        ),
    ] = None
    http_listen: HttpListen = None
    metrics_address: Annotated[
        str | None,
        typer.Option(metavar=ADDRESS, help="Address at which others reach /metrics; by default that of --http-listen."),
    ] = None
    tls_ca: TlsCa = None
    tls_cert: TlsCert = None
    tls_key: TlsKey = None

    def settings(self, environment: Mapping[str, str]) -> SystemConfig:
        """Return the configuration: options first, then --set, the environment, the file and the defaults.

        Raises:
            ConfigError: a value that is unknown or invalid.
        """
        options = {
            "node.coordinator": self.coordinator,
            "node.gpu": self.gpu,
            "node.http_listen": self.http_listen,
            "node.metrics_address": self.metrics_address,
        }
        return self.load(options, environment)

    def tls(self, coordinator: str) -> Tls | None:
        """Return how to verify the coordinator at this address; None for plaintext.

        Raises:
            ConfigError: the CA certificate cannot be used.
            InvalidInput: neither TLS nor plaintext is chosen for a coordinator on this machine.
        """
        if is_loopback(coordinator) and self.tls_ca is None and not self.insecure:
            raise InvalidInput("give --tls-ca FILE to use TLS, or --insecure for plaintext")
        return client_tls(self.tls_ca, self.tls_cert, self.tls_key, insecure=self.insecure)


def run(options: NodeOptions) -> int:
    """Run the worker until its run is over or a signal ends it; return the exit code.

    Raises:
        HyperGPUError: invalid options, or an error that no retry can help.
    """
    tune_allocator()
    disable_created_metrics()
    configure(options.log_level, options.log_format)
    settings = options.settings(os.environ)
    tls = options.tls(settings.node.coordinator)
    if options.node_id is not None:
        check_node_id(options.node_id)
    token = find_token(options.token, options.token_file, os.environ)
    name = options.node_id or (_replica() if options.replica_id else None)
    path = _lease_path(settings, name, os.environ) if name is not None else None  # others never return
    file, signing = (LeaseFile(path), Countersigning(path.with_suffix(""))) if path is not None else (None, None)
    credentials = Credentials(name or own_name(), token, file, signing)
    asyncio.run(_work(settings, credentials, options.task, tls))
    return 0


def _lease_path(settings: SystemConfig, name: str, environment: Mapping[str, str]) -> Path:
    home = environment.get("XDG_STATE_HOME") or Path(environment.get("HOME") or "/").joinpath(".local", "state")
    directory = settings.node.state_dir or Path(home) / "hypergpu" / "leases"
    return lease_path(directory, settings.node.coordinator, name)


async def _work(settings: SystemConfig, credentials: Credentials, task: str | None, tls: Tls | None) -> None:
    # torch takes seconds to import: errors on the command line come first.
    from hypergpu.node.app import run as run_worker  # noqa: PLC0415
    from hypergpu.tasks.loading import is_user_task, require_found  # noqa: PLC0415

    if task is not None and is_user_task(task):
        require_found(task)  # now, not when the run begins
    await run_worker(settings, credentials, task, tls)


def _replica() -> str | None:
    """Return this container's name as a replica of its Compose service, if its engine's DNS knows it."""
    name = replica_name()
    if name is None:
        log.warning("the engine's DNS does not list this container as a replica; its name changes with a restart")
    return name


service = Service("node", NodeOptions, run)
main = service.main


if __name__ == "__main__":
    main()
