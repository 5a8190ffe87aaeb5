"""`python -m node`: one worker process. Only wiring."""

import asyncio
import os
import signal
import socket
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import structlog
import typer
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from common.config import SystemConfig, load_config
from common.errors import ConfigError, HyperGPUError, InvalidInput
from common.http import Answer, HttpServer, metrics
from common.log import configure
from common.malloc import keep_buffers
from common.rpc import Tls, check_node_id, split_address
from node.agent import Agent
from node.client import CoordinatorClient, own_name
from node.core.gpu import specs_from
from node.core.lifecycle import State
from node.core.metrics_collector import MetricsCollector
from node.device import UsageMeter, detect
from node.metrics import NodeMetrics
from node.service import GPUNodeService
from tasks.loading import is_own, load_task

log = structlog.get_logger()
_SAMPLE_SECONDS = 2.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(  # noqa: PLR0917  (one per option)
    coordinator: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="What to dial: the coordinator, or a netsim proxy before it."),
    ] = None,
    node_id: Annotated[
        str | None, typer.Option(metavar="NAME", help="Unique in the cluster. By default made of the host's name.")
    ] = None,
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
            help="Your own task, where the run trains it: a node loads no code but what is named here. "
            "Shipped tasks need no option.",
        ),
    ] = None,
    http_listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where to serve /metrics and /healthz; port 0 takes a free one."),
    ] = None,
    metrics_address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Under which others reach /metrics, if that differs.")
    ] = None,
    token: Annotated[str | None, typer.Option(envvar="HYPERGPU_TOKEN", help="The cluster's join token.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(envvar="HYPERGPU_TOKEN_FILE", metavar="FILE", help="A file that holds it.")
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
    """A GPU worker: joins a coordinator, trains what it is given, and pushes the updates back.

    Start as many as you like, on any machine that can dial the coordinator; they may come and go at any time:

        python -m node --coordinator 10.0.0.5:50051 --token-file join-token --tls-ca ca.pem

    Through a netsim proxy, to see what a bad network does:

        python -m node --coordinator 127.0.0.1:50052 --node-id node_3 --gpu T4 --insecure

    SIGTERM finishes the current work, or hands it back when node.grace_seconds are over.
    """
    keep_buffers()
    disable_created_metrics()
    try:
        configure(log_level, log_json)
        overrides = list(set_ or ())
        for key, value in (("coordinator", coordinator), ("gpu", gpu), ("http_listen", http_listen)):
            if value is not None:
                overrides.append(f"node.{key}={value!r}")
        if metrics_address is not None:
            overrides.append(f"node.metrics_address={metrics_address!r}")
        settings = load_config(SystemConfig, config, os.environ, overrides)
        if not insecure and tls_ca is None and _is_loopback(settings.node.coordinator):
            raise InvalidInput("say --insecure to talk in plain text, or --tls-ca FILE to use TLS")
        if task is not None and is_own(task):
            load_task(task)  # a mistake in it is told now, not when the run begins
        name = check_node_id(node_id) if node_id is not None else own_name()
        tls = None if insecure else Tls(authority=tls_ca)
        asyncio.run(_run(settings, name, task, _token(token, token_file), tls))
    except (HyperGPUError, ValueError) as error:
        print(f"node: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


async def _run(config: SystemConfig, node_id: str, task: str | None, token: str | None, tls: Tls | None) -> None:
    settings = config.node
    split_address(settings.coordinator)
    specs = detect() if settings.gpu == "auto" else specs_from(settings.gpu)
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    series = NodeMetrics(registry, node_id, specs)
    collector_of_node = MetricsCollector(node_id, settings.history_size, sink=series.record)
    service = GPUNodeService(node_id, specs, config, metrics=collector_of_node)
    structlog.contextvars.bind_contextvars(node=node_id)
    async with CoordinatorClient(settings.coordinator, node_id, token=token, tls=tls) as client:
        server = HttpServer(settings.http_listen, {"/metrics": metrics(registry), "/healthz": lambda: _health(agent)})
        agent = Agent(
            client,
            service,
            config,
            own_task=task,
            metrics_address=settings.metrics_address or _reachable(server.address),
            version=_version(),
            on_work=series.work,
            on_state=series.state,
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.stop, signal.Signals(number).name)
        sampler = asyncio.create_task(_sample(service, client, series))
        try:
            print(f"listening on {server.address}", flush=True)
            await agent.run()
        finally:
            sampler.cancel()
            server.close()


async def _sample(service: GPUNodeService, client: CoordinatorClient, series: NodeMetrics) -> None:
    """Feed usage and traffic into the metrics, again and again."""
    meter = UsageMeter(service.specs)
    sent = received = 0
    while True:
        usage = meter.read()
        service.metrics.record_resource_usage(usage.gpu_util, usage.memory_mb)
        series.traffic(client.bytes_sent - sent, client.bytes_received - received)
        sent, received = client.bytes_sent, client.bytes_received
        await asyncio.sleep(_SAMPLE_SECONDS)


def _health(agent: Agent) -> Answer:
    """Alive is healthy, also while the coordinator is away: a restart of the node would not bring it back."""
    joined = agent.state not in {State.JOINING, State.LEAVING}
    return Answer(f"{agent.state}{'' if joined else ': not in a run'}\n".encode())


def _token(token: str | None, file: Path | None) -> str | None:
    if file is None:
        return token
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error


def _is_loopback(address: str) -> bool:
    return split_address(address)[0] in {"127.0.0.1", "localhost", "[::1]"}


def _reachable(address: str) -> str:
    """The address for others: a wildcard stands for this host's name."""
    host, _, port = address.rpartition(":")
    return f"{socket.gethostname()}:{port}" if host in {"0.0.0.0", "[::]"} else address


def _version() -> str:
    try:
        return version("hypergpu")
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    app()
