"""Real-time driver of the life cycle: runs its effects as asyncio tasks and feeds their results back as events."""

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import structlog

from hypergpu.common.background import Background
from hypergpu.common.config import SystemConfig
from hypergpu.common.errors import HyperGPUError, InvalidInput, ProtocolError
from hypergpu.common.identity import ADVICE, TaskIdentity, differences
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.common.wire import identity_from_proto, identity_to_proto, manifest_from_proto
from hypergpu.node.client import CoordinatorClient, RunOver, Work, specs_message
from hypergpu.node.core import events as life
from hypergpu.node.core.failures import Failure
from hypergpu.node.core.lifecycle import LifeCycle
from hypergpu.node.core.states import State
from hypergpu.node.core.timeouts import (
    SHUTDOWN_RPC_TIMEOUT_SECONDS,
    heartbeat_timeout_seconds,
    push_timeout_seconds,
)
from hypergpu.node.service import GPUNodeService
from hypergpu.node.trainer import Abandoned, Update
from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.tasks.loading import is_own

log = structlog.get_logger()

_MIN_HEARTBEAT_SECONDS = 0.05
"""A coordinator cannot make a node send more than 20 heartbeats per second."""

OnWork = Callable[[str], None]
"""Called with how each unit of work ended: accepted, duplicate, late, or the type of an error."""


class Agent:
    """One node's membership in a cluster.

    Args:
        client: opened; knows the node's name.
        service: the node; it is given the run's task and seed.
        config: how the node behaves.
        own_task: the `module:factory` whose code this node may load; None for shipped tasks alone.
        metrics_address: HOST:PORT where it can be scraped; empty where it can't.
        version: of the distribution.
    """

    def __init__(
        self,
        client: CoordinatorClient,
        service: GPUNodeService,
        config: SystemConfig,
        *,
        own_task: str | None = None,
        metrics_address: str = "",
        version: str = "",
        on_work: OnWork = lambda outcome: None,
        on_state: Callable[[State], None] = lambda state: None,
    ) -> None:
        self.node_id = client.node_id
        self.run_id = ""
        self._over = ""
        self._client, self._service, self._config = client, service, config
        self._own_task, self._metrics_address, self._version = own_task, metrics_address, version
        self._on_work, self._on_state = on_work, on_state
        self._incarnation = secrets.token_hex(8)
        node = config.node
        self._life: LifeCycle[Work] = LifeCycle(
            KeyedRandom(0, "backoff", self.node_id, self._incarnation),
            base=node.backoff_base_seconds,
            cap=node.backoff_cap_seconds,
        )
        self._events: asyncio.Queue[tuple[int, life.Event[Work]]] = asyncio.Queue()
        self._operation: asyncio.Task[None] | None = None
        self._number = 0
        self._background = Background()
        self._heartbeats: asyncio.Task[None] | None = None
        self._heartbeat_seconds = 2.0
        self._rtt_ms = 0.0
        self._reply = pb.RegisterReply()
        self._registered: tuple[int, TaskIdentity | None] = (0, None)
        """Largest batch and identity of the task, as last registered."""
        self._training = ThreadPoolExecutor(1, "training")
        self._abandon = threading.Event()
        self._parameters = np.empty(0, np.float32)
        self._update: Update | None = None
        self._waiting_since = time.monotonic()
        self._compute_seconds = 0.0

    @property
    def state(self) -> State:
        """State of the life cycle."""
        return self._life.state

    def stop(self, reason: str) -> None:
        """Finish the current work within the grace period or return it, then leave. Call it on the loop's thread."""
        self._events.put_nowait((0, life.StopRequested(reason)))

    async def run(self) -> None:
        """Run until the run is over or `stop` is called.

        Raises:
            HyperGPUError: an error that no retry can help, such as a wrong token.
        """
        log.info("connecting to the coordinator", address=self._client.address, node=self.node_id)
        self._events.put_nowait((0, life.Started()))
        try:
            while True:
                number, event = await self._events.get()
                if number not in {0, self._number}:
                    continue  # a late event of an operation that was replaced
                before = self._life.state
                effects = self._life.handle(event)
                if self._life.state is not before:
                    self._on_state(self._life.state)
                    log.debug("state", state=str(self._life.state), because=type(event).__name__)
                if effects and isinstance(event, life.RegistrationRequested):
                    log.warning("the coordinator does not know this node; registering again")
                for effect in effects:
                    if isinstance(effect, life.Exit):
                        if effect.error is not None:
                            raise effect.error
                        return
                    self._start(effect)
        finally:
            self._abandon.set()
            self._background.cancel()
            await self._background.settle()
            tasks = [t for t in (self._operation, self._heartbeats) if t is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._training.shutdown()

    # ------------------------------------------------------------ effects

    def _start(self, effect: life.Effect[Work]) -> None:
        if isinstance(effect, life.StartGrace):
            self._background.spawn("grace", self._after(self._config.node.grace_seconds, life.GraceExpired()))
            return
        self._number += 1
        self._abandon.set()
        if self._operation is not None:
            self._operation.cancel()
        self._operation = asyncio.create_task(self._guard(self._number, self._operation_of(effect)))

    def _operation_of(self, effect: life.Effect[Work]) -> Coroutine[Any, Any, life.Event[Work]]:
        match effect:
            case life.Register():
                operation = self._register()
            case life.Prepare():
                operation = self._prepare()
            case life.Pull():
                operation = self._pull()
            case life.AwaitNextRun(reason):
                operation = self._await_next_run(reason)
            case life.Train(work):
                operation = self._train(work)
            case life.Push(work, offset):
                operation = self._push(work, offset)
            case life.AskProgress(work):
                operation = self._ask_progress(work)
            case life.Return(work, kind, detail):
                operation = self._return(work, kind, detail)
            case life.BackOff():
                operation = self._back_off(effect)
            case life.Leave(reason):
                operation = self._leave(reason)
            case _:
                raise TypeError(f"{effect} is not an operation")
        return operation

    async def _guard(self, number: int, operation: Coroutine[Any, Any, life.Event[Work]]) -> None:
        """Run an operation and queue its result or its error as an event."""
        try:
            event: life.Event[Work] = await operation
        except Exception as error:
            if not isinstance(error, HyperGPUError):
                log.exception("unexpected error", state=str(self._life.state))
            event = life.Failed(error)
        self._events.put_nowait((number, event))

    async def _register(self) -> life.Event[Work]:
        request = pb.RegisterRequest(
            node_id=self.node_id,
            incarnation=self._incarnation,
            gpu=specs_message(self._service.specs),
            version=self._version,
            metrics_address=self._metrics_address,
            region=self._config.node.region,
            largest_batch=self._largest_batch(),
        )
        identity = self._service.identity
        if identity is not None:
            request.identity.CopyFrom(identity_to_proto(identity))
        began = time.monotonic()
        reply = await self._client.register(request)
        self._record_call(1000 * (time.monotonic() - began), success=True)
        self._reply, self._registered = reply, (request.largest_batch, identity)
        self.run_id, self._heartbeat_seconds = reply.run_id, max(_MIN_HEARTBEAT_SECONDS, reply.heartbeat_seconds)
        if self._heartbeats is None:  # already now: preparing may take longer than a node may be silent
            self._heartbeats = asyncio.create_task(self._beat())
        return life.Registered()

    def _largest_batch(self) -> int:
        return min(self._service.largest_batch or 0, 2**32 - 1)

    async def _prepare(self) -> life.Event[Work]:
        """Build the model of the run's task and check that it is the coordinator's."""
        reply = self._reply
        if is_own(reply.task) and reply.task != self._own_task:
            mine = f"--task is {self._own_task}" if self._own_task else "no --task was given"
            raise InvalidInput(
                f"the run trains {reply.task!r}, which is not shipped with HyperGPU, and {mine}: a node loads only "
                f"the code that it is told to; start it with --task {reply.task}"
            )
        loop = asyncio.get_running_loop()
        prepare = partial(self._service.prepare, reply.task, reply.seed)
        await loop.run_in_executor(self._training, prepare)
        manifest = self._service.trainer.model.manifest
        try:
            manifest_from_proto(reply.manifest).require_same(manifest)
        except ProtocolError as error:
            raise ProtocolError(f"the model of task {reply.task!r} here is not the coordinator's: {error}") from error
        self._require_same_task(reply)
        if self._parameters.shape != (manifest.size,):
            self._parameters = np.empty(manifest.size, np.float32)
        announce = self._registered != (self._largest_batch(), self._service.identity)
        if not announce:
            log.info("joined", address=self._client.address, run=reply.run_id, task=reply.task, node=self.node_id)
            self._waiting_since = time.monotonic()
        return life.Prepared(announce)

    def _require_same_task(self, reply: pb.RegisterReply) -> None:
        """Check that the data and the model are the coordinator's, before any work is done on others.

        Raises:
            InvalidInput: they differ; the message has both figures.
        """
        identity = self._service.identity
        if identity is None or not reply.HasField("identity"):
            return
        found = differences(identity, identity_from_proto(reply.identity))
        if found:
            raise InvalidInput(
                f"task {reply.task!r} is another one here than at the coordinator: {'; '.join(found[:4])}. {ADVICE}"
            )

    async def _pull(self) -> life.Event[Work]:
        number = self._number
        manifest = self._service.trainer.model.manifest

        def ordered(work: Work) -> None:
            self._events.put_nowait((number, life.WorkAnnounced(work)))

        wait = self._config.node.pull_wait_seconds
        pulled = await self._client.pull(self.run_id, wait, manifest, self._parameters, ordered)
        if pulled is None:
            return life.NoWork()
        if isinstance(pulled, RunOver):
            return life.RunFinished(pulled.reason or "the run is over", pulled.stays)
        self._record_call(None, success=True)
        return life.WorkReceived(pulled)

    async def _await_next_run(self, reason: str) -> life.Event[Work]:
        """Wait beside a coordinator that stays: when it begins its next run, this one is unknown to it."""
        if self._over != self.run_id:
            self._over = self.run_id
            log.info(
                "the run is over; waiting for the next: `hypergpu restart` begins one", run=self.run_id, state=reason
            )
        await asyncio.sleep(self._heartbeat_seconds)
        return life.NoWork()

    async def _train(self, work: Work) -> life.Event[Work]:
        self._abandon = abandon = threading.Event()
        loop = asyncio.get_running_loop()
        self._update = await loop.run_in_executor(self._training, self._compute, work, abandon)
        self._compute_seconds = self._update.compute_seconds
        return life.Trained()

    def _compute(self, work: Work, abandon: threading.Event) -> Update:
        if abandon.is_set():
            raise Abandoned("given up before it began")
        order, shard = work.order, work.order.shard
        return self._service.work(
            work.parameters,
            self._service.shard(shard.partition, shard.index, shard.count, shard.seed, shard.dirichlet_alpha),
            shard.cursor,
            batch_size=order.batch_size,
            local_steps=order.local_steps,
            learning_rate=order.learning_rate,
            # Neither node nor attempt: the work is the same whoever does it.
            key=(order.work.round, shard.index),
            abandon=abandon,
        )

    async def _push(self, work: Work, offset: int) -> life.Event[Work]:
        update = self._require_update()
        manifest = self._service.trainer.model.manifest
        timeout = push_timeout_seconds(work.order.deadline_seconds)
        reply = await self._client.push(work, manifest, update, offset, within_seconds=timeout)
        self._record_call(None, success=True)
        self._record_push(work, pb.PushUpdateReply.Outcome.Name(reply.outcome).lower())
        return life.Pushed()

    async def _ask_progress(self, work: Work) -> life.Event[Work]:
        progress = await self._client.upload_progress(work.id)
        if progress.accepted:
            self._record_call(None, success=True)
            self._record_push(work, "duplicate")
        return life.ProgressKnown(progress.accepted, progress.next_offset)

    def _record_push(self, work: Work, outcome: str) -> None:
        self._end_work(outcome, success=outcome in {"accepted", "duplicate"})
        loss = round(self._require_update().loss, 4)
        log.info("update pushed", run=self.run_id, round=work.id.round, outcome=outcome, loss=loss)

    def _require_update(self) -> Update:
        if self._update is None:
            raise HyperGPUError("a push without an update")
        return self._update

    async def _return(self, work: Work, kind: str, detail: str) -> life.Event[Work]:
        log.warning("returned work", run=self.run_id, round=work.id.round, kind=kind, detail=detail)
        self._end_work(kind, success=False)
        try:
            await self._client.return_work(work.id, kind, detail, within_seconds=SHUTDOWN_RPC_TIMEOUT_SECONDS)
        except HyperGPUError as error:
            log.warning("could not notify the coordinator", detail=str(error))  # its deadline will tell it
        return life.Returned()

    async def _back_off(self, effect: life.BackOff) -> life.Event[Work]:
        because = effect.because
        if effect.failure is Failure.TRANSIENT:
            self._record_call(None, success=False, retries=1)
        say = log.warning if effect.attempt < 4 or effect.attempt % 10 == 0 else log.debug
        say(
            "trying again" if self._life.has_joined else "the coordinator cannot be reached; trying again",
            address=self._client.address,
            attempt=effect.attempt,
            seconds=round(effect.seconds, 2),
            kind=because.kind,
            detail=because.detail,
        )
        await asyncio.sleep(effect.seconds)
        return life.BackoffExpired()

    async def _leave(self, reason: str) -> life.Event[Work]:
        log.info("leaving", run=self.run_id, reason=reason)
        try:
            await self._client.leave(self.run_id, reason, within_seconds=SHUTDOWN_RPC_TIMEOUT_SECONDS)
        except HyperGPUError as error:
            log.info("could not notify the coordinator", detail=str(error))
        return life.Left()

    # ------------------------------------------------------------ beside the operations

    async def _beat(self) -> None:
        """Send heartbeats at the coordinator's pace, and pass its directives on."""
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            try:
                await self._report()
            except Exception:  # a training node without heartbeats would count as lost, and no log would say why
                log.exception("a heartbeat failed unexpectedly; sending the next one")

    async def _report(self) -> None:
        """Send one heartbeat, and pass the coordinator's directive on."""
        work = self._life.work
        request = pb.HeartbeatRequest(
            node_id=self.node_id,
            run_id=self.run_id,
            state=str(self._life.state),
            rtt_ms=self._rtt_ms,
            report=self._service.metrics.encode_report(),
        )
        began = time.monotonic()
        try:
            timeout = heartbeat_timeout_seconds(self._heartbeat_seconds)
            reply = await self._client.heartbeat(request, within_seconds=timeout)
        except HyperGPUError as error:
            log.debug("a heartbeat failed", detail=str(error))
            self._record_call(None, success=False)
            return
        self._rtt_ms = 1000 * (time.monotonic() - began)
        self._record_call(self._rtt_ms, success=True)
        match reply.directive:
            case pb.HeartbeatReply.REGISTER_AGAIN:
                self._events.put_nowait((0, life.RegistrationRequested()))
            case pb.HeartbeatReply.ABANDON_WORK:
                self._events.put_nowait((0, life.AbandonRequested(work)))
            case pb.HeartbeatReply.SHUT_DOWN:
                self._events.put_nowait((0, life.RunFinished("the run is over")))

    async def _after(self, seconds: float, event: life.Event[Work]) -> None:
        await asyncio.sleep(seconds)
        self._events.put_nowait((0, event))

    def _record_call(self, latency_ms: float | None, *, success: bool, retries: int = 0) -> None:
        self._service.metrics.record_network_event(latency_ms, success, retries)

    def _end_work(self, outcome: str, *, success: bool) -> None:
        now = time.monotonic()
        waited = max(0.0, now - self._waiting_since - self._compute_seconds)
        self._service.metrics.record_work(self._compute_seconds, waited, success)
        self._on_work(outcome)
        self._waiting_since, self._compute_seconds = now, 0.0
