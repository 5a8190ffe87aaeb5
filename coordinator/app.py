"""Puts a coordinator together and runs it from the first node to the last."""

import asyncio
import contextlib
import json
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from common.config import SystemConfig
from common.errors import ConfigError
from common.http import Answer, HttpServer, metrics
from common.rpc import SERVER_OPTIONS, Tls, bind
from common.tensors import Flat
from coordinator.control import ControlService
from coordinator.core import events as ev
from coordinator.core.global_model import GlobalModel
from coordinator.core.orchestration import AdaptiveOrchestrator, build_orchestrator
from coordinator.core.rounds import RoundMachine
from coordinator.core.shards import ShardTable
from coordinator.engine import Engine, Evaluate, Seams
from coordinator.links import NodeLinks
from coordinator.metrics import Metrics
from coordinator.node_series import NodeSeries
from coordinator.run_dir import Checkpoint, RunDir
from coordinator.scrape_targets import ScrapeRule
from coordinator.scraper import Scraper
from coordinator.servicing import TokenInterceptor
from coordinator.training import TrainingService
from coordinator.uploads import Uploads
from protos import coordinator_pb2, coordinator_pb2_grpc
from tasks import Task, build, evaluate
from tasks.samples import count

log = structlog.get_logger()


@dataclass(frozen=True)
class Options:
    """What is not part of a run's configuration: where it runs, and who may join."""

    out: Path
    token: str = ""
    tls: Tls | None = None
    """None is plaintext."""
    resume: bool = False


class Coordinator:
    """One run and its servers.

    Raises:
        ConfigError: an address in use, a directory that cannot be written, a checkpoint of another model.
    """

    def __init__(self, config: SystemConfig, task: Task, options: Options) -> None:
        self.config = config
        self._options = options
        flat = build(task, config.training.seed)
        self.run_dir = RunDir(options.out)
        checkpoint = self._checkpoint() if options.resume else None
        model = GlobalModel(flat.manifest, flat.flat(), flat.parameter_count, config.training)
        samples = count(task.train)
        shards = ShardTable(samples)
        if checkpoint is not None:
            shards = _restore(model, checkpoint, samples)
        self.orchestrator: AdaptiveOrchestrator = build_orchestrator(config)
        machine = RoundMachine(
            config.training,
            self.orchestrator,
            max_nodes=config.server.max_nodes,
            lost_after_seconds=config.server.lost_after_seconds,
            first_round=checkpoint.round + 1 if checkpoint else 1,
            shards=shards,
        )
        if checkpoint is not None:
            machine.members.remember(checkpoint.state["nodes"])
        self.registry = CollectorRegistry()
        self.links = NodeLinks(self.orchestrator)
        seams = Seams(self.run_dir, Metrics(self.registry), _evaluation(task, config.training.seed), self.links)
        if checkpoint is not None:
            seams.before = self.run_dir.spent()
        uploads = Uploads(flat.manifest.total_bytes, config.server.upload_memory_bytes)
        self._scrape_rule = ScrapeRule(config.server.scrape_hosts)
        self._resumed_round = checkpoint.round if checkpoint else 0
        self.engine = Engine(f"run-{uuid.uuid4().hex[:12]}", machine, model, uploads, seams)
        self._node_series = NodeSeries(self.registry, machine, self.orchestrator)

    async def run(self, announce: Callable[[str, str], None]) -> int:
        """Serve until the run is over or a signal ends it; the exit code. `announce` is given both addresses."""
        async with AsyncExitStack() as stack:
            server = await self._server()
            address = bind(server, self.config.server.listen, self._options.tls)
            routes = {"/metrics": metrics(self.registry), "/healthz": self._health, "/sd": self._targets}
            http = HttpServer(self.config.server.http_listen, routes)
            stack.callback(http.close)
            self.run_dir.begin(self.config, self._resumed_round)  # not before it is sure that this run can begin
            if self._resumed_round:
                self.engine.resumed(self._resumed_round)
            stack.push_async_callback(self.engine.close)
            await server.start()
            stack.push_async_callback(server.stop, 1.0)
            if self.config.server.scrape_nodes:
                scraper = Scraper(self.engine, self.links, self.config)
                stack.push_async_callback(scraper.stop)
                scraper.start()
            self._node_series.start()
            stack.push_async_callback(self._node_series.stop)
            interrupted = asyncio.Event()
            stack.enter_context(_on_signals(interrupted.set))
            announce(address, http.address)
            await _first(self.engine.finished.wait(), interrupted.wait())
            if interrupted.is_set() and self.config.server.stay and not self.engine.finished.is_set():
                await self.engine.suspend()
                return 0
            if interrupted.is_set():
                self.engine.dispatch(ev.Stop("interrupted"))
                await _first(self.engine.finished.wait(), asyncio.sleep(10.0))
            await self._linger(interrupted)
            if self.config.server.stay:
                await interrupted.wait()
        return 1 if self.engine.failure else 0

    def _checkpoint(self) -> Checkpoint | None:
        """Where to go on; None where nothing was begun, or all was done."""
        checkpoint = self.run_dir.latest()
        if checkpoint is None:
            log.info("there is no checkpoint to go on from: a new run begins", out=str(self.run_dir.path))
        elif checkpoint.round >= self.config.training.rounds:
            log.info("the run is complete: a new one begins", rounds=checkpoint.round, out=str(self.run_dir.path))
            return None
        return checkpoint

    async def _server(self) -> grpc.aio.Server:
        interceptors = [TokenInterceptor(self._options.token)] if self._options.token else []
        server = grpc.aio.server(
            interceptors=interceptors, options=SERVER_OPTIONS, maximum_concurrent_rpcs=self.config.server.max_nodes * 4
        )
        training = TrainingService(
            self.engine, self.config.server.heartbeat_seconds, self.config.server.max_model_bytes
        )
        server.add_generic_rpc_handlers((training.handler(),))
        coordinator_pb2_grpc.add_ControlServicer_to_server(ControlService(self.engine, self.orchestrator), server)
        names = [service.full_name for service in coordinator_pb2.DESCRIPTOR.services_by_name.values()]
        checker = health.aio.HealthServicer()
        for name in ("", *names):
            await checker.set(name, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(checker, server)
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
        return server

    async def _linger(self, interrupted: asyncio.Event) -> None:
        """Let the nodes hear that the run is over, and leave."""
        loop = asyncio.get_running_loop()
        until = loop.time() + min(self.config.server.linger_seconds, 3.0 if interrupted.is_set() else 3600.0)
        while self.engine.machine.members.connected and loop.time() < until:  # noqa: ASYNC110  (a short wait, once)
            await asyncio.sleep(0.05)

    def _health(self) -> Answer:
        machine = self.engine.machine
        waiting = f", waiting for {machine.waiting_for}" if machine.waiting_for else ""
        return Answer(f"{machine.state}, round {machine.round} of {machine.config.rounds}{waiting}\n".encode())

    def _targets(self) -> Answer:
        """Prometheus's HTTP service discovery."""
        connected = list(self.engine.machine.members.connected.values())
        groups = [
            {"targets": [target.address], "labels": {"node_id": target.node}}
            for target in self._scrape_rule.targets(connected)
        ]
        return Answer(json.dumps(groups).encode(), "application/json")


def _restore(model: GlobalModel, checkpoint: Checkpoint, samples: int) -> ShardTable:
    try:
        model.restore(checkpoint.tensors)
        return ShardTable.restored(checkpoint.state["shards"], samples)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"the checkpoint of round {checkpoint.round} is of another model or optimiser ({error}); "
            "resume with the configuration that it was made with"
        ) from error


def _evaluation(task: Task, seed: int) -> Evaluate:
    model = build(task, seed)

    def on_held_out_data(values: Flat) -> tuple[float, float]:
        model.load(values)
        result = evaluate(model.module, task)
        return result.loss, result.accuracy

    return on_held_out_data


async def _first(*waits: Any) -> None:
    """Until one of them is done; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def _on_signals(act: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, act)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
