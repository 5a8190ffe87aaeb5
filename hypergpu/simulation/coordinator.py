"""The coordinator in virtual time: a driver of the session that `coordinator/engine.py` drives in real time."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

from hypergpu.common.errors import HyperGPUError, NonFiniteUpdate, StaleWork
from hypergpu.common.tensors import Payload
from hypergpu.common.transfer_meter import Transfer
from hypergpu.coordinator.core.decisions import Decision
from hypergpu.coordinator.core.model.outgoing import Sending
from hypergpu.coordinator.core.rehearsal import RehearsalRequest, RehearsalResult
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.adaptation import Adaptation, LateWork, RoundJudgement, RoundPlan, RoundReport
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.coordinator.core.rounds.traffic import Traffic
from hypergpu.coordinator.core.session import (
    AskProgress,
    Directive,
    EndPull,
    Heartbeat,
    Leave,
    OfferUpdate,
    Pull,
    Register,
    RejectUpdate,
    Reply,
    Request,
    Return,
    Session,
    Update,
)
from hypergpu.coordinator.link_telemetry import LinkTelemetry
from hypergpu.node.core import events as life
from hypergpu.simulation.node import SimulatedNode
from hypergpu.simulation.rpc import SimulatedRpc
from hypergpu.simulation.training_backend import TrainingBackend
from hypergpu.simulation.virtual_time import VirtualTime

_ACCEPTED: Final = ev.UpdateStatus.ACCEPTED  # looking an enum's member up is slow
_TICK: Final = ev.Tick()
_CONTINUE: Final = Directive.CONTINUE


class Recorder(Protocol):
    """Keeps what happens in a run."""

    def event(self, record: ev.RunEvent, now: float) -> None:
        """Keep an event."""
        ...

    def round_closed(
        self,
        closed: ev.CloseRound,
        loss: float | None,
        metric: float | None,
        now: float,
        *,
        traffic: Mapping[str, Traffic],
        others: Mapping[str, float | None],
    ) -> None:
        """Keep a round and its evaluation, with the bytes on each link since the round before."""
        ...

    def finished(self, finish: ev.Finish, now: float) -> None:
        """Note that the run is over."""
        ...


class SimulatedCoordinator:
    """Answers the requests of simulated nodes by the session, and carries its effects out.

    Args:
        time: the clock and the event queue.
        machine: the rounds.
        learning: turns work into updates and updates into a model.
        links: receives the measurements of the nodes' links.
        run_id: of the run.
        recorder: keeps the events and rounds.
        evaluation_seconds: duration of the step and the evaluation between two rounds.
        scrape_seconds: period at which every node's own count of its RPCs is read.
        round_begins: called with the number of each round, for events that are due by round.
        rehearse: carries a rehearsal out; its result arrives after the time that it takes. Without it, none is.
    """

    def __init__(
        self,
        time: VirtualTime,
        machine: RoundMachine,
        learning: TrainingBackend,
        links: LinkTelemetry,
        *,
        run_id: str,
        recorder: Recorder,
        evaluation_seconds: float,
        scrape_seconds: float,
        round_begins: Callable[[int], None],
        rehearse: Callable[[RehearsalRequest], RehearsalResult] | None = None,
    ) -> None:
        self._run_id = run_id
        self._time, self._machine, self._session = time, machine, Session(run_id, machine, links)
        self._learning, self._links, self._recorder = learning, links, recorder
        self._evaluation_seconds, self._scrape_seconds = evaluation_seconds, scrape_seconds
        self._nodes: dict[str, SimulatedNode] = {}
        self._waiting: dict[str, SimulatedRpc] = {}
        self._held: dict[str, tuple[int, int, int]] = {}
        """Round, attempt and next offset of the last upload of each node that broke."""
        self._timer = 0
        self._metric_fault = ""
        self._effects: dict[type, Callable[[Any], None]] = {
            ev.StartRound: partial(self._start_round, round_begins),
            ev.WorkAssigned: self._assign,
            ev.UpdateReply: self._count_update,  # `push` returns it to the node
            ev.CloseRound: self._close_round,
            ev.AbandonRound: self._abandon_round,
            ev.KeepModel: lambda _: learning.keep(),
            ev.RevertModel: lambda _: learning.revert(),
            ev.SetTimer: self._set_timer,
            ev.RunOver: self._run_over,
            ev.Finish: self._finish,
            ev.RunEvent: lambda record: recorder.event(record, time.now),
            ev.Rehearse: partial(self._rehearse, rehearse),
        }
        time.at(scrape_seconds, self._scrape)

    def dispatch(self, event: ev.Event) -> None:
        """Let the machine handle an event, and carry its effects out."""
        self._carry_out(self._machine.handle(event, self._time.clock.now))

    def link_figures(self) -> Mapping[str, Mapping[str, float | str]]:
        """Return the known figures of each link, by node."""
        return self._links.figures()

    def flush_heartbeats(self) -> None:
        """Receive every heartbeat that was due until now, and the parts of uploads that they wait behind."""
        for node in self._nodes.values():
            node.heartbeats.flush()
            if node.connection.is_uploading:
                self._session.seen(node.node_id, self._time.now)

    # ------------------------------------------------------------ requests (see `node.CoordinatorApi`)

    def _ask(self, request: Request[Reply]) -> Reply | HyperGPUError:
        answer = self._session.handle(request, self._time.clock.now)
        self._carry_out(answer[1])
        return answer[0]

    def register(self, node: SimulatedNode, rpc: SimulatedRpc) -> None:
        """Handle Register."""
        self._nodes[node.node_id] = node
        if node.incarnation > 1:
            self._learning.process_started(node.node_id)
        try:
            report = self._learning.data_report(node.node_id)
            self._ask(
                Register(
                    node.node_id,
                    str(node.incarnation),
                    node.largest_batch,
                    node.info,
                    None,
                    node.terms,
                    report,
                    step_times=node.step_times,
                )
            )
        except HyperGPUError as error:
            node.reject(rpc, error)
        else:
            node.send_registered(rpc)

    def heartbeat(self, node: SimulatedNode, at: float, rtt_ms: float, loaded: bool) -> Directive:
        """Handle Heartbeat."""
        report: dict[str, Any] = {"network": {"events": node.attempts, "failures": node.failures}}
        step_seconds = node.step_seconds
        if step_seconds:
            report["performance"] = {"step_time": step_seconds}
        request = Heartbeat(node.node_id, self._run_id, node.state, rtt_ms, loaded, report)
        answer = self._session.handle(request, at)
        return answer[0] if isinstance(answer[0], Directive) else _CONTINUE

    def is_straggler(self, node: SimulatedNode) -> bool:
        """Return whether the node works on a round that is over."""
        return node.node_id in self._session.stragglers

    def pull(self, node: SimulatedNode, rpc: SimulatedRpc) -> None:
        """Handle PullWork."""
        try:
            _, effects = self._session.handle(Pull(node.node_id, self._run_id), self._time.clock.now)
        except StaleWork as error:
            node.reject(rpc, error)
            return
        self._waiting[node.node_id] = rpc
        self._carry_out(effects)

    def end_pull(self, node: SimulatedNode, rpc: SimulatedRpc) -> bool:
        """Handle the end of a wait for work; return whether there was one."""
        if self._waiting.get(node.node_id) is not rpc:
            return False
        del self._waiting[node.node_id]
        self._ask(EndPull(node.node_id))
        return True

    def received(self, node: SimulatedNode, sending: Sending, payload: Payload | None) -> None:
        """Let a node hold what it has received."""
        self._learning.received(node.node_id, sending, payload)

    def begun(self, work: ev.WorkAssigned) -> None:
        """Note that a node begins its work while its fragments travel."""
        self._learning.begun(work)

    def computed(self, work: ev.WorkAssigned) -> None:
        """Note that a node has done its work."""
        self._learning.computed(work)

    def sent_ahead(self, node: SimulatedNode, work: ev.WorkAssigned, nbytes: int) -> None:
        """Keep an update that came whole, ahead of its figures."""
        self._links.traffic.received(node.node_id, nbytes)
        self._held[node.node_id] = (work.round, work.attempt, nbytes)

    def is_over(self, work: ev.WorkAssigned) -> bool:
        """Return whether no update of this work is needed."""
        return self._machine.wanted_unit(work.node, work.round) is None

    def offer(self, work: ev.WorkAssigned, at: float) -> None:
        """Handle the header of PushUpdate, of an update that is needed. It has no effects, so it is handled early."""
        self._session.handle(OfferUpdate(self._run_id, _update_without_figures(work, 0.0)), at)

    def progress(self, work: ev.WorkAssigned) -> life.ProgressKnown:
        """Handle GetUploadProgress."""
        accepted = self._ask(AskProgress(work.node, self._run_id, work.round)) is True
        round_number, attempt, offset = self._held.get(work.node, (0, 0, 0))
        is_same = (round_number, attempt) == (work.round, work.attempt)
        return life.ProgressKnown(accepted, offset if is_same else 0)

    def push_broke(self, node: SimulatedNode, work: ev.WorkAssigned, next_offset: int) -> None:
        """Keep what arrived of an update whose stream broke."""
        self._links.traffic.received(node.node_id, next_offset - self.progress(work).next_offset)
        self._held[node.node_id] = (work.round, work.attempt, next_offset)

    def push(
        self,
        node: SimulatedNode,
        work: ev.WorkAssigned,
        compute_seconds: float,
        rpc: SimulatedRpc,
        *,
        nbytes: int,
    ) -> None:
        """Handle PushUpdate; `nbytes` is 0 if the round was over before anything was sent but the header.

        The work is done now, and only if its update is needed: the parameters of its round have not changed.
        """
        reply: ev.UpdateReply | HyperGPUError | None
        self._links.traffic.received(node.node_id, nbytes)
        if self.is_over(work):
            reply = self._push_late(_update_without_figures(work, compute_seconds), is_whole=nbytes > 0)
        else:
            try:
                update = self._learning.train(work, compute_seconds)
            except NonFiniteUpdate as error:
                self._ask(RejectUpdate(_update_without_figures(work, compute_seconds), error))
                node.reject(rpc, error)
                return
            reply = self._ask(Update(update))
        if isinstance(reply, HyperGPUError):
            node.reject(rpc, reply)
        else:
            node.send_verdict(rpc)

    def _push_late(self, update: ev.UpdateArrived, *, is_whole: bool) -> ev.UpdateReply | HyperGPUError | None:
        if is_whole:
            return self._ask(Update(update))
        return self._ask(OfferUpdate(self._run_id, update))

    def begin_download(self, node: SimulatedNode, nbytes: int) -> None:
        """Note that parameters are sent to a node."""
        self._links.begin_download(node.node_id, self._time.clock.now, nbytes)

    def downloaded(self, node: SimulatedNode, transfer: Transfer) -> None:
        """Record the download that a node reports."""
        self._links.downloaded(node.node_id, transfer, self._time.clock.now)

    def uploaded(self, node: SimulatedNode, transfer: Transfer) -> None:
        """Record the upload of a node."""
        self._links.uploaded(node.node_id, transfer)

    def return_work(self, node: SimulatedNode, work: ev.WorkAssigned, kind: str, detail: str) -> None:
        """Handle ReturnWork."""
        self._ask(Return(node.node_id, self._run_id, work.round, work.attempt, kind, detail))

    def leave(self, node: SimulatedNode, reason: str) -> None:
        """Handle Leave."""
        self._ask(Leave(node.node_id, self._run_id, reason))

    # ------------------------------------------------------------ effects

    def _carry_out(self, effects: Sequence[ev.Effect]) -> None:
        run = self._effects
        for effect in effects:
            run[effect.__class__](effect)

    def _start_round(self, round_begins: Callable[[int], None], effect: ev.StartRound) -> None:
        self._learning.begin_round(effect.round, effect.nodes)
        round_begins(effect.round)

    def _assign(self, work: ev.WorkAssigned) -> None:
        self._learning.assigned(work)
        rpc = self._waiting.pop(work.node, None)
        if rpc is not None and not rpc.over:
            node = self._nodes[work.node]
            kept = work.kept_parameters
            sending = (
                Sending("none", kept=kept) if kept else self._learning.sendings.plan(work.codecs.parameters, node.held)
            )
            node.send_work(work, rpc, sending, self._learning.payload(sending))

    def _count_update(self, reply: ev.UpdateReply) -> None:
        if reply.status is _ACCEPTED and reply.weight:
            self._learning.add(reply.weight, reply.late)
            found = self._learning.gain() if reply.measured else None
            if found is not None:
                self._time.at(self._time.now, self.dispatch, found)

    def _close_round(self, closed: ev.CloseRound) -> None:
        self._watch_stragglers()
        late = {(each.round, each.unit.codecs.parameters) for each in self._machine.late_units.values()}
        self._learning.keep_parameters(late | self._machine.checked_parameters)
        if not self._learning.step(*closed.step, closed.spoiled_by):
            text = f"skipped the step of round {closed.round}: {self._learning.step_fault}"
            self._recorder.event(ev.RunEvent("step_skipped", closed.round, text), self._time.now)
        self._time.at(self._time.now + self._evaluation_seconds, self._evaluate, closed)

    def _evaluate(self, closed: ev.CloseRound) -> None:
        loss, metric = self._learning.evaluate() if closed.evaluate else (None, None)
        self._record_metric_fault(closed.round)
        others = self._learning.others if closed.evaluate else {}
        traffic = self._links.traffic.take()
        self._recorder.round_closed(closed, loss, metric, self._time.now, traffic=traffic, others=others)
        figures = self._learning.update_norms, others, self._learning.step_sketch
        self.dispatch(ev.Evaluated(closed.round, loss, metric, *figures))

    def _record_metric_fault(self, round_number: int) -> None:
        """Record that the metric could not be computed, once for each cause."""
        fault = self._learning.metric_fault
        if fault and fault != self._metric_fault:
            self._recorder.event(ev.RunEvent("metric_failed", round_number, fault), self._time.now)
        self._metric_fault = fault

    def _abandon_round(self, _: ev.AbandonRound) -> None:
        self._learning.discard()
        self._watch_stragglers()

    def _watch_stragglers(self) -> None:
        """Send the next heartbeat of every straggler on time: its reply asks the node to abandon its work."""
        for node_id in sorted(self._session.stragglers):
            self._nodes[node_id].heartbeats.watch()

    def _rehearse(self, rehearse: Callable[[RehearsalRequest], RehearsalResult] | None, effect: ev.Rehearse) -> None:
        if rehearse is not None:
            result = rehearse(effect.request)
            self._time.at(self._time.now + result.seconds, self.dispatch, ev.Rehearsed(result))

    def _run_over(self, effect: ev.RunOver) -> None:
        self._waiting.pop(effect.node, None)

    def _finish(self, finish: ev.Finish) -> None:
        self._recorder.finished(finish, self._time.now)
        self._time.stop()

    # ------------------------------------------------------------ timers

    def _set_timer(self, effect: ev.SetTimer) -> None:
        self._timer += 1
        self._time.at(effect.at, self._tick, self._timer)

    def _tick(self, timer: int) -> None:
        if timer != self._timer:
            return
        suspects = [self._nodes[node_id] for node_id in self._session.suspects(self._time.now)]
        for node in suspects:
            node.heartbeats.flush()
        self.dispatch(_TICK)
        for node in suspects:
            if not self._session.is_member(node.node_id):
                node.heartbeats.watch()  # the reply to the first that gets through asks it to register

    def _scrape(self) -> None:
        """Read the metrics of all connected nodes, which does not go over their links."""
        for node_id in self._session.members:
            node = self._nodes[node_id]
            node.heartbeats.flush()
            if node.attempts:
                self._links.scraped(node_id, node.attempts, node.failures)
        self._time.at(self._time.now + self._scrape_seconds, self._scrape)


def _update_without_figures(work: ev.WorkAssigned, compute_seconds: float) -> ev.UpdateArrived:
    """Return the update of this work before its loss is known."""
    samples = work.batch_size * work.local_steps
    codec = work.codecs.update
    return ev.UpdateArrived(work.node, work.round, work.attempt, samples, 0.0, compute_seconds, codec=codec)


class HeartbeatSync:
    """An adaptation that decides on all heartbeats that were due until then."""

    def __init__(self, adaptation: Adaptation) -> None:
        self.adaptation, self.overrides = adaptation, adaptation.overrides
        self.flush_heartbeats: Callable[[], None] = lambda: None

    def plan_round(self, available: Sequence[str], round_number: int) -> RoundPlan:
        """Receive the heartbeats, then plan."""
        self.flush_heartbeats()
        return self.adaptation.plan_round(available, round_number)

    def finish_round(self, report: RoundReport) -> RoundJudgement:
        """Learn from a round."""
        return self.adaptation.finish_round(report)

    def abandon_round(self, round_number: int, fault: str) -> RoundJudgement:
        """Learn from a round without any update."""
        return self.adaptation.abandon_round(round_number, fault)

    def record_late(self, work: LateWork) -> None:
        """Learn from work that missed the end of its round."""
        self.adaptation.record_late(work)

    def finish_rehearsal(self, result: RehearsalResult, round_number: int) -> Sequence[Decision]:
        """Learn from a rehearsal."""
        return self.adaptation.finish_rehearsal(result, round_number)
