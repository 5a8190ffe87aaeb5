"""Wiring of a node: agent, metrics, HTTP server and signals."""

import asyncio
import os
import signal
import socket

import structlog
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from hypergpu.common.address import split_address
from hypergpu.common.background import Background
from hypergpu.common.config import SystemConfig
from hypergpu.common.errors import HyperGPUError
from hypergpu.common.http import Answer, HttpServer, metrics
from hypergpu.common.tls import Tls
from hypergpu.common.trace_settings import make_tracer
from hypergpu.common.version import package_version
from hypergpu.node.agent import Agent
from hypergpu.node.client import CoordinatorClient
from hypergpu.node.core.gpu import specs_from
from hypergpu.node.core.metrics_collector import MetricsCollector
from hypergpu.node.core.states import State
from hypergpu.node.credentials import Credentials
from hypergpu.node.device import UsageMeter, detect
from hypergpu.node.metrics import NodeMetrics
from hypergpu.node.worker import Worker

_SAMPLE_SECONDS = 2.0


async def run(config: SystemConfig, credentials: Credentials, task: str | None, tls: Tls | None) -> None:
    """Run a node until the run is over or a signal arrives.

    Raises:
        HyperGPUError: an error that no retry can help, such as a wrong token or an untrusted certificate.
    """
    settings, node_id = config.node, credentials.node_id
    specs = detect() if settings.gpu == "auto" else specs_from(settings.gpu)
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    series = NodeMetrics(registry, node_id, specs)
    collector_of_node = MetricsCollector(node_id, settings.history_size, sink=series.record)
    worker = Worker(node_id, specs, config, metrics=collector_of_node)
    structlog.contextvars.bind_contextvars(node=node_id)
    tracer = make_tracer("hypergpu-node", os.environ, node=node_id)
    async with CoordinatorClient(
        settings.coordinator, credentials, tls=tls, http_proxy=settings.http_proxy, tracer=tracer
    ) as client:
        server = HttpServer(settings.http_listen, {"/metrics": metrics(registry), "/healthz": lambda: _health(agent)})
        agent = Agent(
            client,
            worker,
            config,
            own_task=task,
            metrics_address=settings.metrics_address or reachable(server.address, settings.coordinator),
            version=package_version(),
            on_work=series.work,
            on_state=series.state,
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.stop, signal.Signals(number).name)
        background = Background()
        background.spawn("sampling usage and traffic", _sample(worker, client, series))
        try:
            print(f"listening on {server.address}", flush=True)
            await agent.run()
        finally:
            background.cancel()
            server.close()
            tracer.close()


async def _sample(worker: Worker, client: CoordinatorClient, series: NodeMetrics) -> None:
    """Record usage and traffic periodically."""
    meter = UsageMeter(worker.specs)
    sent = received = 0
    while True:
        usage = meter.read()
        worker.metrics.record_resource_usage(usage.gpu_util, usage.memory_mb)
        series.traffic(client.bytes_sent - sent, client.downloads.total_bytes - received)
        sent, received = client.bytes_sent, client.downloads.total_bytes
        await asyncio.sleep(_SAMPLE_SECONDS)


def _health(agent: Agent) -> Answer:
    """Answer 200 while the node runs, even without a coordinator: restarting the node would not help."""
    joined = agent.state not in {State.JOINING, State.PREPARING, State.LEAVING}
    return Answer(f"{agent.state}{'' if joined else ': not in a run'}\n".encode())


def reachable(address: str, coordinator: str) -> str:
    """Return the address for others: a wildcard stands for the address from which this host dials the coordinator.

    A host name would not do: the coordinator lets Prometheus scrape addresses of its networks, and no names.
    """
    host, _, port = address.rpartition(":")
    if host not in {"0.0.0.0", "[::]"}:
        return address
    try:
        name, number = split_address(coordinator)
        family, kind, _, _, target = socket.getaddrinfo(name.strip("[]"), number, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as dialling:
            dialling.connect(target)  # sends nothing
            own = dialling.getsockname()[0]
    except (OSError, HyperGPUError):
        return f"{socket.gethostname()}:{port}"
    return f"[{own}]:{port}" if ":" in own else f"{own}:{port}"
