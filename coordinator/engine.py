"""Runs a training run: carries out what the round machine decides, and tells it what came of it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import structlog

from common.clock import Clock, monotonic
from common.errors import NonFiniteUpdate, StorageError
from common.metric import finite
from common.tensors import Flat, chunks
from common.wire import encode_part
from coordinator.core import events as ev
from coordinator.core.aggregation import norm
from coordinator.core.global_model import GlobalModel
from coordinator.core.rounds import RoundMachine
from coordinator.core.score import Score
from coordinator.feed import Feed
from coordinator.metrics import Metrics
from coordinator.model_files import ModelFiles
from coordinator.results import RunEvent, node_row, outcome, round_row
from coordinator.run_dir import RunDir, Spent
from coordinator.uploads import Uploads
from tasks import Evaluation

log = structlog.get_logger()

Evaluate = Callable[[Flat], Evaluation]
"""Parameters -> how good they are on held-out data; called on a thread of its own."""

_QUIET = frozenset({"round_started", "decision"})
"""Kinds of records that are logged at debug level: the rest is news."""
_NODES_FILE_SECONDS = 2.0
_FAILURES = frozenset({ev.FinishReason.FAILED, ev.FinishReason.DIVERGED})


class Links(Protocol):
    """Whoever wants to know how communication with the nodes goes."""

    def register(self, node: str, largest_batch: int) -> None:
        """A node joined; 0 = how much it can hold is not known."""
        ...

    def communication(self, node: str, latency_ms: float, success: bool) -> None:
        """One RPC with a registered node ended."""
        ...

    def heard(self, node: str, report: Mapping[str, Any], rtt_ms: float) -> None:
        """A heartbeat of a registered node."""
        ...

    def freeze(self, node: str) -> None:
        """A node has no more to say: keep what is known of its link."""
        ...

    def summary(self) -> Mapping[str, Any]:
        """What is to be said of the adaptation in a run's summary."""
        ...


@dataclass
class _Broadcast:
    """The parameters of one round, encoded once for all nodes."""

    round: int
    parts: "asyncio.Future[list[bytes]]"


@dataclass
class Seams:
    """Where the engine touches the rest: files, metrics, links and held-out data."""

    run_dir: RunDir
    files: ModelFiles
    metrics: Metrics
    evaluate: Evaluate
    links: Links
    clock: Clock = monotonic
    before: Spent = field(default_factory=Spent)
    """Of a resumed run: what it took so far."""
    stays: bool = False
    """Whether the coordinator goes on answering when the run is over."""
    compute: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, "compute"))
    """One thread: it takes updates in, steps and evaluates in the order in which the machine decided."""


class Engine:
    """The run as servicers see it. Everything but the executors runs on one event loop.

    Args:
        run_id: names the run on the wire; another for every start of a coordinator.
        machine: the rounds.
        model: the parameters.
        uploads: what is on its way in.
    """

    def __init__(self, run_id: str, machine: RoundMachine, model: GlobalModel, uploads: Uploads, seams: Seams) -> None:
        self.run_id = run_id
        self.machine = machine
        self.model = model
        self.uploads = uploads
        self.metrics = seams.metrics
        self.feed = Feed()
        self.finished = asyncio.Event()
        """Set when the run is over and its results are on disk."""
        self.failure = ""
        """Why the run could not go on, where that is nobody's decision."""
        self.stays = seams.stays
        """Whether the coordinator goes on answering when the run is over."""
        self.restart_asked = asyncio.Event()
        """Set when a user asks for a new run in the place of this one."""
        self._seams = seams
        self._clock = seams.clock
        self._started_at = seams.clock() - seams.before.seconds
        self._waiters: dict[str, asyncio.Future[ev.Assign | ev.RunOver | None]] = {}
        self._broadcast: _Broadcast | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: ev.CloseRound | None = None
        self._syncing = False
        self._nodes_written_at = -_NODES_FILE_SECONDS
        self._finish_reason = ""
        self._ended_seconds: float | None = None
        self._metric_fault = ""
        self.metrics.rounds_planned.set(machine.config.rounds)

    @property
    def elapsed_seconds(self) -> float:
        """From the run's beginning to now, or to its end, without the time in which nobody ran it."""
        return self._clock() - self._started_at if self._ended_seconds is None else self._ended_seconds

    @property
    def now(self) -> float:
        """The time as the machine has it."""
        return self._clock()

    @property
    def waiting_for(self) -> str:
        """Why no round is running, in words; empty while one is."""
        if self.machine.finished and self.stays:
            return "the next run: `hypergpu restart` begins one"
        return self.machine.waiting_for

    def resumed(self, after_round: int, damaged: Sequence[str] = (), forced: Sequence[str] = ()) -> None:
        """Put on record that the run goes on from a checkpoint, what could not be used, and what was changed."""
        for each in damaged:
            self._record(after_round + 1, "checkpoint_damaged", f"a newer checkpoint cannot be used: {each}")
        changes = f", with changes: {'; '.join(forced)}" if forced else ""
        self._record(after_round + 1, "resumed", f"resumed from the checkpoint of round {after_round}{changes}")

    def complete(self) -> None:
        """Serve a run that an earlier process completed: nothing is left to do."""
        self.finished.set()
        self.feed.end()

    def _record(self, round_number: int, kind: str, text: str) -> None:
        self._publish(RunEvent(self.elapsed_seconds, round_number, kind, text, {}))

    # ------------------------------------------------------------ for servicers

    def dispatch(self, event: ev.Event) -> list[ev.Effect]:
        """Let the machine handle an event, and carry out what it decides.

        Raises:
            HyperGPUError: as `RoundMachine.handle`.
        """
        if isinstance(event, ev.NodeLeft) and self.machine.members.get(event.node) is not None:
            self._seams.links.freeze(event.node)
        effects = self.machine.handle(event, self._clock())
        for effect in effects:
            self.metrics.observe(effect, self.machine)
            self._carry_out(effect)
        return effects

    def join(self, event: ev.NodeJoined) -> None:
        """A node registers.

        Raises:
            ResourceExhausted: no more are allowed.
        """
        self.machine.members.admit(event.node)
        self._seams.links.register(event.node, event.largest_batch)
        self.dispatch(event)

    async def next_order(self, node: str, wait_seconds: float) -> ev.Assign | ev.RunOver | None:
        """The node's next order, as soon as there is one; None when there was none in time."""
        loop = asyncio.get_running_loop()
        former = self._waiters.pop(node, None)
        if former is not None and not former.done():
            former.set_result(None)
        waiter: asyncio.Future[ev.Assign | ev.RunOver | None] = loop.create_future()
        self._waiters[node] = waiter
        try:
            self.dispatch(ev.WorkRequested(node))
            await asyncio.wait((waiter,), timeout=wait_seconds)
            return waiter.result() if waiter.done() else None
        finally:
            if self._waiters.get(node) is waiter:
                del self._waiters[node]
                if not waiter.done():
                    self.dispatch(ev.RequestEnded(node))

    async def parts(self, round_number: int) -> list[bytes] | None:
        """The encoded chunks of a round's parameters; None when that round is not the running one any more."""
        broadcast = self._broadcast
        if broadcast is None or broadcast.round != round_number:
            return None
        return await asyncio.shield(broadcast.parts)

    def is_current(self, round_number: int) -> bool:
        """Whether the parameters of this round are still wanted."""
        return self._broadcast is not None and self._broadcast.round == round_number

    async def norm(self, update: Flat) -> float:
        """Return the Euclidean norm of an update, computed on a thread; not finite if the update is not."""
        return await asyncio.get_running_loop().run_in_executor(None, norm, update)

    def take(self, event: ev.UpdateArrived, update: Flat) -> ev.Verdict:
        """A whole, checked update: the machine's verdict; the buffer goes back to `uploads` when it is used."""
        effects = self.machine.handle(event, self._clock())
        verdict = next(e for e in effects if isinstance(e, ev.Verdict))
        if verdict.outcome is ev.Outcome.ACCEPTED:
            added = self._run(self.model.add, update, verdict.weight)
            added.add_done_callback(lambda _: self.uploads.recycle(update))
        else:
            self.uploads.recycle(update)
        for effect in effects:
            self.metrics.observe(effect, self.machine)
            self._carry_out(effect)
        return verdict

    def refuse(self, event: ev.UpdateArrived) -> ev.Verdict:
        """An update that is not wanted, of which no byte was kept: the machine's verdict."""
        return next(e for e in self.dispatch(event) if isinstance(e, ev.Verdict))

    def communication(self, node: str, latency_ms: float, success: bool) -> None:
        """One RPC with a node ended."""
        if self.machine.members.get(node) is not None:
            self._seams.links.communication(node, latency_ms, success)

    def heard(self, node: str, report: Mapping[str, Any], rtt_ms: float) -> None:
        """A heartbeat of a connected node."""
        self.seen(node)
        self._seams.links.heard(node, report, rtt_ms)

    def seen(self, node: str) -> None:
        """Something of a node arrived: it is there."""
        self.dispatch(ev.NodeSeen(node))

    async def suspend(self) -> None:
        """Keep the state for a start with --resume; nodes are told nothing, and look for us until we are back."""
        self.dispatch(ev.Suspend())
        await self._settle()
        await self._checkpoint(self.machine.round - 1)

    async def _settle(self) -> None:
        """Wait until no round is being stepped or evaluated. What is waited for may begin more of it."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """Let what was begun be finished, and the files be complete."""
        if self._timer is not None:
            self._timer.cancel()
        await self._settle()
        self._seams.compute.shutdown(wait=True)
        self._write_results()
        await self._sync_records()
        self._seams.run_dir.close()

    # ------------------------------------------------------------ effects

    def _carry_out(self, effect: ev.Effect) -> None:  # noqa: PLR0912  (one case per effect)
        match effect:
            case ev.Record():
                self._publish(RunEvent(self.elapsed_seconds, effect.round, effect.kind, effect.text, effect.fields))
            case ev.Assign(node=node) | ev.RunOver(node=node):
                waiter = self._waiters.pop(node, None)
                if waiter is not None and not waiter.done():
                    waiter.set_result(effect)
            case ev.StartRound():
                self.uploads.close_idle()
                self._broadcast = _Broadcast(effect.round, self._run(_encode, self.model.values))
            case ev.CloseRound():
                self._broadcast = None
                self._closing = effect
                self._spawn(self._end_round(effect))
            case ev.AbandonRound():
                self._broadcast = None
                self._run(self.model.discard)
            case ev.KeepModel():
                self._run(self.model.keep)
            case ev.RevertModel():
                self._run(self.model.revert)
            case ev.SetTimer(at=at):
                if self._timer is not None:
                    self._timer.cancel()
                delay = max(0.0, at - self._clock())
                self._timer = asyncio.get_running_loop().call_later(delay, self.dispatch, ev.Tick())
            case ev.Finish(reason=reason):
                self._finish_reason = str(reason)
                if reason in _FAILURES:
                    self.failure = effect.detail
                self._ended_seconds = self.elapsed_seconds
                for node in self.machine.members.connected:
                    self._seams.links.freeze(node)
                self._spawn(self._end_run())
            case _:
                pass

    async def _end_round(self, closed: ev.CloseRound) -> None:
        """Step, evaluate where it is due, keep what is to be kept, and tell the machine."""
        stepped = False
        try:
            with self.metrics.step_seconds.time():
                good = await self._run(self.model.step)
            stepped = True
            if not good:
                text = f"the step of round {closed.round} would not be finite and was left out"
                self._publish(RunEvent(self.elapsed_seconds, closed.round, "step_skipped", text, {}))
            loss = metric = None
            if closed.evaluate:
                with self.metrics.evaluation_seconds.time():
                    found = await self._run(self._seams.evaluate, self.model.values)
                loss, metric = found.loss, found.metric
                self._tell_metric_fault(found.fault, closed.round)
                self.metrics.evaluated(loss, metric)
                score = Score(closed.round, loss, metric, self.machine.metric)
                await self._run(self._seams.files.evaluated, score)
        except Exception as error:  # the user's model or evaluation: the run can't go on, its files must
            log.exception("the round could not be ended", round=closed.round)
            detail = f"round {closed.round} could not be evaluated: {type(error).__name__}: {error}"
            self.dispatch(ev.EvaluationFailed(closed.round, detail, stepped))
            return
        self._seams.run_dir.round(round_row(closed, loss, self.machine.metric, metric, self.elapsed_seconds))
        if not self._syncing:
            self._spawn(self._sync_records())
        self.dispatch(ev.Evaluated(closed.round, loss, metric, self.model.update_norms if good else None))
        if closed.round % self.machine.config.checkpoint_every == 0:
            await self._checkpoint(closed.round)
        if self._clock() - self._nodes_written_at >= _NODES_FILE_SECONDS:
            self._nodes_written_at = self._clock()
            self._write_results()

    async def _sync_records(self) -> None:
        """Bring the records of closed rounds to the disk, beside the training; one at a time."""
        self._syncing = True
        try:
            await asyncio.get_running_loop().run_in_executor(None, self._seams.run_dir.sync)
        except OSError as error:
            log.error("the records of the run cannot be synced to the disk", reason=str(error))
        finally:
            self._syncing = False

    def _tell_metric_fault(self, fault: str, round_number: int) -> None:
        """Put on record, once for each cause, that the metric could not be computed. Training goes on by the loss."""
        if fault and fault != self._metric_fault:
            text = f"{fault}; it is undefined for round {round_number}, and training goes on"
            self._publish(RunEvent(self.elapsed_seconds, round_number, "metric_failed", text, {}))
        self._metric_fault = fault

    async def _end_run(self) -> None:
        done = self.machine.round - 1
        await self._checkpoint(done)
        if done >= 1:
            await self._save("the model", done, self._seams.files.finish, done)
        self._write_results()
        self.finished.set()
        self.feed.end()

    async def _checkpoint(self, round_number: int) -> None:
        if round_number < 1:
            return
        machine = self.machine
        state = {
            "run_id": self.run_id,
            "configuration": machine.config.model_dump(mode="json"),
            "shards": machine.shards.snapshot(),
            "nodes": self.node_rows(),
            "elapsed_seconds": self.elapsed_seconds,
            "loss": finite(machine.loss),
            "metric": machine.metric_value,
            "finished": self._finish_reason or None,
        }
        await self._save("the checkpoint", round_number, self._seams.files.checkpoint, round_number, state)

    async def _save(self, what: str, round_number: int, save: Callable[..., Path], *arguments: Any) -> None:
        """Save on the compute thread; a full disk must not end the training."""
        try:
            await self._run(save, *arguments)
        except (StorageError, NonFiniteUpdate) as error:
            text = f"{what} of round {round_number} was not written: {error}"
            self._record(round_number, "checkpoint_failed", text)

    # ------------------------------------------------------------ results

    def node_rows(self) -> list[dict[str, Any]]:
        """Every node as a row of nodes.json."""
        return [node_row(member, self.state_of(member.node_id)) for member in self.machine.members]

    def state_of(self, node: str) -> str:
        """A node's state in one word: preparing, idle, working, straggling, lost, left, done."""
        member = self.machine.members.require(node)
        if self.machine.finished and (member.completed or node in self.machine.members.connected):
            return "done"
        if node not in self.machine.members.connected:
            return str(member.presence)
        if not member.ready:
            return "preparing"
        if node in self.machine.members.straggling:
            return "straggling"
        return "working" if self.machine.is_working(node) else "idle"

    def summary(self) -> dict[str, Any]:
        """The result so far."""
        before = self._seams.before.traffic
        return {
            "run_id": self.run_id,
            "seed": self.machine.config.seed,
            **outcome(self.machine, self._finish_reason, self.elapsed_seconds),
            **self._seams.links.summary(),
            **{name: before.get(name, 0) + count for name, count in self.metrics.traffic().items()},
            "nodes": {row["node_id"]: row for row in self.node_rows()},
        }

    def _write_results(self) -> None:
        self._seams.run_dir.nodes(self.node_rows())
        self._seams.run_dir.summary(self.summary())

    def _publish(self, event: RunEvent) -> None:
        self._seams.run_dir.event(event.row())
        node = {"node": event.fields["node"]} if "node" in event.fields else {}
        say = log.debug if event.kind in _QUIET else log.info
        say(event.text, kind=event.kind, run=self.run_id, round=event.round, **node)
        self.feed.publish(event)

    # ------------------------------------------------------------ running things

    def _run(self, function: Callable[..., Any], *arguments: Any) -> "asyncio.Future[Any]":
        """On the compute thread, in order."""
        return asyncio.get_running_loop().run_in_executor(self._seams.compute, partial(function, *arguments))

    def _spawn(self, coroutine: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _encode(values: Flat) -> list[bytes]:
    return [encode_part(chunk) for chunk in chunks(values)]
