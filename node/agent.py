"""Real-time driver of the life cycle: runs its effects as asyncio tasks and feeds their results back as events."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import structlog

from hypergpu.common.background import Background
from hypergpu.common.config import SystemConfig
from hypergpu.common.errors import HyperGPUError
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.node.assignments import Assignments, OnWork
from hypergpu.node.client import CoordinatorClient, RunOver, Work
from hypergpu.node.core import events as life
from hypergpu.node.core.failures import Failure
from hypergpu.node.core.lifecycle import LifeCycle
from hypergpu.node.core.states import State
from hypergpu.node.core.timeouts import SHUTDOWN_RPC_TIMEOUT_SECONDS
from hypergpu.node.heartbeats import HeartbeatLoop
from hypergpu.node.registration import NodeInfo, Registration
from hypergpu.node.worker import Worker
from hypergpu.protos import coordinator_pb2 as pb

log = structlog.get_logger()

Event = life.Event[Work]
Operation = Coroutine[Any, Any, Event]

_FIRST_WARNINGS, _WARNING_INTERVAL = 3, 10
"""Attempts that are logged as warnings: the first ones, then each tenth; an outage may last for hours."""


class Agent:
    """One node's membership in a cluster.

    Args:
        client: opened; knows the node's name.
        worker: trains the run's task.
        config: settings of the node.
        own_task: the `module:factory` whose code this node may load; None for shipped tasks only.
        metrics_address: HOST:PORT where it can be scraped; empty if it cannot.
        version: version of the distribution.
        on_work: called with how each work unit ended.
        on_state: called with each new state of the life cycle.
    """

    def __init__(
        self,
        client: CoordinatorClient,
        worker: Worker,
        config: SystemConfig,
        *,
        own_task: str | None = None,
        metrics_address: str = "",
        version: str = "",
        on_work: OnWork = lambda outcome: None,
        on_state: Callable[[State], None] = lambda state: None,
    ) -> None:
        node = config.node
        self._client, self._metrics, self._config, self._on_state = client, worker.metrics, node, on_state
        self._compute = ThreadPoolExecutor(1, "training")
        info = NodeInfo(own_task, metrics_address, version, node.region)
        self._registration = Registration(client, worker, info, self._compute)
        self._assignments = Assignments(client, worker, self._compute, on_work)
        self._life: LifeCycle[Work] = LifeCycle(
            KeyedRandom(0, "backoff", client.node_id, self._registration.incarnation),
            base=node.backoff_base_seconds,
            cap=node.backoff_cap_seconds,
        )
        self._queue = _EventQueue()
        self._heartbeats = HeartbeatLoop(
            client, worker.metrics, self._life, self._queue.put, lambda: self._assignments.is_transferring
        )
        self._ended_run = ""
        """Run whose end was logged."""
        self._grace = Background()

    @property
    def state(self) -> State:
        """State of the life cycle."""
        return self._life.state

    @property
    def run_id(self) -> str:
        """Id of the run; empty before the first registration."""
        return self._registration.run_id

    def stop(self, reason: str) -> None:
        """Finish the current work within the grace period or return it, then leave. Call it on the loop's thread."""
        self._queue.put(life.StopRequested(reason))

    async def run(self) -> None:
        """Run until the run is over or `stop` is called.

        Raises:
            HyperGPUError: an error that no retry can help, such as a wrong token.
        """
        log.info("connecting to the coordinator", address=self._client.address, node=self._client.node_id)
        self._queue.put(life.Started())
        try:
            while True:
                for effect in self._handle(await self._queue.get()):
                    if isinstance(effect, life.Exit):
                        if effect.error is not None:
                            raise effect.error
                        return
                    self._start(effect)
        finally:
            self._assignments.abandon()
            await self._assignments.close()
            self._grace.cancel()
            await self._grace.settle()
            await self._queue.cancel_operation()
            await self._heartbeats.stop()
            self._compute.shutdown()

    def _handle(self, event: Event) -> list[life.Effect[Work]]:
        before = self._life.state
        effects = self._life.handle(event)
        if self._life.state is not before:
            self._on_state(self._life.state)
            log.debug("state", state=str(self._life.state), because=type(event).__name__)
        if effects and isinstance(event, life.RegistrationRequested):
            log.warning("the coordinator does not know this node; registering again")
        return list(effects)

    def _start(self, effect: life.Effect[Work]) -> None:
        if isinstance(effect, life.StartGrace):
            self._grace.spawn("grace", self._expire(self._config.grace_seconds))
            return
        self._assignments.abandon()
        self._queue.start_operation(partial(self._guard, effect))

    def _operation_of(self, effect: life.Effect[Work]) -> Operation:
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
            case life.Push(work):
                operation = self._push(work)
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

    async def _guard(self, effect: life.Effect[Work]) -> Event:
        """Run the operation of an effect, and return its result or its error as an event."""
        try:
            return await self._operation_of(effect)
        except Exception as error:
            if not isinstance(error, HyperGPUError):
                log.exception("unexpected error", state=str(self._life.state))
            return life.Failed(error)

    async def _register(self) -> Event:
        reply = await self._registration.register()
        # From now on, because preparing may take longer than a node may be silent.
        self._heartbeats.start(reply.run_id, reply.heartbeat_seconds)
        return life.Registered()

    async def _prepare(self) -> Event:
        is_complete = await self._registration.prepare()
        if is_complete:
            self._assignments.start_waiting()
        return life.Prepared(announce=not is_complete)

    async def _pull(self) -> Event:
        announce = self._queue.put_of_operation()
        pulled = await self._assignments.pull(
            self._registration.run_id,
            self._config.pull_wait_seconds,
            lambda work: announce(life.WorkAnnounced(work)),
        )
        if pulled is None:
            return life.NoWork()
        if isinstance(pulled, RunOver):
            return life.RunFinished(pulled.reason or "the run is over", pulled.stays)
        return life.WorkReceived(pulled)

    async def _await_next_run(self, reason: str) -> Event:
        """Wait until the coordinator may have started its next run, which then makes this node register again."""
        run_id = self._registration.run_id
        if self._ended_run != run_id:
            self._ended_run = run_id
            log.info("the run is over; waiting for the next: `hypergpu restart` starts one", run=run_id, state=reason)
        await asyncio.sleep(self._heartbeats.interval_seconds)
        return life.NoWork()

    async def _train(self, work: Work) -> Event:
        await self._assignments.train(work)
        return life.Trained()

    async def _push(self, work: Work) -> Event:
        await self._assignments.push(work)
        return life.Pushed()

    async def _ask_progress(self, work: Work) -> Event:
        progress: pb.UploadProgress = await self._assignments.ask_progress(work)
        return life.ProgressKnown(progress.accepted, progress.next_offset)

    async def _return(self, work: Work, kind: str, detail: str) -> Event:
        await self._assignments.give_back(work, kind, detail)
        return life.Returned()

    async def _back_off(self, effect: life.BackOff) -> Event:
        if effect.failure is Failure.TRANSIENT:
            self._metrics.record_network_event(None, success=False, retries=1)
        is_warning = effect.attempt <= _FIRST_WARNINGS or effect.attempt % _WARNING_INTERVAL == 0
        (log.warning if is_warning else log.debug)(
            "trying again" if self._life.has_joined else "the coordinator cannot be reached; trying again",
            address=self._client.address,
            attempt=effect.attempt,
            seconds=round(effect.seconds, 2),
            kind=effect.because.kind,
            detail=effect.because.detail,
        )
        await asyncio.sleep(effect.seconds)
        return life.BackoffExpired()

    async def _leave(self, reason: str) -> Event:
        run_id = self._registration.run_id
        log.info("leaving", run=run_id, reason=reason)
        try:
            await self._client.leave(run_id, reason, timeout_seconds=SHUTDOWN_RPC_TIMEOUT_SECONDS)
        except HyperGPUError as error:
            log.info("could not notify the coordinator", detail=str(error))
        return life.Left()

    async def _expire(self, grace_seconds: float) -> None:
        await asyncio.sleep(grace_seconds)
        self._queue.put(life.GraceExpired())


class _EventQueue:
    """Events for the life cycle, and the one operation in progress; the events of a replaced operation are dropped."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._number = 0
        """Number of the operation; 0 marks events that do not belong to one."""
        self._operation: asyncio.Task[None] | None = None

    def put(self, event: Event) -> None:
        """Queue an event that does not belong to an operation."""
        self._events.put_nowait((0, event))

    def put_of_operation(self) -> Callable[[Event], None]:
        """Return a function that queues events of the operation in progress."""
        number = self._number
        return lambda event: self._events.put_nowait((number, event))

    async def get(self) -> Event:
        """Return the next event."""
        while True:
            number, event = await self._events.get()
            if number in {0, self._number}:
                return event

    def start_operation(self, operation: Callable[[], Operation]) -> None:
        """Replace the operation in progress; the result of the new one is queued as an event.

        It is called when its task runs: of a task that is cancelled before that, no coroutine is left over.
        """
        if self._operation is not None:
            self._operation.cancel()
        self._number += 1
        self._operation = asyncio.create_task(self._run(self._number, operation))

    async def cancel_operation(self) -> None:
        """Cancel the operation in progress and wait for its end."""
        if self._operation is not None:
            self._operation.cancel()
            await asyncio.gather(self._operation, return_exceptions=True)

    async def _run(self, number: int, operation: Callable[[], Operation]) -> None:
        self._events.put_nowait((number, await operation()))
