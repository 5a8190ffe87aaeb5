"""The rounds of a run as a pure state machine: `RoundMachine.handle(event, now) -> list[Effect]`.

It knows nothing of sockets, threads, clocks or tensors. The asyncio engine and the virtual-time simulator drive it
alike: they run the effects and feed what comes of them back as events. Every event costs O(log nodes) at most, but
those that begin or end a round.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

from hypergpu.common.config.training import TrainingConfig
from hypergpu.common.metric import ACCURACY, LOSS, MetricSpec
from hypergpu.coordinator.core.decisions import Decision, DecisionKind
from hypergpu.coordinator.core.overrides import NodeOverride
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.adaptation import Adaptation, RoundReport
from hypergpu.coordinator.core.rounds.closing import Ending, RoundCloser
from hypergpu.coordinator.core.rounds.deadlines import DeadlineEstimator, DeadlineReason
from hypergpu.coordinator.core.rounds.dispatch import WorkDispatcher
from hypergpu.coordinator.core.rounds.effect_buffer import EffectBuffer
from hypergpu.coordinator.core.rounds.guards import ModelGuard, SharedFaults
from hypergpu.coordinator.core.rounds.membership import ConnectionState, Membership
from hypergpu.coordinator.core.rounds.opening import RoundOpener
from hypergpu.coordinator.core.rounds.shards import ShardTable
from hypergpu.coordinator.core.rounds.update_norms import NormBound
from hypergpu.coordinator.core.rounds.work import Round, WorkReason

_NOT_MEASURED: Final = DeadlineReason.NOT_MEASURED  # an enum's member is looked up slowly: not with every event


class RunState(StrEnum):
    """Where a run stands."""

    WAITING = "waiting"
    TRAINING = "training"
    EVALUATING = "evaluating"
    PAUSED = "paused"
    COMPLETED = "completed"
    STOPPED = "stopped"


class RoundMachine:
    """Decides everything about rounds: who trains what, what counts, when a round ends, and why.

    Args:
        config: rounds, quorum, batch, steps, learning rate.
        adaptation: chooses the nodes and batch sizes of each round.
        max_nodes: that may be connected at once.
        lost_after_seconds: silence after which a node is lost; None where somebody else tells (`NodeLost`).
        first_round: 1, or where a resumed run goes on.
        shards: the cursors of a resumed run.
        complete: the run was completed by an earlier process; nothing is left to do.
        metric: what the model is judged by.
    """

    def __init__(
        self,
        config: TrainingConfig,
        adaptation: Adaptation,
        *,
        max_nodes: int = 10_000,
        lost_after_seconds: float | None = None,
        first_round: int = 1,
        shards: ShardTable | None = None,
        complete: bool = False,
        metric: MetricSpec = ACCURACY,
    ) -> None:
        self.config = config
        self.metric = metric
        self.adaptation = adaptation
        self.members = Membership(max_nodes=max_nodes, lost_after_seconds=lost_after_seconds)
        self.shards = shards or ShardTable()
        self.deadlines = DeadlineEstimator(mads=config.deadline_mads)
        self._norms = NormBound()
        self.round = first_round
        """The round that runs or is to come next; 1 is the first."""
        self.loss: float | None = None
        """Of the last evaluation; None before the first."""
        self.metric_value: float | None = None
        """Of the last evaluation; None before the first, and where the metric is undefined."""
        self.last_round_seconds: float | None = None
        self._effects = EffectBuffer(first_round)
        self._opener = RoundOpener(
            config=config,
            adaptation=adaptation,
            members=self.members,
            shards=self.shards,
            deadlines=self.deadlines,
            effects=self._effects,
        )
        self._closer = RoundCloser(config=config, members=self.members, deadlines=self.deadlines, effects=self._effects)
        self._dispatcher = WorkDispatcher(self._effects, adaptation)
        self._current: Round | None = None
        self._closed: ev.CloseRound | None = None
        self._finished: RunState | None = RunState.COMPLETED if complete else None
        self._paused = False
        self._suspended = False
        self._stop_reason: str | None = None
        """Why the run ends once the closed round is evaluated."""
        self._model_guard = ModelGuard(first_round - 1, self._effects)
        self._faults = SharedFaults()
        self._timer_at = math.inf
        self._lost_after = lost_after_seconds
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            ev.NodeJoined: self._on_joined,
            ev.NodeSeen: self._on_seen,
            ev.NodeLeft: self._on_left,
            ev.NodeLost: self._on_lost,
            ev.WorkRequested: self._on_requested,
            ev.RequestEnded: self._on_request_ended,
            ev.UpdateArrived: self._on_update,
            ev.WorkReturned: self._on_returned,
            ev.Evaluated: self._on_evaluated,
            ev.EvaluationFailed: self._on_evaluation_failed,
            ev.Tick: self._on_tick,
            ev.Pause: self._on_pause,
            ev.Resume: self._on_resume,
            ev.Stop: self._on_stop,
            ev.Suspend: self._on_suspend,
            ev.Fail: lambda event, _: self._finish(ev.FinishReason.FAILED, event.detail),
            ev.OverrideSet: self._on_rule,
        }

    # ------------------------------------------------------------ what can be asked

    @property
    def state(self) -> RunState:
        """Where the run stands. A pause shows at once, though a round that is running is finished first."""
        if self._finished is not None:
            return self._finished
        if self._paused:
            return RunState.PAUSED
        if self._closed is not None:
            return RunState.EVALUATING
        return RunState.TRAINING if self._current is not None else RunState.WAITING

    @property
    def finished(self) -> bool:
        """The run is over, one way or the other."""
        return self._finished is not None

    @property
    def deadline_at(self) -> float | None:
        """When the running round closes."""
        return self._current.deadline_at if self._current else None

    @property
    def selected(self) -> Sequence[str]:
        """The nodes of the running round."""
        return tuple(self._current.units) if self._current else ()

    @property
    def waiting_for(self) -> str:
        """Why no round is running, in words; empty while one is."""
        return self._opener.waiting_for

    @property
    def decisions(self) -> Sequence[Decision]:
        """The latest decisions, newest first."""
        return self._effects.decisions

    def is_working(self, node: str) -> bool:
        """Whether the node holds a work unit that is still wanted."""
        unit = self._current.units.get(node) if self._current else None
        return unit is not None and unit.attempt > 0 and not unit.done

    def update_status(self, node: str, round_number: int) -> ev.UpdateStatus | None:
        """What an update of this unit of work gets without being looked at; None: it is wanted."""
        current = self._current
        if current is not None and round_number == current.number:
            unit = current.units.get(node)
            if unit is not None and unit.attempt > 0 and not unit.done:
                return None
        member = self.members.get(node)
        if member is None or round_number < 1 or round_number > self.round:
            return ev.UpdateStatus.STALE
        if round_number == member.last_accepted:
            return ev.UpdateStatus.DUPLICATE
        not_handed_out = current is not None and round_number == current.number and node in current.units
        return ev.UpdateStatus.STALE if not_handed_out else ev.UpdateStatus.LATE

    def restore_nodes(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Restore what nodes did, and what users decided about them, before the coordinator was restarted."""
        self.members.restore(rows)
        for row in rows:
            override = NodeOverride(row.get("rule", NodeOverride.AUTOMATIC))
            if override is not NodeOverride.AUTOMATIC:
                self.adaptation.set_override(row["node_id"], override)

    # ------------------------------------------------------------ events

    def handle(self, event: ev.Event, now: float) -> list[ev.Effect]:
        """Take in one event at time `now` (seconds, never going back) and say what is to be done, in order.

        Raises:
            ResourceExhausted: `NodeJoined` beyond `max_nodes`.
            NotFound: `OverrideSet` for a node that never was there.
        """
        if self._lost_after is not None:
            self._detect_local_stall(now, self._lost_after)
        self._handlers[event.__class__](event, now)
        if self._opener.should_try and self._may_begin:
            self._begin(self._opener.try_to_open(self.round, now, paused=self._paused), now)
        self._set_timer()
        return self._effects.drain()

    def take_update(self, event: ev.UpdateArrived, now: float) -> tuple[ev.UpdateReply, list[ev.Effect]]:
        """Handle an update; return the reply to its node, and the effects, of which the reply is one."""
        effects = self.handle(event, now)
        return self._dispatcher.last_reply, effects

    @property
    def _may_begin(self) -> bool:
        """Whether a round may begin: none runs, and the run is neither over nor suspended."""
        over = self._finished is not None or self._suspended
        return self._current is None and self._closed is None and not over

    def _on_joined(self, event: ev.NodeJoined, now: float) -> None:
        member, new = self.members.join(event.node, event.incarnation, now)
        member.largest_batch, member.info = event.largest_batch, event.info
        member.has_same_task = event.has_same_task
        if self._current is not None:
            self._current.restarted(event.node, event.incarnation)
        if not new:
            return
        if self._current is not None:
            self._current.reopen(event.node)
        self._opener.reevaluate()
        connected = len(self.members.connected)
        self._effects.record(
            "node_joined", f"{event.node} joined ({connected} connected)", node=event.node, **event.info
        )

    def _on_seen(self, event: ev.NodeSeen, now: float) -> None:
        self.members.seen(event.node, now)

    def _on_left(self, event: ev.NodeLeft, now: float) -> None:
        member = self.members.get(event.node)
        if member is not None:
            member.completed = self.finished
        self._remove(event.node, ConnectionState.LEFT, event.reason or "left", now)

    def _on_lost(self, event: ev.NodeLost, now: float) -> None:
        self._remove(event.node, ConnectionState.LOST, event.reason, now)

    def _on_requested(self, event: ev.WorkRequested, now: float) -> None:
        if self._finished is not None:
            self._effects.emit(ev.RunOver(event.node))
            return
        member = self.members.connected.get(event.node)
        if member is None:
            return
        self.members.seen(event.node, now)
        if self.members.mark_requesting(member):
            self._opener.reevaluate(at_once=True)
            text = f"{event.node} is ready ({self.members.ready} of {len(self.members.connected)} connected)"
            self._effects.record("node_ready", text, node=event.node)
        self._opener.straggler_returned(member)
        if self._current is not None:
            self._dispatcher.assign(self._current, member, now)

    def _on_request_ended(self, event: ev.RequestEnded, now: float) -> None:
        del now
        member = self.members.get(event.node)
        if member is not None:
            member.requesting = False

    def _on_update(self, event: ev.UpdateArrived, now: float) -> None:
        member = self.members.get(event.node)
        current, status = self._current, self.update_status(event.node, event.round)
        if member is None or status is not None or current is None:
            if member is not None:
                self._opener.straggler_returned(member)
            self._dispatcher.refuse(event, status or ev.UpdateStatus.STALE, member, self.round)
            return
        self.members.seen(event.node, now)
        outlier = self._norms.judge(event.norm, current.units[event.node].expected_norm_scale)
        if outlier is not None:
            self._dispatcher.refuse_outlier(current, event, outlier)
            self._end(self._closer.close_if_complete(current, now), now)
            return
        unit, weight, seconds = self._dispatcher.accept(current, event, member, now)
        self.deadlines.observe(event.node, seconds)
        self.shards.advance(unit.shard, weight)
        if self._opener.deadline_reason is _NOT_MEASURED:
            self._closer.shorten_deadline(current, now)
        self._end(self._closer.close_if_complete(current, now), now)

    def _on_returned(self, event: ev.WorkReturned, now: float) -> None:
        member = self.members.get(event.node)
        if member is None:
            return
        self.members.seen(event.node, now)
        self._opener.straggler_returned(member)
        current = self._current
        if current is not None and event.round == current.number:
            self._dispatcher.return_work(current, event, member, now)
            self._end(self._closer.close_if_complete(current, now), now)

    def _on_evaluated(self, event: ev.Evaluated, now: float) -> None:
        del now
        closed = self._closed
        if closed is None or closed.round != event.round:
            return
        self._closed = None
        good = event.loss is None or self._model_guard.judge(event.round, event.loss)
        loss = event.loss if good else None
        metric = (loss if self.metric == LOSS else event.metric) if good else None
        if loss is not None:
            self.loss, self.metric_value = loss, metric
        self._effects.round_closed(closed, loss, self.metric, metric)
        report = RoundReport(
            round=closed.round,
            loss=event.loss if event.loss is not None else closed.loss,
            metric=None if self.metric == LOSS else self.metric_value,
            seconds=closed.seconds,
            samples=closed.samples,
            contributions=closed.contributions,
            update_norms=event.update_norms,
            ended=closed.ended,
        )
        self._effects.adopt(self.adaptation.finish_round(report))
        self.round = self._effects.round = closed.round + 1
        self._opener.reevaluate(at_once=True)
        target = self.config.target_accuracy
        if self._model_guard.divergence:
            self._finish(ev.FinishReason.DIVERGED, self._model_guard.divergence)
        elif target is not None and self.metric.reached(metric, target):
            detail = f"{self.metric.label(metric)} in round {event.round}"
            self._finish(ev.FinishReason.TARGET_REACHED, detail)
        elif self.config.is_last(event.round):
            self._finish(ev.FinishReason.ROUNDS_DONE, f"{event.round} rounds")
        elif self._stop_reason is not None:
            self._finish(ev.FinishReason.STOPPED, self._stop_reason)

    def _on_evaluation_failed(self, event: ev.EvaluationFailed, now: float) -> None:
        del now
        closed = self._closed
        if closed is None or closed.round != event.round:
            return
        self._closed = None
        if event.stepped:  # what is saved now is the model after this round
            self.round = self._effects.round = closed.round + 1
        self._finish(ev.FinishReason.FAILED, event.detail)

    def _on_tick(self, event: ev.Tick, now: float) -> None:
        del event
        for node in self.members.silent(now):
            self._remove(node, ConnectionState.LOST, f"silent for {self._lost_after:g} s", now)
        if self._opener.retry_at <= now:
            self._opener.reevaluate(at_once=True)
        if self._current is not None and now >= self._current.deadline_at:
            self._end(self._closer.at_deadline(self._current, now), now)

    def _on_pause(self, event: ev.Pause, now: float) -> None:
        del event, now
        if not self._paused and not self.finished:
            self._paused = True
            first = "; the running round is finished first" if self._current else ""
            self._effects.record("paused", f"paused by the user{first}")
            self._opener.reevaluate()

    def _on_resume(self, event: ev.Resume, now: float) -> None:
        del event, now
        if self._paused and not self.finished:
            self._paused = False
            self._effects.record("resumed", "resumed by the user")
            self._opener.reevaluate()

    def _on_stop(self, event: ev.Stop, now: float) -> None:
        del now
        if self._closed is None:
            self._finish(ev.FinishReason.STOPPED, event.reason)
        elif self._stop_reason is None:  # its step is on the way: what is saved must be a whole round
            self._stop_reason = event.reason
            text = f"the run ends once round {self._closed.round} is evaluated: {event.reason}"
            self._effects.record("stopping", text, reason=event.reason)

    def _on_suspend(self, event: ev.Suspend, now: float) -> None:
        del event, now
        if self._finished is None and not self._suspended:
            self._suspended = True
            self._effects.record("suspended", "the coordinator ends; the run goes on when it is started with --resume")

    def _on_rule(self, event: ev.OverrideSet, now: float) -> None:
        del now
        self.members.require(event.node)
        if self.adaptation.override(event.node) is not event.override:
            self.adaptation.set_override(event.node, event.override)
            self._effects.decide(DecisionKind.RULE, event.node, WorkReason.USER, {"rule": str(event.override)})
            self._opener.reevaluate(at_once=True)

    # ------------------------------------------------------------ between rounds

    def _begin(self, started: Round | None, now: float) -> None:
        """Give work to those who wait for it already; the others get theirs when they ask."""
        if started is None:
            return
        self._current = started
        self._effects.emit(ev.StartRound(started.number, tuple(started.units), started.deadline_at))
        for node in list(started.units):
            member = self.members.connected[node]
            if member.requesting:
                self._dispatcher.assign(started, member, now)

    def _end(self, ending: Ending | None, now: float) -> None:
        """No round runs any more, if this is the end of it."""
        if ending is None:
            return
        self._current = None
        self._effects.emit(ending)
        if isinstance(ending, ev.CloseRound):
            self._closed = ending
            self.last_round_seconds = ending.seconds
            self._faults.closed()
            self._opener.succeeded()
            return
        self._opener.failed(ending, now)
        hopeless = self._faults.abandoned(ending)
        if hopeless:
            self._finish(ev.FinishReason.FAILED, hopeless)

    def _finish(self, reason: ev.FinishReason, detail: str) -> None:
        if self._finished is not None:
            return
        done = reason in (ev.FinishReason.ROUNDS_DONE, ev.FinishReason.TARGET_REACHED)
        self._finished = RunState.COMPLETED if done else RunState.STOPPED
        self._opener.waiting_for = ""
        self._effects.round = self.config.shown_round(self.round)
        if self._current is not None:
            self._effects.emit(ev.AbandonRound(self._current.number, "the run is over"))
        self._current = self._closed = None
        text = f"the run is over: {reason}" + (f", {detail}" if detail else "")
        self._effects.record(str(self._finished), text, reason=str(reason), detail=detail)
        self._effects.emit(ev.Finish(reason, detail))
        for member in self.members.connected.values():
            if member.requesting:
                member.requesting = False
                self._effects.emit(ev.RunOver(member.node_id))

    # ------------------------------------------------------------ nodes and time

    def _remove(self, node: str, connection: ConnectionState, reason: str, now: float) -> None:
        if self.members.remove(node, connection, reason, now) is None:
            return
        if connection is ConnectionState.LEFT:
            self.deadlines.forget(node)
        connected = len(self.members.connected)
        text = f"{node} {connection}: {reason} ({connected} connected)"
        self._effects.record(f"node_{connection}", text, node=node, reason=reason)
        if not connected and not self.finished:
            self._effects.record("no_nodes", "no node is connected any more; waiting for nodes to join")
        self._opener.reevaluate()
        unit = self._current.units.get(node) if self._current else None
        if self._current is not None and unit is not None and unit.live:
            self._dispatcher.drop(self._current, unit, WorkReason.NODE_GONE, reason)
            self._end(self._closer.close_if_complete(self._current, now), now)

    def _detect_local_stall(self, now: float, lost_after: float) -> None:
        """A timer that is long overdue: it was us who did not run, and the silence of the others means nothing."""
        if now - self._timer_at > 0.25 * lost_after:
            self.members.reset_liveness(now)

    def _set_timer(self) -> None:
        at = self.members.next_silence()  # also when the run is over: a coordinator may stay, and show who is there
        if self._finished is None:
            at = self._opener.retry_at if self._opener.retry_at < at else at
            if self._current is not None:
                at = self._current.deadline_at if self._current.deadline_at < at else at
        if at != self._timer_at:
            self._timer_at = at
            if at < math.inf:
                self._effects.emit(ev.SetTimer(at))
