"""The coordinator in virtual time: drives the round machine as `coordinator/engine.py` does, without sockets."""

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from hypergpu.common.errors import NonFiniteUpdate, StaleWork
from hypergpu.coordinator.core.decisions import Decision
from hypergpu.coordinator.core.overrides import NodeOverride
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.adaptation import Adaptation, RoundPlan, RoundReport
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.coordinator.link_telemetry import LinkTelemetry
from hypergpu.node.core import events as life
from hypergpu.node.core.states import State
from hypergpu.simulation.heartbeats import Directive
from hypergpu.simulation.learning import Learning
from hypergpu.simulation.node import SimulatedNode
from hypergpu.simulation.rpc import SimulatedRpc
from hypergpu.simulation.virtual_time import VirtualTime

_ACCEPTED: Final = ev.UpdateStatus.ACCEPTED  # an enum's member is looked up slowly: not with every message
_STALE: Final = ev.UpdateStatus.STALE
_CONTINUE: Final = Directive.CONTINUE
_BUSY: Final = frozenset({State.PULLING, State.TRAINING, State.PUSHING})


class Recorder(Protocol):
    """Who keeps what happens."""

    def event(self, record: ev.RunEvent, now: float) -> None:
        """Something worth keeping."""
        ...

    def round_closed(self, closed: ev.CloseRound, loss: float | None, metric: float | None, now: float) -> None:
        """A round is over and its step is taken."""
        ...

    def finished(self, finish: ev.Finish, now: float) -> None:
        """The run is over."""
        ...


class VirtualCoordinator:
    """Takes in what arrives from the nodes, and carries out what the machine decides.

    Args:
        time: the clock and what is due.
        machine: the rounds; told of silence (`NodeLost`) rather than looking for it.
        learning: what comes of the work.
        links: told of how communication with the nodes goes.
        recorder: keeps the events and rounds.
        lost_after_seconds: silence after which a node is lost.
        evaluation_seconds: what the step and the evaluation between two rounds take.
        scrape_seconds: after which each node's own count of its calls is read, again and again.
        round_begins: told the number of each round, for events that are due by round.
    """

    def __init__(
        self,
        time: VirtualTime,
        machine: RoundMachine,
        learning: Learning,
        links: LinkTelemetry,
        recorder: Recorder,
        *,
        lost_after_seconds: float,
        evaluation_seconds: float,
        scrape_seconds: float,
        round_begins: Callable[[int], None],
    ) -> None:
        self.machine = machine
        self._time, self._learning, self._links, self._recorder = time, learning, links, recorder
        self._lost_after, self._evaluation_seconds = lost_after_seconds, evaluation_seconds
        self._scrape_seconds, self._round_begins = scrape_seconds, round_begins
        self._nodes: dict[str, SimulatedNode] = {}
        self._waiting: dict[str, SimulatedRpc] = {}
        self._held: dict[str, tuple[int, int, int]] = {}
        """Round, attempt and next offset of the last upload of each node that broke."""
        self._timer = 0
        self._metric_fault = ""
        self._norms: tuple[float, float] | None = None
        """Of the step of the round that is evaluated."""
        self._effects: dict[type, Callable[[Any], None]] = {
            ev.StartRound: self._start_round,
            ev.WorkAssigned: self._assign,
            ev.UpdateReply: lambda _: None,
            ev.CloseRound: self._close_round,
            ev.AbandonRound: self._abandon_round,
            ev.KeepModel: lambda _: learning.keep(),
            ev.RevertModel: lambda _: learning.revert(),
            ev.SetTimer: self._set_timer,
            ev.RunOver: self._run_over,
            ev.Finish: self._finish,
            ev.RunEvent: lambda record: recorder.event(record, time.now),
        }

        time.at(scrape_seconds, self._scrape)

    def dispatch(self, event: ev.Event) -> None:
        """Let the machine handle an event, and carry out what it decides."""
        self._carry_out(self.machine.handle(event, self._time.clock.now))

    def catch_up(self) -> None:
        """Take in every heartbeat that was due until now."""
        for node in self._nodes.values():
            node.heartbeats.flush()

    # ------------------------------------------------------------ what arrives (see `node.CoordinatorApi`)

    def register(self, node: SimulatedNode) -> None:
        """Handle Register."""
        new = node.node_id not in self.machine.members.connected
        self._nodes[node.node_id] = node
        node.seen(self._time.clock.now)
        self._links.register(node.node_id, node.largest_batch)
        self.dispatch(ev.NodeJoined(node.node_id, str(node.incarnation), node.largest_batch, node.info))
        if new:
            self._time.at(node.last_seen + self._lost_after, self._is_it_silent, node)

    def pull(self, node: SimulatedNode, rpc: SimulatedRpc) -> None:
        """Handle PullWork: assign work now or later, or reject it."""
        if node.node_id not in self.machine.members.connected:
            node.reject(rpc, StaleWork(f"node {node.node_id!r} is not registered: register again"))
            return
        node.seen(self._time.clock.now)
        self._waiting[node.node_id] = rpc
        self.dispatch(ev.WorkRequested(node.node_id))

    def end_pull(self, node: SimulatedNode, rpc: SimulatedRpc) -> bool:
        """Handle the end of a wait for work; return whether there was one."""
        if self._waiting.get(node.node_id) is not rpc:
            return False
        del self._waiting[node.node_id]
        self.dispatch(ev.RequestEnded(node.node_id))
        return True

    def is_over(self, work: ev.WorkAssigned) -> bool:
        """Return whether no update of this work is needed."""
        return self.machine.update_status(work.node, work.round) is not None

    def progress(self, work: ev.WorkAssigned) -> life.ProgressKnown:
        """Handle GetUploadProgress."""
        accepted = self.machine.update_status(work.node, work.round) is ev.UpdateStatus.DUPLICATE
        round_number, attempt, offset = self._held.get(work.node, (0, 0, 0))
        held = offset if (round_number, attempt) == (work.round, work.attempt) else 0
        return life.ProgressKnown(accepted, held)

    def push_broke(self, node: SimulatedNode, work: ev.WorkAssigned, next_offset: int) -> None:
        """Keep what arrived of an update whose stream broke."""
        self._held[node.node_id] = (work.round, work.attempt, next_offset)

    def push(self, node: SimulatedNode, work: ev.WorkAssigned, compute_seconds: float, rpc: SimulatedRpc) -> None:
        """Handle PushUpdate."""
        now = self._time.clock.now
        node.seen(now)
        samples, loss, loss_before, grad_norm = work.batch_size * work.local_steps, 0.0, 0.0, 0.0
        norm: float | None = None
        if not self.is_over(work):
            try:
                trained = self._learning.train(work)
            except NonFiniteUpdate as error:
                node.reject(rpc, error)
                return
            samples, loss, loss_before = trained.samples, trained.loss, trained.loss_before
            grad_norm, norm = trained.grad_norm, trained.norm
        event = ev.UpdateArrived(
            node.node_id, work.round, work.attempt, samples, loss, compute_seconds, loss_before, grad_norm, norm
        )
        effects = self.machine.handle(event, now)
        (verdict,) = [effect for effect in effects if effect.__class__ is ev.UpdateReply]
        if verdict.status is _ACCEPTED:
            self._learning.add(verdict.weight)
        self._carry_out(effects)
        if verdict.status is _STALE:
            node.reject(rpc, StaleWork(f"no such work was assigned: {verdict.detail}"))
        else:
            node.send_verdict(rpc)

    def return_work(self, node: SimulatedNode, work: ev.WorkAssigned, kind: str, detail: str) -> None:
        """Handle ReturnWork."""
        node.seen(self._time.clock.now)
        self.dispatch(ev.WorkReturned(node.node_id, work.round, kind, detail))

    def leave(self, node: SimulatedNode, reason: str) -> None:
        """Handle Leave."""
        self._waiting.pop(node.node_id, None)
        self.dispatch(ev.NodeLeft(node.node_id, reason))

    def heartbeat(self, node: SimulatedNode, at: float, rtt_ms: float) -> Directive:
        """Handle Heartbeat."""
        members = self.machine.members
        if node.node_id not in members.connected:
            return Directive.REGISTER_AGAIN
        node.seen(at)
        report = {"network": {"events": node.attempts, "failures": node.failures}}
        self._links.heard(node.node_id, report, rtt_ms)
        busy = node.node_id in members.stragglers and node.state in _BUSY
        return Directive.ABANDON_WORK if busy else _CONTINUE

    def is_straggler(self, node: SimulatedNode) -> bool:
        """Return whether the node works on a round that is over."""
        return node.node_id in self.machine.members.stragglers

    def _scrape(self) -> None:
        """Read the metrics of all connected nodes, which does not go over their links."""
        for node_id in self.machine.members.connected:
            node = self._nodes[node_id]
            node.heartbeats.flush()
            if node.attempts:
                self._links.scraped(node_id, node.attempts, node.failures)
        self._time.at(self._time.now + self._scrape_seconds, self._scrape)

    def _is_it_silent(self, node: SimulatedNode) -> None:
        if node.node_id not in self.machine.members.connected or self.machine.finished:
            return
        node.heartbeats.flush()
        due = node.last_seen + self._lost_after
        if due > self._time.now:
            self._time.at(due, self._is_it_silent, node)
            return
        self._waiting.pop(node.node_id, None)
        self.dispatch(ev.NodeLost(node.node_id, f"silent for {self._lost_after:g} s"))
        node.heartbeats.watch()

    # ------------------------------------------------------------ what is decided

    def _carry_out(self, effects: Sequence[ev.Effect]) -> None:
        run = self._effects
        for effect in effects:
            run[effect.__class__](effect)

    def _start_round(self, effect: ev.StartRound) -> None:
        self._round_begins(effect.round)

    def _assign(self, order: ev.WorkAssigned) -> None:
        call = self._waiting.pop(order.node, None)
        if call is not None and not call.over:
            self._nodes[order.node].send_work(order, call)

    def _close_round(self, closed: ev.CloseRound) -> None:
        self._call_back_stragglers()
        good = self._learning.step()
        self._norms = self._learning.update_norms if good else None  # of a step that was left out they say nothing
        if not good:
            text = f"the step of round {closed.round} would not be finite and was left out"
            self._recorder.event(ev.RunEvent("step_skipped", closed.round, text), self._time.now)
        self._time.at(self._time.now + self._evaluation_seconds, self._evaluate, closed)

    def _evaluate(self, closed: ev.CloseRound) -> None:
        loss, metric = self._learning.evaluate() if closed.evaluate else (None, None)
        self._tell_metric_fault(closed.round)
        self._recorder.round_closed(closed, loss, metric, self._time.now)
        self.dispatch(ev.Evaluated(closed.round, loss, metric, self._norms))

    def _tell_metric_fault(self, round_number: int) -> None:
        """Put on record, once for each cause, that the metric could not be computed."""
        fault = self._learning.metric_fault
        if fault and fault != self._metric_fault:
            self._recorder.event(ev.RunEvent("metric_failed", round_number, fault), self._time.now)
        self._metric_fault = fault

    def _abandon_round(self, effect: ev.AbandonRound) -> None:
        del effect
        self._learning.discard()
        self._call_back_stragglers()

    def _call_back_stragglers(self) -> None:
        """Who still works on a round that is over learns of it with its next heartbeat."""
        for node_id in sorted(self.machine.members.stragglers):
            self._nodes[node_id].heartbeats.watch()

    def _set_timer(self, effect: ev.SetTimer) -> None:
        self._timer += 1
        self._time.at(effect.at, self._tick, self._timer)

    def _tick(self, timer: int) -> None:
        if timer == self._timer:
            self.dispatch(ev.Tick())

    def _run_over(self, effect: ev.RunOver) -> None:
        self._waiting.pop(effect.node, None)

    def _finish(self, finish: ev.Finish) -> None:
        self._recorder.finished(finish, self._time.now)
        self._time.stop()


class Punctual:
    """An adaptation that decides on all heartbeats that were due until then."""

    def __init__(self, adaptation: Adaptation) -> None:
        self.adaptation = adaptation
        self.catch_up: Callable[[], None] = lambda: None

    def plan_round(self, available: Sequence[str], round_number: int) -> RoundPlan:
        """Take in the heartbeats, then plan."""
        self.catch_up()
        return self.adaptation.plan_round(available, round_number)

    def finish_round(self, report: RoundReport) -> Sequence[Decision]:
        """Learn from a round."""
        return self.adaptation.finish_round(report)

    def override(self, node: str) -> NodeOverride:
        """Return the user's rule for a node."""
        return self.adaptation.override(node)

    def set_override(self, node: str, override: NodeOverride) -> None:
        """Set the user's rule for a node."""
        self.adaptation.set_override(node, override)
