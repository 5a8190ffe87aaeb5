"""Engine of a run: carries out the decisions of the round machine and reports the results back to it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from typing import Any, TypeVar

import numpy as np
import structlog

from hypergpu.common.background import Background
from hypergpu.common.errors import HyperGPUError, StorageError
from hypergpu.common.metric import finite
from hypergpu.common.tensors import Flat, Payload
from hypergpu.common.transfer_meter import Transfer
from hypergpu.coordinator.broadcast import Broadcast
from hypergpu.coordinator.core.ledger import Ledger
from hypergpu.coordinator.core.model.fragment_sendings import OutgoingModel, sendings_of
from hypergpu.coordinator.core.model.global_model import GlobalModel
from hypergpu.coordinator.core.model.sketch import Sketch
from hypergpu.coordinator.core.rehearsal import RehearsalRequest
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.coordinator.core.rounds.state import RunState
from hypergpu.coordinator.core.score import Score
from hypergpu.coordinator.core.session import EndPull, Pull, Reply, Request, Session, Update
from hypergpu.coordinator.durability import Durability, closing_record
from hypergpu.coordinator.engine_dependencies import EngineDependencies
from hypergpu.coordinator.event_broadcaster import EventBroadcaster
from hypergpu.coordinator.health import Part
from hypergpu.coordinator.outbox import Outbox
from hypergpu.coordinator.records import Records
from hypergpu.coordinator.resuming import Found
from hypergpu.coordinator.run_records import RunEvent, line_of, node_row, outcome, round_leaf, round_row, saved_counts
from hypergpu.coordinator.traces import RoundTraces
from hypergpu.coordinator.uploads import Upload, Uploads

log = structlog.get_logger()

_DEBUG_EVENTS = frozenset({"round_started", "decision", "gain_measured"})
"""Kinds of run events that are logged at debug level instead of info."""
_WARNING_EVENTS = frozenset(
    {
        "degraded",
        "checkpoint_failed",
        "checkpoint_damaged",
        "update_refused",
        "ledger_replaced",
        "model_reverted",
        "name_contested",
        "node_suspected",
    }
)
"""Kinds of run events that are logged as warnings."""
_NODES_FILE_SECONDS = 2.0
MOST_WAITING_LEAVES = 1000
"""Leaves of the ledger that wait in memory for the end of a round, which may be far."""
_FAILURES = frozenset({ev.FinishReason.FAILED, ev.FinishReason.DIVERGED})


Told = TypeVar("Told")
Decided = TypeVar("Decided")


class Engine:
    """Run as the services see it. Everything but the executors runs on one event loop.

    Args:
        run_id: Id of the run on the wire; new for every start of a coordinator.
        machine: Round machine.
        model: Global model.
        uploads: Uploads in progress.
        dependencies: Files, metrics, links and held-out data.
    """

    def __init__(
        self, run_id: str, machine: RoundMachine, model: GlobalModel, uploads: Uploads, dependencies: EngineDependencies
    ) -> None:
        self.run_id, self.machine = run_id, machine
        self.model, self.uploads = model, uploads
        uploads.deadline = lambda: machine.counts_until
        self.metrics = dependencies.metrics
        self.feed = EventBroadcaster()
        self.finished = asyncio.Event()
        """Event that is set when the run is over and its results are on disk."""
        self.failure = ""
        """Reason why the run ended with an error; empty otherwise."""
        self.stays = dependencies.stays
        """True if the coordinator keeps serving after the end of the run."""
        self.restart_asked = asyncio.Event()
        """Event that is set when a user requests a new run in place of this one."""
        self.identity = dependencies.identity
        identity, stays, leases = dependencies.identity, dependencies.stays, dependencies.leases
        self.session = Session(run_id, machine, dependencies.links, identity=identity, stays=stays, leases=leases)
        """Session that answers the requests of nodes."""
        uploads.is_connected = self.session.is_member
        self._dependencies = dependencies
        self._clock = dependencies.clock
        self._started_at = dependencies.clock() - dependencies.before.seconds
        self._waiters: dict[str, asyncio.Future[ev.WorkAssigned | ev.RunOver | None]] = {}
        self.broadcast = Broadcast(OutgoingModel(model), self._run_watched, sendings_of(machine.config))
        self._timer: asyncio.TimerHandle | None = None
        self.health = dependencies.health
        self.health.on_change = self._on_health
        self._records = Records(dependencies.run_dir, self.health)
        self._background = Background(self._fail)
        self._outbox = Outbox(self._carry_out_one)
        self._durability = Durability(
            dependencies, model, self._records, compute=self._run, record=self._record, on_disk=self._on_disk
        )
        self._nodes_written_at = -_NODES_FILE_SECONDS
        self._suspended = False
        self._finish_reason, self._metric_fault = "", ""
        self._ended_seconds: float | None = None
        self.metrics.rounds_planned.set(machine.config.rounds)

    @property
    def ledger(self) -> Ledger:
        """Ledger of the run: a leaf that is appended is sealed with the end of the round."""
        return self._dependencies.ledger

    @property
    def traces(self) -> RoundTraces:
        """Spans of the rounds."""
        return self._dependencies.traces

    @property
    def elapsed_seconds(self) -> float:
        """Seconds from the start of the run to now or to its end, without interruptions."""
        return self._clock() - self._started_at if self._ended_seconds is None else self._ended_seconds

    @property
    def now(self) -> float:
        """Present time on the machine's clock."""
        return self._clock()

    @property
    def state(self) -> RunState:
        """State of the run."""
        return self.machine.state

    @property
    def waiting_for(self) -> str:
        """Reason why no round is running; empty while one is."""
        if self.machine.finished and self.stays:
            return "the next run: `hypergpu restart` begins one"
        return self.machine.waiting_for

    @property
    def problems(self) -> list[str]:
        """Failing parts with their reasons, preceded by the failure that ended the run, if any."""
        return [*([f"run: {self.failure}"] if self.failure else []), *self.health.problems]

    def resumed(self, found: Found, forced: Sequence[str] = (), *, relearns: str = "", ledger_fault: str = "") -> None:
        """Record that the run was resumed, what of its files was unusable, and which settings changed.

        `relearns` is the reason for which the adaptation starts anew, if it does; `ledger_fault` that of the ledger.
        """
        if ledger_fault:
            self._record(found.round + 1, "ledger_replaced", f"another ledger begins: {ledger_fault}")
        for each in found.damaged:
            self._record(found.round + 1, "checkpoint_damaged", f"a part of the run cannot be used: {each}")
        for tail in found.log.tails:
            self._record(found.round + 1, "log_cut", f"cut off {tail}: of a round that nobody was told of")
        changes = f", with changes: {'; '.join(forced)}" if forced else ""
        anew = f"; the adaptation starts anew, since {relearns}" if relearns else ""
        self._record(found.round + 1, "resumed", f"resumed from {found.source}{changes}{anew}")

    def complete(self) -> None:
        """Serve the results of a run that an earlier process completed."""
        self.finished.set()
        self.feed.end()

    def _record(self, round_number: int, kind: str, text: str) -> None:
        self._publish(RunEvent(self.elapsed_seconds, round_number, kind, text, {}))

    # ------------------------------------------------------------ for servicers

    def dispatch(self, event: ev.Event) -> list[ev.Effect]:
        """Pass an event to the machine and carry out its effects.

        Raises:
            HyperGPUError: as `RoundMachine.handle`.
        """
        effects = self._decide(event, self.machine.handle)
        self._put(effects)
        return effects

    def ask(self, request: Request[Reply]) -> Reply:
        """Answer a request of a node: carry out its effects and return the reply.

        Raises:
            HyperGPUError: the reply is an error, or the request is refused; see `Session.handle`.
        """
        reply, effects = self._decide(request, self.session.handle)
        self._put(effects)
        if isinstance(reply, HyperGPUError):
            raise reply
        return reply

    def _put(self, effects: Sequence[ev.Effect]) -> None:
        """Record the decisions among the effects, and carry the effects out as soon as they may be told."""
        self.ledger.note(effects, self.machine.round)
        self._outbox.put(effects)

    def _decide(self, what: Told, decide: Callable[[Told, float], Decided]) -> Decided:
        try:
            return decide(what, self._clock())
        except HyperGPUError:
            raise
        except Exception as error:  # the machine's state may be inconsistent: the run cannot continue
            self._fail(f"the decision on {type(what).__name__}", error)
            raise

    def _carry_out_one(self, effect: ev.Effect) -> None:
        """Carry out an effect; its failure does not prevent the others."""
        try:
            self.metrics.observe(effect, self.machine)
            self.traces.observe(effect)
            self._carry_out(effect)
        except Exception as error:
            self._fail(f"the effect {type(effect).__name__}", error)

    async def told(self) -> None:
        """Wait until everything that was decided may be told."""
        await self._outbox.opened()

    async def next_order(self, request: Pull, wait_seconds: float) -> ev.WorkAssigned | ev.RunOver | None:
        """Wait for work of a node and return it, or None after the timeout.

        Raises:
            StaleWork: the node is no member of this run.
        """
        node = request.node
        _, effects = self._decide(request, self.session.handle)
        waiter: asyncio.Future[ev.WorkAssigned | ev.RunOver | None] = asyncio.get_running_loop().create_future()
        former = self._waiters.get(node)
        if former is not None and not former.done():
            former.set_result(None)
        self._waiters[node] = waiter
        try:
            self._put(effects)
            await asyncio.wait((waiter,), timeout=wait_seconds)
            return waiter.result() if waiter.done() else None
        finally:
            if self._waiters.get(node) is waiter:
                del self._waiters[node]
                if not waiter.done():
                    self.ask(EndPull(node))

    async def measure(self, payload: Payload, codec: str, round_number: int) -> tuple[float, Sketch | None]:
        """Measure an update on a thread: its Euclidean norm, which is not finite if the update is not, and its sketch.

        Raises:
            ProtocolError: the payload is not in this codec.
        """
        return await asyncio.get_running_loop().run_in_executor(None, self.model.measure, payload, codec, round_number)

    def accept_update(self, event: ev.UpdateArrived, upload: Upload) -> ev.UpdateReply:
        """Answer a complete update. Its buffer returns to `uploads` when it is no longer needed.

        Raises:
            StaleWork: no such work was assigned.
            NonFiniteUpdate: it holds NaN or infinity.
        """
        try:
            reply, effects = self._decide(Update(event), self.session.handle)
        except Exception:
            self.uploads.recycle(upload)
            raise
        if isinstance(reply, ev.UpdateReply):
            self.ledger.receipt(event, reply)
            self.traces.counted(reply)
        if isinstance(reply, ev.UpdateReply) and reply.status is ev.UpdateStatus.ACCEPTED and reply.weight:
            # Queue this before the effects: a step that they start must run after it on the compute thread.
            update = upload.payload, event.codec, reply.weight, reply.late, event.node
            done = self._run_watched("adding an update", self.model.add, *update)
            if reply.measured:
                done = self._run(self._dependencies.gain, event, upload.payload)
                done.add_done_callback(self._tell_gain)
            done.add_done_callback(lambda _: self.uploads.recycle(upload))
        else:
            self.uploads.recycle(upload)
        self._put(effects)
        if isinstance(reply, HyperGPUError):
            raise reply
        return reply

    def _tell_gain(self, measured: "asyncio.Future[ev.GainMeasured | None]") -> None:
        error = None if measured.cancelled() else measured.exception()
        if error is not None:  # what is only measured must not end a run
            log.warning("the gain of an update could not be measured", run=self.run_id, exc_info=error)
        elif not measured.cancelled() and (found := measured.result()) is not None:
            losses = {"loss_before": found.loss_before, "loss_after": found.loss_after}
            self.ledger.append("gain", found.round, {"node": found.node, **losses})
            self.dispatch(found)

    def communication(self, node: str, latency_ms: float, success: bool) -> None:
        """Record one finished RPC of a node."""
        if self.machine.members.get(node) is not None:
            self._dependencies.links.communication(node, latency_ms, success)

    def begin_download(self, node: str) -> None:
        """Record that the parameters of a node are being sent."""
        self._dependencies.links.begin_download(node, self._clock())

    def sent(self, node: str, nbytes: int) -> None:
        """Count bytes of parameters that were sent to a node."""
        self.metrics.sent.inc(nbytes)
        self._dependencies.links.sent(node, nbytes)

    def received(self, node: str, nbytes: int) -> None:
        """Count bytes of an update that were received from a node, a sign of life beside its heartbeats."""
        self.session.seen(node, self.now)  # heartbeats may queue behind the upload
        self.metrics.received.inc(nbytes)
        self._dependencies.links.traffic.received(node, nbytes)

    def downloaded(self, node: str, transfer: Transfer | None) -> None:
        """Record the download that a node reports, if any."""
        if transfer is not None and self.machine.members.get(node) is not None:
            self._dependencies.links.downloaded(node, transfer, self._clock())

    def uploaded(self, node: str, transfer: Transfer | None) -> None:
        """Record an upload of a node, as far as it was measured."""
        if transfer is not None and self.machine.members.get(node) is not None:
            self._dependencies.links.uploaded(node, transfer)

    def suspend(self) -> None:
        """Start no more rounds; `close` saves the run so that it can be resumed with --resume.

        Nodes are not informed; they dial until the coordinator is back.
        """
        self.dispatch(ev.Suspend())
        self._suspended = True

    async def retry(self) -> None:
        """Retry failed writes; called every few seconds."""
        await self._records.retry()
        self.ledger.saved(self._records.saved_leaves)
        if self.ledger.waiting > MOST_WAITING_LEAVES:
            self._seal()
        if self._durability.unsaved:
            await self._save_results()

    async def close(self) -> None:
        """Finish pending work and complete the files; `failure` describes what is missing from them."""
        if self._timer is not None:
            self._timer.cancel()
        self._dependencies.rehearsals.stop()
        await self._background.settle()
        if self._suspended and not self.finished.is_set():  # not sooner: the running round may have ended meanwhile
            await self._save_results()
        await self.retry()
        await self._durability.close()
        self._dependencies.compute.shutdown(wait=True)
        await self._write_results()
        await self._records.close()
        if self._durability.unsaved:
            self.failure = self.failure or f"the run's result is not on the disk: {'; '.join(self._durability.unsaved)}"
        if self._records.missing:
            self.failure = self.failure or f"the run's records are not complete: {self._records.missing}"
        self._dependencies.run_dir.close()

    # ------------------------------------------------------------ effects

    def _carry_out(self, effect: ev.Effect) -> None:  # noqa: PLR0912  (one case per effect)
        match effect:
            case ev.RunEvent():
                self._publish(RunEvent(self.elapsed_seconds, effect.round, effect.kind, effect.text, effect.fields))
            case ev.WorkAssigned(node=node) | ev.RunOver(node=node):
                waiter = self._waiters.pop(node, None)
                if waiter is not None and not waiter.done():
                    waiter.set_result(effect)
            case ev.StartRound():
                self.uploads.begin_round(effect.round, self.machine.is_late)
                self._run_watched("beginning the round", self.model.begin_round, effect.round, effect.nodes)
                self.broadcast.begin_round(effect.round)
            case ev.CloseRound():
                self._begin_end_of_round(effect)
            case ev.AbandonRound():
                self.broadcast.end_round()
                self._run_watched("discarding updates", self.model.discard)
            case ev.KeepModel():
                self._run_watched("keeping the model", self.model.keep)
            case ev.RevertModel():
                self.broadcast.revert()
                self._run_watched("returning to an earlier model", self.model.revert)
            case ev.Rehearse(request=request):
                self._background.spawn("a rehearsal", self._rehearse(request))
            case ev.SetTimer(at=at):
                if self._timer is not None:
                    self._timer.cancel()
                delay = max(0.0, at - self._clock())
                self._timer = asyncio.get_running_loop().call_later(delay, self._tick)
            case ev.Finish(reason=reason):
                self._finish_reason = str(reason)
                if reason in _FAILURES:
                    self.failure = effect.detail
                self._ended_seconds = self.elapsed_seconds
                self._background.spawn("ending the run", self._end_run())
                for node in self.machine.members.connected:
                    self._dependencies.links.freeze(node)
            case _:
                pass

    def _begin_end_of_round(self, closed: ev.CloseRound) -> None:
        self._durability.closed = self._shards_and_counts()
        self.broadcast.end_round()
        self.broadcast.keep(self.machine.checked_parameters)
        self._background.spawn(f"ending round {closed.round}", self._end_round(closed))

    async def _end_round(self, closed: ev.CloseRound) -> None:
        """Step, evaluate and save if due, and report the result to the machine."""
        stepped = False
        try:
            with self.metrics.step_seconds.time(), self.traces.part("step"):
                await self._durability.begin_step(closed.round)
                good = await self._run(self.model.step, *closed.step, closed.spoiled_by)
            self._durability.write_mean()
            stepped, weights = True, self._digest(self.model.values)
            if not good:
                text = f"skipped the step of round {closed.round}: {self.model.step_fault}"
                self._publish(RunEvent(self.elapsed_seconds, closed.round, "step_skipped", text, {}))
            loss = metric = None
            others: Mapping[str, float | None] = {}
            if closed.evaluate:
                with self.metrics.evaluation_seconds.time(), self.traces.part("evaluate"):
                    found = await self._run(self._dependencies.evaluate, self.model.values)
                loss, metric, others = found.loss, found.metric, found.others
                self._report_metric_fault(found.fault, closed.round)
                score = Score(closed.round, loss, metric, self.machine.metric)
                await self._run(self._dependencies.files.evaluated, score)
        except Exception as error:  # the user's model or evaluation: the run can't go on, its files must
            log.exception("the round could not be ended", round=closed.round)
            detail = f"round {closed.round} could not be evaluated: {type(error).__name__}: {error}"
            self.dispatch(ev.EvaluationFailed(closed.round, detail, stepped))
            return
        figures = self.model.update_norms, others, self.model.step_sketch
        evaluated = ev.Evaluated(closed.round, loss, metric, *figures)
        await self._tell_round(closed, evaluated, await weights)
        if self._clock() - self._nodes_written_at >= _NODES_FILE_SECONDS:
            self._nodes_written_at = self._clock()
            await self._write_results()

    async def _tell_round(self, closed: ev.CloseRound, evaluated: ev.Evaluated, weights: str) -> None:
        """Decide what follows on a round, put the round on the disk, and only then tell anybody of it."""
        traffic = self._dependencies.links.traffic.take()
        found, others, spec = (evaluated.loss, evaluated.metric), evaluated.others, self.machine.metric
        row = round_row(closed, found[0], spec, found[1], self.elapsed_seconds, traffic=traffic, others=others)
        effects = self._decide(evaluated, self.machine.handle)
        line = line_of(row)
        self.ledger.append("round", closed.round, round_leaf(row, line, spec.name, weights))
        self.ledger.note(effects, closed.round)
        self._seal()
        reached, state = self.machine.score, self._state(effects)
        record = partial(
            closing_record,
            closed,
            effects,
            self.model.values,
            state={**self._dependencies.files.identity, **state},
            row=row,
            score=None if found[0] is None else Score(closed.round, found[0], found[1], spec),
            evaluated=reached is not None,
        )
        with self._outbox.held():
            self._outbox.put(effects)
            await self._durability.commit(closed, state, lambda has_mean: record(has_mean=has_mean))
            self._records.round(line)
            self.traces.round_told()
        self._durability.told()
        self._background.spawn("syncing the records", self._records.sync())
        self.metrics.evaluated(self.machine.loss, self.machine.metric_value, others)
        # The snapshot is queued now, before another step: the state is of the same round.
        writing = self._durability.checkpoint_if_due(closed.round, state, reached)
        if writing is not None:
            self._background.spawn("writing a checkpoint", writing)

    def _seal(self) -> None:
        """Let what was decided enter the ledger; nobody sees it there before it is on the disk."""
        self._records.leaves(self.ledger.seal())

    def _on_disk(self, state: Mapping[str, Any]) -> None:
        """Publish the ledger of a state that is on the disk."""
        row = self.ledger.publish(state["ledger"]["size"])
        if row is not None:
            self._records.ledger_checkpoint(row)

    def _report_metric_fault(self, fault: str, round_number: int) -> None:
        """Record once per cause that the metric could not be computed. Training continues with the loss."""
        if fault and fault != self._metric_fault:
            text = f"{fault}; it is undefined for round {round_number}, and training goes on"
            self._publish(RunEvent(self.elapsed_seconds, round_number, "metric_failed", text, {}))
        self._metric_fault = fault

    async def _rehearse(self, request: RehearsalRequest) -> None:
        """Carry a rehearsal out beside the run, and report its result to the machine. Its failure changes nothing."""
        await self._write_results()  # it reads the files
        result = await self._dependencies.rehearsals.run(request)
        self.dispatch(ev.Rehearsed(result))

    async def _end_run(self) -> None:
        self._dependencies.rehearsals.stop()
        try:
            await self._save_results()
            await self._write_results()
        finally:  # release everything that waits for the end of the run
            self.finished.set()
            self.feed.end()

    async def save_base(self) -> None:
        """Write a checkpoint of the state that the run resumes from.

        Raises:
            StorageError: it cannot be written.
        """
        done = self.machine.round - 1
        if not await self._durability.checkpoint(done, self._state(), self.machine.score):
            raise StorageError(f"cannot write a checkpoint of round {done}, from which the run would go on")

    async def save_results(self) -> None:
        """Write the results of a complete run.

        Raises:
            StorageError: they cannot be written.
        """
        await self._save_results()
        await self._write_results()
        if self._durability.unsaved:
            raise StorageError(f"the run's result is not on the disk: {'; '.join(self._durability.unsaved)}")

    async def _save_results(self) -> None:
        """Write the last checkpoint and the model, and record what could not be written."""
        self._seal()
        await self._durability.finish(self.machine.round - 1, self._state(), self.machine.score)

    def _state(self, effects: Sequence[ev.Effect] = ()) -> dict[str, Any]:
        """Return what a later process needs to go on after the last closed round; `effects` are those of its end."""
        machine = self.machine
        finished = next((str(each.reason) for each in effects if isinstance(each, ev.Finish)), self._finish_reason)
        closed = self._durability.closed or self._shards_and_counts()
        rule = machine.adaptation.overrides.of
        self.ledger.saved(self._records.saved_leaves)
        return {
            "run_id": self.run_id,
            "configuration": machine.config.model_dump(mode="json"),
            "shards": closed["shards"],
            "nodes": [
                {
                    "node_id": node,
                    "state": self.state_of(node),
                    "rule": str(rule(node)),
                    **closed["nodes"].get(node, {}),
                }
                for node in (member.node_id for member in machine.members)
            ],
            "elapsed_seconds": self.elapsed_seconds,
            "loss": finite(machine.loss),
            "metric": machine.metric_value,
            "kept": machine.kept,
            "improvement": machine.improvement,
            "suspicions": machine.suspicions.snapshot(),
            "finished": finished or None,
            "adaptation": self._dependencies.adaptation_state(),
            "ledger": self.ledger.state(),
        }

    def _shards_and_counts(self) -> dict[str, Any]:
        """Return the shards and the counts of the nodes, which are saved as they were when a round closed."""
        return {"shards": self.machine.shards.snapshot(), "nodes": saved_counts(self.machine.members)}

    # ------------------------------------------------------------ results

    def node_rows(self) -> list[dict[str, Any]]:
        """Return the rows of nodes.json, one per node."""
        override, used = self.machine.adaptation.overrides.of, self.machine.shards.samples_used
        links, useful = self._dependencies.links.figures(), self.machine.members.usefulness()
        return [
            node_row(
                member,
                self.state_of(node),
                override(node),
                links.get(node),
                samples_used=used(node),
                usefulness=useful.get(node),
            )
            for member in self.machine.members
            for node in (member.node_id,)
        ]

    def state_of(self, node: str) -> str:
        """Return the state of a node: preparing, idle, working, straggling, lost, left or done."""
        member = self.machine.members.require(node)
        if self.machine.finished and (member.completed or node in self.machine.members.connected):
            return "done"
        if node not in self.machine.members.connected:
            return str(member.connection)
        if not member.ready:
            return "preparing"
        if node in self.machine.members.stragglers:
            return "straggling"
        return "working" if self.machine.is_working(node) else "idle"

    def summary(self) -> dict[str, Any]:
        """Return the summary of the run so far."""
        before = self._dependencies.before.traffic
        return {
            "run_id": self.run_id,
            "seed": self.machine.config.seed,
            **outcome(self.machine, self._finish_reason, self.elapsed_seconds),
            **self._dependencies.links.summary(),
            **{name: before.get(name, 0) + count for name, count in self.metrics.traffic().items()},
            "nodes": {row["node_id"]: row for row in self.node_rows()},
        }

    async def _write_results(self) -> None:
        await self._records.results(self.node_rows(), self.summary())

    def _publish(self, event: RunEvent) -> None:
        self._records.event(event.row())
        node = {"node": event.fields["node"]} if "node" in event.fields else {}
        say = log.debug if event.kind in _DEBUG_EVENTS else log.warning if event.kind in _WARNING_EVENTS else log.info
        say(event.text, kind=event.kind, run=self.run_id, round=event.round, **node)
        self.feed.publish(event)

    # ------------------------------------------------------------ running things

    def _run(self, function: Callable[..., Any], *arguments: Any) -> "asyncio.Future[Any]":
        """Queue a function on the compute thread and return its future."""
        return asyncio.get_running_loop().run_in_executor(self._dependencies.compute, partial(function, *arguments))

    def _digest(self, values: Flat) -> "asyncio.Future[str]":
        """Return the SHA-256 of parameters, computed beside what else is done with them."""
        return asyncio.get_running_loop().run_in_executor(None, lambda: sha256(values.view(np.uint8).data).hexdigest())

    def _run_watched(self, what: str, function: Callable[..., Any], *arguments: Any) -> "asyncio.Future[Any]":
        """Queue a function on the compute thread; its failure ends the run."""
        future = self._run(function, *arguments)
        self._background.watch(what, future)
        return future

    def _tick(self) -> None:
        """Notify the machine that its timer expired. A failure ends the run, since no caller would see it."""
        try:
            self.dispatch(ev.Tick())
        except Exception as error:
            self._fail("the timer", error)

    # ------------------------------------------------------------ failures

    def _fail(self, what: str, error: BaseException) -> None:
        """End the run because of an unexpected error."""
        log.error(f"{what} failed", run=self.run_id, exc_info=error)
        if self.failure:
            return
        self.failure = f"{what} failed: {type(error).__name__}: {error}"
        try:
            self.dispatch(ev.Fail(self.failure))
        except Exception:
            log.exception("the run could not be ended in order", run=self.run_id)
        if not self.machine.finished:
            self.finished.set()
            self.feed.end()

    def _on_health(self, part: Part, reason: str) -> None:
        """Record that a part failed or recovered."""
        text = f"degraded: {part}: {reason}" if reason else f"recovered: {part}"
        self._record(self.machine.round, "degraded" if reason else "recovered", text)
