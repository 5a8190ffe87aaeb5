"""Engine of a run: carries out the decisions of the round machine and reports the results back to it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog

from hypergpu.common.background import Background
from hypergpu.common.errors import HyperGPUError, NonFiniteUpdate, StorageError
from hypergpu.common.metric import finite
from hypergpu.common.tensors import Payload
from hypergpu.common.transfer_meter import Transfer
from hypergpu.coordinator.broadcast import Broadcast
from hypergpu.coordinator.core.model.fragment_sendings import OutgoingModel, sendings_of
from hypergpu.coordinator.core.model.global_model import GlobalModel
from hypergpu.coordinator.core.rehearsal import RehearsalRequest
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.coordinator.core.rounds.state import RunState
from hypergpu.coordinator.core.score import Score
from hypergpu.coordinator.core.session import EndPull, Pull, Reply, Request, Session, Update
from hypergpu.coordinator.engine_dependencies import EngineDependencies
from hypergpu.coordinator.event_broadcaster import EventBroadcaster
from hypergpu.coordinator.health import Part
from hypergpu.coordinator.records import Records
from hypergpu.coordinator.run_records import RunEvent, node_row, outcome, round_row
from hypergpu.coordinator.uploads import Upload, Uploads

log = structlog.get_logger()

_DEBUG_EVENTS = frozenset({"round_started", "decision"})
"""Kinds of run events that are logged at debug level instead of info."""
_WARNING_EVENTS = frozenset(
    {"degraded", "checkpoint_failed", "checkpoint_damaged", "update_refused", "model_reverted", "name_contested"}
)
"""Kinds of run events that are logged as warnings."""
_NODES_FILE_SECONDS = 2.0
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
        self.model = model
        self.uploads = uploads
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
        self._is_checkpoint_overdue = False
        self._results_unsaved: Sequence[str] = ()
        self._nodes_written_at = -_NODES_FILE_SECONDS
        self._suspended = False
        self._finish_reason, self._metric_fault = "", ""
        self._ended_seconds: float | None = None
        self.metrics.rounds_planned.set(machine.config.rounds)

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

    def resumed(
        self, after_round: int, damaged: Sequence[str] = (), forced: Sequence[str] = (), *, relearns: str = ""
    ) -> None:
        """Record that the run was resumed, which checkpoints were unusable, and which settings changed.

        `relearns` is the reason for which the adaptation starts anew, if it does.
        """
        for each in damaged:
            self._record(after_round + 1, "checkpoint_damaged", f"a newer checkpoint cannot be used: {each}")
        changes = f", with changes: {'; '.join(forced)}" if forced else ""
        anew = f"; the adaptation starts anew, since {relearns}" if relearns else ""
        self._record(after_round + 1, "resumed", f"resumed from the checkpoint of round {after_round}{changes}{anew}")

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
        self._carry_out_all(effects)
        return effects

    def ask(self, request: Request[Reply]) -> Reply:
        """Answer a request of a node: carry out its effects and return the reply.

        Raises:
            HyperGPUError: the reply is an error, or the request is refused; see `Session.handle`.
        """
        reply, effects = self._decide(request, self.session.handle)
        self._carry_out_all(effects)
        if isinstance(reply, HyperGPUError):
            raise reply
        return reply

    def _decide(self, what: Told, decide: Callable[[Told, float], Decided]) -> Decided:
        try:
            return decide(what, self._clock())
        except HyperGPUError:
            raise
        except Exception as error:  # the machine's state may be inconsistent: the run cannot continue
            self._fail(f"the decision on {type(what).__name__}", error)
            raise

    def _carry_out_all(self, effects: Sequence[ev.Effect]) -> None:
        """Carry out all effects; the failure of one does not prevent the others."""
        for effect in effects:
            try:
                self.metrics.observe(effect, self.machine)
                self._carry_out(effect)
            except Exception as error:
                self._fail(f"the effect {type(effect).__name__}", error)

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
            self._carry_out_all(effects)
            await asyncio.wait((waiter,), timeout=wait_seconds)
            return waiter.result() if waiter.done() else None
        finally:
            if self._waiters.get(node) is waiter:
                del self._waiters[node]
                if not waiter.done():
                    self.ask(EndPull(node))

    async def norm(self, payload: Payload, codec: str, round_number: int) -> float:
        """Compute the Euclidean norm of an update of a round on a thread; it is not finite if the update is not.

        Raises:
            ProtocolError: the payload is not in this codec.
        """
        return await asyncio.get_running_loop().run_in_executor(None, self.model.norm, payload, codec, round_number)

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
        if isinstance(reply, ev.UpdateReply) and reply.status is ev.UpdateStatus.ACCEPTED and reply.weight:
            # Queue this before the effects: a step that they start must run after it on the compute thread.
            update = upload.payload, event.codec, reply.weight, reply.late, event.node
            added = self._run_watched("adding an update", self.model.add, *update)
            added.add_done_callback(lambda _: self.uploads.recycle(upload))
        else:
            self.uploads.recycle(upload)
        self._carry_out_all(effects)
        if isinstance(reply, HyperGPUError):
            raise reply
        return reply

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
        if self._results_unsaved:
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
        self._dependencies.compute.shutdown(wait=True)
        await self._write_results()
        await self._records.close()
        if self._results_unsaved:
            self.failure = self.failure or f"the run's result is not on the disk: {'; '.join(self._results_unsaved)}"
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
                self.broadcast.end_round()
                self._background.spawn(f"ending round {effect.round}", self._end_round(effect))
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

    async def _end_round(self, closed: ev.CloseRound) -> None:
        """Step, evaluate and save if due, and report the result to the machine."""
        stepped = False
        try:
            with self.metrics.step_seconds.time():
                good = await self._run(self.model.step, *closed.step)
            stepped = True
            if not good:
                text = f"skipped the step of round {closed.round}: {self.model.step_fault}"
                self._publish(RunEvent(self.elapsed_seconds, closed.round, "step_skipped", text, {}))
            loss = metric = None
            others: Mapping[str, float | None] = {}
            if closed.evaluate:
                with self.metrics.evaluation_seconds.time():
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
        traffic = self._dependencies.links.traffic.take()
        row = round_row(closed, loss, self.machine.metric, metric, self.elapsed_seconds, traffic=traffic, others=others)
        self._records.round(row)
        self._background.spawn("syncing the records", self._records.sync())
        self.dispatch(ev.Evaluated(closed.round, loss, metric, self.model.update_norms, others))
        self.metrics.evaluated(self.machine.loss, self.machine.metric_value, others)
        # No await since the decision, so that the label matches the values saved under it.
        if closed.round % self.machine.config.checkpoint_every == 0 or self._is_checkpoint_overdue:
            await self._checkpoint(closed.round)
        if self._clock() - self._nodes_written_at >= _NODES_FILE_SECONDS:
            self._nodes_written_at = self._clock()
            await self._write_results()

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

    async def _save_results(self) -> None:
        """Write the last checkpoint and the model, and record what could not be written."""
        done, score = self.machine.round - 1, self.machine.score
        unsaved = []
        if not await self._checkpoint(done):
            unsaved.append("its last checkpoint could not be written")
        if not await self._save(Part.MODEL, "the model", done, self._dependencies.files.finish, done, score):
            unsaved.append("its model could not be written")
        self._results_unsaved = unsaved

    async def _checkpoint(self, round_number: int) -> bool:
        """Write a checkpoint of the rounds so far; return whether --resume will find it."""
        if round_number < 1:
            return True
        machine = self.machine
        state = {
            "run_id": self.run_id,
            "configuration": machine.config.model_dump(mode="json"),
            "shards": machine.shards.snapshot(),
            "nodes": self.node_rows(),
            "elapsed_seconds": self.elapsed_seconds,
            "loss": finite(machine.loss),
            "metric": machine.metric_value,
            "kept": machine.kept,
            "improvement": machine.improvement,
            "finished": self._finish_reason or None,
            "adaptation": self._dependencies.adaptation_state(),
        }
        save = self._records.flush_before(
            self._dependencies.files.checkpoint
        )  # a resumed run needs a record of each round
        saved = await self._save(
            Part.CHECKPOINT, "the checkpoint", round_number, save, round_number, state, machine.score
        )
        self._is_checkpoint_overdue = not saved
        return saved

    async def _save(self, part: Part, what: str, round_number: int, save: Callable[..., Path], *arguments: Any) -> bool:
        """Save on the compute thread. A failure is recorded, and the run continues."""
        try:
            await self._run(save, *arguments)
        except Exception as error:
            if not isinstance(error, StorageError | NonFiniteUpdate):
                log.exception("a model cannot be saved", round=round_number)
            reason = str(error) or type(error).__name__
            self._record(round_number, "checkpoint_failed", f"{what} of round {round_number} was not written: {reason}")
            self.health.report(part, reason)
            return False
        self.health.report(part, "")
        return True

    # ------------------------------------------------------------ results

    def node_rows(self) -> list[dict[str, Any]]:
        """Return the rows of nodes.json, one per node."""
        override, used = self.machine.adaptation.overrides.of, self.machine.shards.samples_used
        rates = self._dependencies.links.rates()
        return [
            node_row(member, self.state_of(node), override(node), rates.get(node), samples_used=used(node))
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
