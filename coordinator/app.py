"""Coordinator process: builds the parts of a run and serves until the run is over."""

import asyncio
import json
import math
import secrets
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import structlog
from prometheus_client import CollectorRegistry

from hypergpu.common.background import PeriodicTask
from hypergpu.common.clock import Clock, monotonic
from hypergpu.common.config import SystemConfig
from hypergpu.common.config.compression import CompressionConfig
from hypergpu.common.errors import StorageError
from hypergpu.common.grpc_server import make_server
from hypergpu.common.http import Answer, HttpServer, Routes
from hypergpu.common.http import metrics as metrics_route
from hypergpu.common.identity import TaskIdentity
from hypergpu.common.roles import Role
from hypergpu.common.rpc import bind
from hypergpu.common.tls import Tls
from hypergpu.common.token import TokenSource
from hypergpu.common.tracing import NO_TRACER, Tracer
from hypergpu.common.version import package_version
from hypergpu.common.wire import require_sendable
from hypergpu.coordinator.budgets import NodeBudgets
from hypergpu.coordinator.callers import Admission
from hypergpu.coordinator.control import ControlService
from hypergpu.coordinator.core.adaptation import AdaptationPolicy, AdaptiveOrchestrator, build_orchestrator
from hypergpu.coordinator.core.checkpoint_rule import CheckpointRule
from hypergpu.coordinator.core.leases import Leases
from hypergpu.coordinator.core.model.global_model import GlobalModel
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.local_shards import make_shards
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.coordinator.core.rounds.shards import ShardTable
from hypergpu.coordinator.core.same_run import Difference
from hypergpu.coordinator.core.score import Score
from hypergpu.coordinator.engine import Engine
from hypergpu.coordinator.engine_dependencies import EngineDependencies
from hypergpu.coordinator.gains import Gains
from hypergpu.coordinator.health import Health, Part
from hypergpu.coordinator.held_out import HeldOut, evaluation_device
from hypergpu.coordinator.initial_model import initial_values
from hypergpu.coordinator.ledger_files import OpenedLedger, open_ledger
from hypergpu.coordinator.link_telemetry import LinkTelemetry
from hypergpu.coordinator.metrics import Metrics
from hypergpu.coordinator.model_files import ModelFiles, final_round
from hypergpu.coordinator.node_metrics import NodeMetricsCollector
from hypergpu.coordinator.outlets import Outlets
from hypergpu.coordinator.page import about_settings, page_routes
from hypergpu.coordinator.page.steering import Steering
from hypergpu.coordinator.refusals import Refusals
from hypergpu.coordinator.rehearsing import RehearsalProcess
from hypergpu.coordinator.resuming import Found, find, identity_of, require_same_run, restore, set_aside_after
from hypergpu.coordinator.round_log import RoundLog
from hypergpu.coordinator.run_dir import RunDir
from hypergpu.coordinator.run_keys import lease_key, ledger_key
from hypergpu.coordinator.saved_state import Identity
from hypergpu.coordinator.scrape_targets import ScrapeRule
from hypergpu.coordinator.scraper import Scraper
from hypergpu.coordinator.spill import MemoryFirst, spilled_buffer
from hypergpu.coordinator.storage import Storage
from hypergpu.coordinator.traces import RoundTraces
from hypergpu.coordinator.training import TrainingService
from hypergpu.coordinator.uploads import Disk, Uploads
from hypergpu.coordinator.what_if import WhatIfs
from hypergpu.protos import coordinator_pb2, coordinator_pb2_grpc
from hypergpu.tasks import Task, build, with_local_optimizer, with_main_metric
from hypergpu.tasks.identity import identity_of as task_identity_of
from hypergpu.tasks.local_samples import require_partition
from hypergpu.tasks.own_type import with_own_type
from hypergpu.tasks.samples import count
from hypergpu.tasks.saved import SavedModel

_HOW_TO_GO_ON = (
    "To go on, resume with more training.rounds (where a target or its patience ended it: with a better "
    "training.target_accuracy, or more training.patience); to start a new run here, leave --resume out: this one is "
    "then kept under earlier/"
)
_RETRY_SECONDS = 5.0
"""Interval between retries of failed writes."""
_MAX_RPCS_OF_NODE = 4
"""Concurrent calls per node: a heartbeat, a pull or push, the remains of an abandoned one, and a call by a user."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Options:
    """Settings of the process that are not part of a run's configuration: addresses, directories and access."""

    out: Path
    tokens: Mapping[Role, TokenSource] = field(default_factory=dict)
    """Tokens that callers need; a role without one needs none, if no other role that may make the call has one."""
    tls: Tls | None = None
    """TLS credentials; None for plaintext."""
    resume: bool = False
    force: bool = False
    """Resume although changed settings affect the training, or the log of rounds is damaged."""
    storage: Storage = field(default_factory=Storage)
    """Disk of the log and the checkpoints."""
    clock: Clock = monotonic
    tracer: Tracer = NO_TRACER


@dataclass(frozen=True)
class _Model:
    """Model of a run, with what evaluates and saves it."""

    model: GlobalModel
    held_out: HeldOut
    saved: SavedModel
    files: ModelFiles
    identity: Identity
    task_identity: TaskIdentity
    samples: int
    """Number of training samples that all nodes share."""
    compression: CompressionConfig
    """Settings of its transfers."""


def _make_model(config: SystemConfig, task: Task, options: Options) -> _Model:
    training = config.training
    device = evaluation_device(config.server.evaluation_device)
    require_partition(task, training.partition)
    is_local = training.data_is_local
    flat = build(task, training.seed)
    require_sendable(flat.manifest, config.server.max_model_bytes)
    task_identity = task_identity_of(task, flat, training.seed, is_local=is_local)
    model = GlobalModel(
        flat.manifest, flat.flat(), flat.parameter_count, training, config.aggregation, secret=secrets.randbits(63)
    )
    model.hold_in(MemoryFirst(options.out, config.server.upload_memory_bytes))
    evaluated = build(task, training.seed, device)
    held_out = HeldOut(evaluated, task, config.server.evaluation_batch_size or training.batch_size)
    saved, samples = SavedModel(evaluated), 0 if is_local else count(task.train)
    identity = identity_of(task, saved, flat.parameter_count, is_local=is_local)
    files = ModelFiles(options.out, model, saved, identity, {"task": training.task}, storage=options.storage)
    return _Model(
        model, held_out, saved, files, identity, task_identity, samples, with_own_type(config.compression, flat)
    )


@dataclass(frozen=True)
class _Users:
    """Parts that serve users, over gRPC and over HTTP."""

    control: ControlService
    budgets: NodeBudgets
    refusals: Refusals
    what_ifs: WhatIfs


class Coordinator:
    """One run and its servers.

    Raises:
        RunInUse: Another process writes to the directory.
        CannotResume: No checkpoint is usable, or the checkpoints belong to another run.
        ConfigError: An address is in use, or the directory is not writable.
    """

    def __init__(self, config: SystemConfig, task: Task, options: Options) -> None:
        task = with_main_metric(task, config.training.metric)
        training = with_local_optimizer(config.training, task)
        self.config = config = config.model_copy(update={"training": training})
        self.restart_asked = False
        """True if `run` ended because a user requested a new run."""
        self._options = options
        self.run_dir = RunDir(options.out)
        with ExitStack() as if_it_fails:
            if_it_fails.callback(self.run_dir.close)
            if config.aggregation_warning:
                log.warning(config.aggregation_warning)
            model = _make_model(config, task, options)
            self.config = config = config.model_copy(update={"compression": model.compression})
            shards = self._resume(model)
            self.orchestrator: AdaptiveOrchestrator = build_orchestrator(
                config, model_bytes=model.model.manifest.total_bytes, clock=options.clock
            )
            if self._found is not None and self._found.state.adaptation is not None and not self._relearns:
                self.orchestrator.restore(self._found.state.adaptation, self._found.round + 1)
            self.registry = CollectorRegistry()
            self.links = LinkTelemetry(self.orchestrator)
            self._scrape_rule = ScrapeRule(config.server.scrape_hosts)
            machine = self._make_machine(model, shards)
            self.engine = self._make_engine(model, machine)
            self._node_series = NodeMetricsCollector(
                self.registry, machine, self.orchestrator, self.engine.health.reporter(Part.NODE_SERIES)
            )
            if_it_fails.pop_all()

    def _resume(self, model: "_Model") -> ShardTable:
        """Restore the model from a checkpoint, if that is requested, or from where it begins; return the shards."""
        options, training = self._options, self.config.training
        self._found = found = find(self.run_dir.checkpoints, force=options.force) if options.resume else None
        self._forced: Sequence[Difference] = ()
        if training.initial_model and (found is None or found.checkpoint is None):
            model.model.restore(initial_values(Path(training.initial_model), model.saved), None)
        if found is None:
            self._complete = False
            return self._new_shards(model)
        self._forced = require_same_run(found, training, model.identity, model.saved, force=options.force)
        model.files.restore_best()
        restore(
            model.model,
            found,
            model.saved,
            self._forced,
            metric=model.held_out.metric,
            evaluated=model.files.evaluated,
        )
        self._complete = found.is_complete(training, model.held_out.metric)
        shards = self._new_shards(model)
        shards.restore(found.state.shards.model_dump())
        return shards

    def _new_shards(self, model: "_Model") -> ShardTable:
        return make_shards(self.config.training, model.samples, self.config.server.max_nodes)

    @property
    def _relearns(self) -> str:
        """Reason for which the adaptation of a resumed run starts anew; empty if it goes on, or there is none."""
        if self._found is None or self.orchestrator.policy is AdaptationPolicy.NONE:
            return ""
        if self._forced:
            return "settings of the training changed"
        return "" if self._found.state.adaptation is not None else "the checkpoint was written by another version"

    def _make_machine(self, model: "_Model", shards: ShardTable) -> RoundMachine:
        machine = RoundMachine(
            self.config.training,
            self.orchestrator,
            max_nodes=self.config.server.max_nodes,
            lost_after_seconds=self.config.server.lost_after_seconds,
            first_round=self._found.round + 1 if self._found else 1,
            shards=shards,
            complete=self._complete,
            metric=model.held_out.metric,
            codecs=self.config.compression.codecs,
            suspicion=self.config.aggregation.suspicion,
            measured_share=self.config.contribution.measured_share,
            spot_check_share=self.config.contribution.spot_check_share,
            secret=secrets.randbits(63),
        )
        if self._found is not None:
            state = self._found.state
            machine.restore_nodes([node.model_dump(mode="json") for node in state.nodes])
            machine.restore_figures(state.loss, state.metric, of_present_model=self._found.is_evaluated)
            if state.kept is not None:
                machine.restore_kept(state.kept.round, state.kept.loss, state.kept.metric)
            machine.suspicions.restore(**state.suspicions.model_dump())
            if state.improvement is not None:
                found = state.improvement
                best = Score(found.round, found.loss, found.metric, model.held_out.metric)
                machine.restore_improvement(best, found.evaluations)
        return machine

    def _make_engine(self, model: "_Model", machine: RoundMachine) -> Engine:
        server, health = self.config.server, Health(self.registry)
        metrics = Metrics(self.registry, model.held_out.metric)
        evaluate = model.held_out.evaluate
        opened = self._open_ledger()
        dependencies = EngineDependencies(
            self.run_dir, model.files, metrics, evaluate, self.links, health, opened.ledger
        )
        gains = Gains(model.model, lambda values: evaluate(values).loss, self._options.clock)
        dependencies.gain = gains.measure
        dependencies.adaptation_state = lambda: asdict(self.orchestrator.state())
        dependencies.rehearsals = RehearsalProcess(self.run_dir.path, self.orchestrator)
        dependencies.storage = storage = self._options.storage
        dependencies.round_log = RoundLog(self.run_dir.checkpoints, storage) if self.config.checkpoint.log else None
        dependencies.checkpoints = CheckpointRule(
            self.config.checkpoint.interval, model.model.manifest.total_bytes, self._options.clock()
        )
        dependencies.clock = self._options.clock
        dependencies.stays, dependencies.identity = server.stay, model.task_identity
        resumes = self._found is not None and not self._complete
        reserved_until = dependencies.clock() + server.lost_after_seconds if resumes else -math.inf
        dependencies.leases = Leases(lease_key(self.run_dir.path), machine.members, reserved_until=reserved_until)
        if self._found is not None:
            spent = self.run_dir.spent()
            dependencies.before = replace(spent, seconds=max(spent.seconds, self._found.state.elapsed_seconds))
        buffers = partial(spilled_buffer, self._options.out)
        disk = Disk(buffers, server.upload_disk_bytes, health.reporter(Part.SPILL))
        update = model.model.payload_format(machine.round_state.codecs.update, model.model.largest_update)
        uploads = Uploads(update.payload_bytes, server.upload_memory_bytes, disk)
        run_id = f"run-{uuid.uuid4().hex[:12]}"
        dependencies.traces = RoundTraces(self._options.tracer, run_id)
        return Engine(run_id, machine, model.model, uploads, dependencies)

    def _open_ledger(self) -> OpenedLedger:
        """Return the ledger of the run, which the run directory keeps when the run begins or goes on."""
        key, found = ledger_key(self.run_dir.path), self._found
        saved = found.state.ledger if found is not None else None
        # A run that goes on from an older checkpoint, since the newest is damaged, has undone what was published.
        may_replace = self._options.force or (found is not None and bool(found.damaged))
        self.run_dir.ledger = opened = open_ledger(self.run_dir.path, key, saved, may_replace=may_replace)
        return opened

    async def run(self, announce: Callable[[str, str], None], interrupted: asyncio.Event) -> int:
        """Serve until the run is over, or until `interrupted` is set; return the exit code.

        `announce` is called with the addresses of gRPC and HTTP once both accept connections.
        """
        async with AsyncExitStack() as stack:
            stack.callback(self.run_dir.close)
            if self._complete:
                await self._complete_results()
                log.warning(f"{self._completion()}. {_HOW_TO_GO_ON}", out=str(self.run_dir.path))
                if not self.config.server.stay:
                    return 0
            users = self._users()
            server = await self._server(users)
            address = bind(server, self.config.server.listen, self._options.tls)
            http = self._http(users, stack)
            await self._begin()  # only after everything that can fail
            health = self.engine.health
            health.start_monitoring()
            stack.callback(health.stop_monitoring)
            outlets = await self._start_outlets(stack)  # they close after the files of the run are complete
            stack.push_async_callback(self.engine.close)
            retries = PeriodicTask(self.engine.retry, _RETRY_SECONDS, health.reporter(Part.RETRY))
            retries.start()
            stack.push_async_callback(retries.stop)
            await server.start()
            stack.push_async_callback(server.stop, 1.0)
            self._start_scraper(stack)
            self._node_series.start()
            stack.push_async_callback(self._node_series.stop)
            announce(address, http.address)
            restart = self.engine.restart_asked
            await _first(self.engine.finished.wait(), interrupted.wait(), restart.wait())
            if self.engine.finished.is_set():
                outlets.finish()
            if interrupted.is_set() and self.config.server.stay and not self.engine.finished.is_set():
                self.engine.suspend()
            else:
                await self._end(interrupted, restart)
        if self.engine.failure:
            log.error("the run failed", run=self.engine.run_id, reason=self.engine.failure, out=str(self.run_dir.path))
            return 1
        return 0

    def _start_scraper(self, stack: AsyncExitStack) -> None:
        if self.config.server.scrape_nodes:
            report = self.engine.health.reporter(Part.SCRAPER)
            scraper = Scraper(self.engine, self.links, self.config, report)
            stack.push_async_callback(scraper.stop)
            scraper.start()

    async def _start_outlets(self, stack: AsyncExitStack) -> Outlets:
        chosen = {} if self._complete else self.config.outlets.chosen
        outlets = Outlets(self.run_dir.path, chosen, self.engine.health.reporter(Part.OUTLETS))
        stack.push_async_callback(outlets.close)
        await outlets.start(self._found.round if self._found is not None else 0)
        return outlets

    async def _end(self, interrupted: asyncio.Event, restart: asyncio.Event) -> None:
        """Stop the run if a user or a signal requests it, and let the nodes learn of its end."""
        if interrupted.is_set() or restart.is_set():
            self.engine.dispatch(ev.Stop("interrupted" if interrupted.is_set() else "restarted by the user"))
            await _first(self.engine.finished.wait(), asyncio.sleep(10.0))  # `close` waits longer if needed
        if self.config.server.stay:  # the nodes stay connected and wait for the next run
            await _first(interrupted.wait(), restart.wait())
        else:
            await self._linger(interrupted)
        self.restart_asked = restart.is_set() and not interrupted.is_set()

    async def _begin(self) -> None:
        """Open the run's files for a new or resumed run; the files of a complete run stay unchanged."""
        found = self._found
        if found is None:
            if self._options.resume:
                log.info("there is no checkpoint to resume from: a new run begins", out=str(self.run_dir.path))
            self.run_dir.begin(self.config)
            self._start_ledger(1)
        elif self._complete:
            self.engine.complete()
        else:
            forced = [str(difference) for difference in self._forced]
            self._take_over(found)
            self._start_ledger(found.round + 1)
            fault = self.run_dir.ledger.fault if self.run_dir.ledger is not None else ""
            self.engine.resumed(found, forced, relearns=self._relearns, ledger_fault=fault)
            if forced and found.logged:  # steps are taken again with the settings of one checkpoint and its log
                await self.engine.save_base()

    def _start_ledger(self, round_number: int) -> None:
        """Record in the ledger that this process begins or goes on with the run."""
        settings = self.config.training.model_dump(mode="json")
        opened = self.run_dir.ledger
        replaces = {"replaces": opened.fault} if opened is not None and opened.fault else {}
        start = {"run_id": self.engine.run_id, "version": package_version(), "training": settings, **replaces}
        self.engine.ledger.append("start", round_number, start)

    def _take_over(self, found: Found) -> None:
        """Bring the files to the round that the run resumes from.

        Raises:
            StorageError: The log cannot be changed now.
            ConfigError: A record cannot be changed.
        """
        set_aside_after(self.run_dir.checkpoints, found.base)
        try:
            RoundLog(self.run_dir.checkpoints, self._options.storage).cut(found.log, found.round)
        except OSError as error:
            raise StorageError(f"cannot cut the log in {self.run_dir.checkpoints}: {error.strerror}") from error
        self.run_dir.begin(self.config, found.round, found.rows())

    async def _complete_results(self) -> None:
        """Write the results of a complete run, if the process that completed it died before it could."""
        found = self._found
        assert found is not None
        if final_round(self.run_dir.path) != found.round:
            self._take_over(found)
            await self.engine.save_results()

    def _completion(self) -> str:
        found, training = self._found, self.config.training
        assert found is not None
        if found.state.finished is ev.FinishReason.NO_IMPROVEMENT and not training.is_last(found.round):
            return f"the run is complete: nothing improved any more by round {found.round}"
        if not training.is_last(found.round):
            return f"the run is complete: it reached its target of {training.target_accuracy} in round {found.round}"
        return f"the run is complete: {found.round} of {training.rounds} rounds are done"

    def _users(self) -> _Users:
        control = ControlService(self.engine, self.orchestrator, self.links)
        budgets, refusals = NodeBudgets(self.config.server.heartbeat_seconds), Refusals(self.registry)
        return _Users(control, budgets, refusals, WhatIfs(self.run_dir.path))

    async def _server(self, users: _Users) -> grpc.aio.Server:
        config, tls, leases = self.config.server, self._options.tls, self.engine.session.leases
        assert leases is not None
        server = await make_server(
            [service.full_name for service in coordinator_pb2.DESCRIPTOR.services_by_name.values()],
            admit=Admission(
                self._options.tokens,
                leases,
                users.budgets,
                certified=bool(tls and tls.client_authority),
            ),
            on_error=users.refusals.count,
            max_concurrent_rpcs=config.max_nodes * _MAX_RPCS_OF_NODE,
        )
        most, required = config.max_model_bytes, config.require_receipts
        training = TrainingService(self.engine, leases, config.heartbeat_seconds, most, require_receipts=required)
        server.add_generic_rpc_handlers((training.handler(),))
        coordinator_pb2_grpc.add_ControlServicer_to_server(users.control, server)
        return server

    async def _linger(self, interrupted: asyncio.Event) -> None:
        """Keep serving until the nodes have learned that the run is over and have left."""
        loop = asyncio.get_running_loop()
        until = loop.time() + min(self.config.server.linger_seconds, 3.0 if interrupted.is_set() else 3600.0)
        while self.engine.machine.members.connected and loop.time() < until:  # noqa: ASYNC110  (a short wait, once)
            await asyncio.sleep(0.05)

    def _http(self, users: _Users, stack: AsyncExitStack) -> HttpServer:
        """Begin to serve HTTP, until the stack closes."""
        http = HttpServer(self.config.server.http_listen, self._routes(users))
        stack.callback(http.close)
        stack.push_async_callback(users.what_ifs.close)
        return http

    def _routes(self, users: _Users) -> Routes:
        own = {"/metrics": metrics_route(self.registry), "/healthz": self._health, "/sd": self._targets}
        tokens, count = self._options.tokens, users.refusals.count
        steering = Steering(users.control, users.what_ifs, tokens, users.budgets, count)
        return {**own, **page_routes(self.run_dir.path, tokens, self._about, count), **steering.routes()}

    def _about(self) -> Mapping[str, Any]:
        """Return what the live page shows of the run before its records."""
        metric = self.engine.machine.metric.model_dump(mode="json")
        policies = [str(policy) for policy in AdaptationPolicy] if self._options.tokens.get(Role.OPERATOR) else []
        own = {"name": self.run_dir.path.resolve().name, "live": True, "metric": metric, "policies": policies}
        return {**about_settings(self.config), **own}

    def _health(self) -> Answer:
        """Answer 503 only if a restart may help: a run with a full disk still trains and must not be killed."""
        engine, machine = self.engine, self.engine.machine
        if engine.health.stalled_seconds:
            text = f"the event loop has not run for {engine.health.stalled_seconds:.0f} s"
            return Answer(f"{text}\n".encode(), status=503)
        if engine.failure:
            return Answer(f"failed: {engine.failure}\n".encode(), status=503)
        waiting = f", waiting for {engine.waiting_for}" if engine.waiting_for else ""
        degraded = "".join(f"\ndegraded: {problem}" for problem in engine.health.problems)
        return Answer(f"{machine.state}, {machine.config.progress(machine.round)}{waiting}{degraded}\n".encode())

    def _targets(self) -> Answer:
        """Return the scrape targets for Prometheus's HTTP service discovery."""
        connected = list(self.engine.machine.members.connected.values())
        groups = [
            {"targets": [target.address], "labels": {"node_id": target.node}}
            for target in self._scrape_rule.targets(connected)
        ]
        return Answer(json.dumps(groups).encode(), "application/json")


async def _first(*waits: Any) -> None:
    """Wait until one of the awaitables is done, and cancel the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
