"""The rounds of a run as a pure state machine: `RoundMachine.handle(event, now) -> effects`.

The machine knows no sockets, threads, clocks or tensors. The asyncio engine and the virtual-time simulator drive it in
the same way: they carry out the effects and report the results as events. `state` holds the table of phases and
transitions; `opening`, `dispatch` and `closing` hold the rules. An event costs O(log nodes) at most, except for those
that open or close a round.
"""

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any, Final

from hypergpu.common.config.training import TrainingConfig
from hypergpu.common.metric import ACCURACY, LOSS, MetricSpec
from hypergpu.common.transfer_codecs import NO_CODECS, TransferCodecs
from hypergpu.coordinator.core.decisions import Decision, DecisionKind
from hypergpu.coordinator.core.model.aggregation import staleness_weight
from hypergpu.coordinator.core.overrides import NodeOverride
from hypergpu.coordinator.core.rounds import closing, dispatch, late, opening
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.adaptation import Activity, Adaptation, ModelAction
from hypergpu.coordinator.core.rounds.deadlines import DeadlineEstimator
from hypergpu.coordinator.core.rounds.effect_buffer import EffectBuffer
from hypergpu.coordinator.core.rounds.guards import Improvement, ModelGuard
from hypergpu.coordinator.core.rounds.membership import ConnectionState, Member, Membership
from hypergpu.coordinator.core.rounds.node_time import count_time
from hypergpu.coordinator.core.rounds.shards import ShardTable
from hypergpu.coordinator.core.rounds.spot_checks import SpotChecks
from hypergpu.coordinator.core.rounds.state import (
    CLOSING,
    IDLE,
    OVER,
    TRANSITIONS,
    Guards,
    Phase,
    RoundState,
    RunControl,
    RunState,
)
from hypergpu.coordinator.core.rounds.suspicion import SuspicionReason, Suspicions, suspicions_of
from hypergpu.coordinator.core.rounds.update_norms import NormBound, Outlier
from hypergpu.coordinator.core.rounds.usefulness import Usefulness
from hypergpu.coordinator.core.rounds.work import Round, WorkReason, WorkUnit
from hypergpu.coordinator.core.score import Score

_LOCAL_STALL_SHARE = 0.25
"""Delay of a timer, as a share of the silence after which a node is lost, that means this process did not run."""
_RUN_STATES: Final = {Phase.IDLE: RunState.WAITING, Phase.OPEN: RunState.TRAINING, Phase.CLOSING: RunState.EVALUATING}


class RoundMachine:
    """Decides everything about rounds: who trains what, which updates count, when a round closes, and why.

    Args:
        config: rounds, quorum, batch size, local steps, learning rate.
        adaptation: chooses the nodes and the batch sizes of each round.
        max_nodes: maximum number of connected nodes.
        lost_after_seconds: silence after which a node is lost; None = the driver reports `NodeLost`.
        first_round: 1, or the round at which a resumed run continues.
        shards: shards and cursors of a resumed run.
        complete: an earlier process has completed the run.
        metric: what the model is judged by.
        codecs: codecs of the nodes for which the adaptation chooses none.
        suspicion: nodes whose updates no honest node sends are suspected, and get no work.
        measured_share: share of the updates whose gain on held-out data is measured.
        spot_check_share: share of the accepted updates that another node computes again.
        secret: key of the draws of these, which nodes must not know.
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
        codecs: TransferCodecs = NO_CODECS,
        suspicion: bool = True,
        measured_share: float = 0.0,
        spot_check_share: float = 0.0,
        secret: int = 0,
    ) -> None:
        self.config = config
        self.metric = metric
        self.adaptation = adaptation
        self.members = Membership(max_nodes=max_nodes, lost_after_seconds=lost_after_seconds)
        self.shards = shards or ShardTable()
        self.deadlines = DeadlineEstimator(mads=config.deadline_mads)
        self.round_state = RoundState(
            first_round,
            self.members,
            self.shards,
            self.deadlines,
            Guards(ModelGuard(first_round - 1), suspicions=suspicions_of(config, enabled=suspicion)),
            Usefulness(not config.data_is_local, measured_share, secret),
            SpotChecks(spot_check_share, secret),
            codecs,
            late=late.LateUnits(config.staleness_limit, config.rounds),
        )
        if complete:
            self.round_state.phase, self.round_state.control = OVER, RunControl(final_state=RunState.COMPLETED)
        self._lost_after = lost_after_seconds
        self._stall_seconds = math.inf if lost_after_seconds is None else _LOCAL_STALL_SHARE * lost_after_seconds
        self._effects = EffectBuffer(first_round)
        self._handlers = self._handlers_by_event()

    # ------------------------------------------------------------ questions

    @property
    def state(self) -> RunState:
        """State of the run. A pause shows at once, although an open round is finished first."""
        control = self.round_state.control
        if control.final_state is not None:
            return control.final_state
        return RunState.PAUSED if control.paused else _RUN_STATES[self.round_state.phase]

    @property
    def finished(self) -> bool:
        """True if the run is over."""
        return self.round_state.phase is OVER

    @property
    def round(self) -> int:
        """Number of the round that is open or comes next; the first is 1."""
        return self.round_state.round

    @property
    def loss(self) -> float | None:
        """Loss on held-out data of the latest evaluated model that was not given up; None before the first."""
        return self.round_state.latest.loss

    @property
    def metric_value(self) -> float | None:
        """Metric of that model; None before the first evaluation, and where it is undefined."""
        return self.round_state.latest.metric_value

    @property
    def score(self) -> Score | None:
        """Evaluation of the model that training continues with; None if it was not evaluated."""
        latest, done = self.round_state.latest, self.round - 1
        if latest.loss is None or latest.evaluated_round != done:
            return None
        return Score(done, latest.loss, latest.metric_value, self.metric)

    @property
    def last_round_seconds(self) -> float | None:
        """Duration of the latest round; None before the first has closed."""
        return self.round_state.latest.round_seconds

    @property
    def deadline_at(self) -> float | None:
        """Deadline of the open round."""
        current = self.round_state.open_round
        return current.deadline_at if current else None

    @property
    def counts_until(self) -> float | None:
        """Time after which an update of the open round is too late to count, as far as the last round tells."""
        current, seconds = self.round_state.open_round, self.round_state.latest.round_seconds
        if current is None:
            return None
        each = current.deadline_at - current.started_at if seconds is None else seconds
        return current.deadline_at + self.config.staleness_limit * each

    @property
    def selected(self) -> Sequence[str]:
        """Nodes of the open round."""
        current = self.round_state.open_round
        return tuple(current.units) if current else ()

    @property
    def waiting_for(self) -> str:
        """Text that says why no round is open; empty while one is."""
        return self.round_state.opening.waiting_for

    @property
    def decisions(self) -> Sequence[Decision]:
        """The latest decisions, newest first."""
        return tuple(reversed(self._effects.latest))

    def is_working(self, node: str) -> bool:
        """Return whether the node holds a work unit whose update is still wanted, or a spot check."""
        current = self.round_state.open_round
        unit = current.units.get(node) if current else None
        if unit is None:
            return node in self.round_state.spot_checks.dealt
        return unit.attempt > 0 and not unit.done

    def wanted_unit(self, node: str, round_number: int) -> WorkUnit | None:
        """Return the work unit of a node in this round, for reading, if its update is wanted."""
        state = self.round_state
        current = state.open_round
        check = state.spot_checks.wanted(node, round_number)
        if check is not None:
            return check
        if current is None or current.number != round_number:
            return state.late.wanted(node, round_number, state.merging_round)
        unit = current.units.get(node)
        return unit if unit is not None and unit.attempt > 0 and not unit.done else None

    def is_late(self, node: str, round_number: int) -> bool:
        """Return whether an update for this closed round is of use: a later one counts it, or it is compared."""
        state = self.round_state
        if state.spot_checks.wanted(node, round_number) is not None:
            return True
        return state.late.wanted(node, round_number, state.merging_round) is not None

    @property
    def late_units(self) -> Mapping[str, late.LateUnit]:
        """Units of closed rounds whose updates may still count, by node."""
        return self.round_state.late.units

    def may_finish(self, node: str, now: float) -> bool:
        """Return whether a straggler may go on with its work: it still counts, or it shows how long the node takes."""
        member, late_unit = self.members.get(node), self.late_units.get(node)
        if node in self.round_state.spot_checks.dealt:
            return True
        if self.config.staleness_limit:  # late work shows how long it takes: no other need go on
            return late_unit is not None and self.is_late(node, late_unit.round)
        return member is not None and member.assignment is not None and now < member.assignment.may_finish_until

    def is_assigned(self, node: str, round_number: int, attempt: int) -> bool:
        """Return whether this is the node's work in the open round, as it was last assigned, or its late unit."""
        unit = self.wanted_unit(node, round_number)
        return unit is not None and unit.live and not unit.done and 0 < unit.attempt == attempt

    def update_status(self, node: str, round_number: int) -> ev.UpdateStatus | None:
        """Return the status of an update of this work unit if it needs no further check; None: it is wanted."""
        if self.wanted_unit(node, round_number) is not None:
            return None
        current, member = self.round_state.open_round, self.members.get(node)
        if member is None or round_number < 1 or round_number > self.round_state.round:
            return ev.UpdateStatus.STALE
        if round_number == member.last_accepted or self.round_state.spot_checks.is_answered(node, round_number):
            return ev.UpdateStatus.DUPLICATE
        unassigned = current is not None and round_number == current.number and node in current.units
        return ev.UpdateStatus.STALE if unassigned else ev.UpdateStatus.LATE

    @property
    def kept(self) -> Mapping[str, float | None]:
        """Round, loss and metric of the model to return to; None for figures that were not measured."""
        guard = self.round_state.guards.model
        loss, metric = guard.kept_figures
        return {"round": guard.kept_round, "loss": loss, "metric": metric}

    def restore_kept(self, number: int, loss: float | None, metric_value: float | None) -> None:
        """Set the round and figures of the model to return to, as an earlier process of this run had them."""
        self.round_state.guards.model.restore(number, loss, metric_value)

    @property
    def improvement(self) -> Mapping[str, float | None] | None:
        """Round, loss and metric of the best model, and the evaluations since; None before the first."""
        found = self.round_state.guards.improvement
        if found.best is None:
            return None
        figures = {"round": found.best.round, "loss": found.best.loss, "metric": found.best.metric}
        return figures | {"evaluations": found.evaluations}

    def restore_improvement(self, best: Score, evaluations: int) -> None:
        """Set the best model and the evaluations since, as an earlier process of this run had them."""
        self.round_state.guards.improvement = Improvement(best, evaluations)

    @property
    def checked_parameters(self) -> Set[tuple[int, str]]:
        """Parameters that spot checks begin with, by round and codec: of a round that closes, and of earlier ones."""
        return self.round_state.spot_checks.parameters

    @property
    def suspicions(self) -> Suspicions:
        """Judge of the nodes' updates."""
        return self.round_state.guards.suspicions

    def restore_figures(self, loss: float | None, metric_value: float | None, *, of_present_model: bool) -> None:
        """Set the loss and the metric that an earlier process of this run has measured.

        If they are `of_present_model`, a return to the model that the run begins with restores them too.
        """
        state, done = self.round_state, self.round - 1
        state.latest.loss, state.latest.metric_value = loss, metric_value
        if of_present_model and loss is not None:
            state.latest.evaluated_round = done
            state.guards.model.keep(done, loss, metric_value)

    def restore_nodes(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Restore the rows of nodes of an earlier process of the coordinator, and what users decided about them."""
        self.members.restore(rows)
        for row in rows:
            override = NodeOverride(row.get("rule", NodeOverride.AUTOMATIC))
            self.adaptation.overrides.set(row["node_id"], override)

    # ------------------------------------------------------------ events

    def seen(self, node: str, now: float) -> bool:
        """Note a sign of life of a node, which may be dated ahead of `now`; return whether the node is connected.

        It changes nothing else, so it needs no event: most heartbeats and chunks of an upload end here.
        """
        return self.members.seen(node, now)

    def offered(self, node: str, now: float) -> None:
        """Note that a node begins to send its update, which is wanted."""
        current, late_unit = self.round_state.open_round, self.late_units.get(node)
        unit = current.units.get(node) if current else None
        unit = late_unit.unit if late_unit else unit
        if unit is not None and unit.offered_at is None:
            unit.offered_at = now

    def abandon(self, node: str, state: str, step_seconds: float, now: float) -> None:
        """Note what a straggler was doing when it was told to abandon its work.

        `step_seconds` is the duration of its steps so far; 0 if it is unknown.
        """
        member = self.members.get(node)
        if member is not None and member.assignment is not None and state in tuple(Activity):
            seconds = step_seconds * member.assignment.local_steps
            self._record_late(member, member.assignment.round, Activity(state), now, compute_seconds=seconds)

    def handle(self, event: ev.Event, now: float) -> list[ev.Effect]:
        """Handle one event at time `now` (seconds, never decreasing) and return its effects in order.

        Raises:
            ResourceExhausted: `NodeJoined` beyond `max_nodes`.
            NotFound: `OverrideSet` for a node that never registered.
        """
        state = self.round_state
        if now - state.timer_at > self._stall_seconds:
            self.members.reset_liveness(now)  # this process did not run: silence in that time means nothing
        before = state.phase
        self._handlers[event.__class__](event, now)
        if state.opening.should_try and state.phase is IDLE and not state.control.suspended:
            self._open_round(now)
        if state.phase is not before and state.phase not in TRANSITIONS[before, event.__class__]:
            raise RuntimeError(f"round machine: {event.__class__.__name__} led from {before} to {state.phase}")
        at = state.next_due()
        if at != state.timer_at:
            self._set_timer(at)
        return self._effects.drain()

    def take_update(self, event: ev.UpdateArrived, now: float) -> tuple[ev.UpdateReply, list[ev.Effect]]:
        """Handle an update; return the reply to its node, and the effects, of which the reply is one."""
        effects = self.handle(event, now)
        return self._effects.last_reply, effects

    def _handlers_by_event(self) -> dict[type, Callable[[Any, float], None]]:
        return {
            ev.NodeJoined: self._on_joined,
            ev.NodeLeft: self._on_left,
            ev.NodeLost: lambda event, now: self._remove(event.node, ConnectionState.LOST, event.reason, now),
            ev.WorkRequested: self._on_requested,
            ev.RequestEnded: lambda event, _: self.members.end_request(event.node),
            ev.UpdateArrived: self._on_update,
            ev.WorkReturned: self._on_returned,
            ev.Evaluated: lambda event, _: self._on_evaluated(event),
            ev.EvaluationFailed: lambda event, _: self._on_evaluation_failed(event),
            ev.Tick: lambda _, now: self._on_tick(now),
            ev.Pause: lambda _, __: self._on_pause(),
            ev.Resume: lambda _, __: self._on_resume(),
            ev.Stop: lambda event, _: self._on_stop(event.reason),
            ev.Suspend: lambda _, __: self._on_suspend(),
            ev.Fail: lambda event, _: self._finish(ev.FinishReason.FAILED, event.detail),
            ev.OverrideSet: lambda event, _: self._on_override(event),
            ev.GainMeasured: lambda event, _: self._on_gain(event),
            ev.Rehearsed: lambda event, _: self._on_rehearsed(event),
        }

    def _on_joined(self, event: ev.NodeJoined, now: float) -> None:
        member, new = self.members.join(event.node, event.incarnation, now)
        member.largest_batch, member.info = event.largest_batch, event.info
        member.has_same_task, member.data, member.terms = event.has_same_task, event.data, event.terms
        current = self.round_state.open_round
        if current is not None:
            current.note_restart(event.node, event.incarnation)
            if new:
                current.reopen(event.node)
        late_unit = self.late_units.get(event.node)
        if late_unit is not None and late_unit.unit.incarnation != event.incarnation:
            late.drop(self.round_state.late, event.node, WorkReason.NODE_GONE, self._effects)
        check = self.round_state.spot_checks.dealt.get(event.node)
        if check is not None and check.unit.incarnation != event.incarnation:
            self.round_state.spot_checks.give_up(event.node, self._effects)
        if new:
            opening.reevaluate(self.round_state.opening)
            text = f"{event.node} joined ({len(self.members.connected)} connected)"
            self._effects.record("node_joined", text, node=event.node, **event.info)

    def _on_left(self, event: ev.NodeLeft, now: float) -> None:
        member = self.members.get(event.node)
        if member is not None:
            member.completed = self.finished
        self._remove(event.node, ConnectionState.LEFT, event.reason or "left", now)

    def _on_requested(self, event: ev.WorkRequested, now: float) -> None:
        state, members = self.round_state, self.members
        if state.phase is OVER:
            self._effects.emit(ev.RunOver(event.node))
            return
        member = members.connected.get(event.node)
        if member is None:
            return
        if members.mark_requesting(member, now):
            opening.reevaluate(state.opening, at_once=True)
            text = f"{event.node} is ready ({members.ready} of {len(members.connected)} connected)"
            self._effects.record("node_ready", text, node=event.node)
        if state.spot_checks.assign(member, self.deadline_at, now, self._effects):
            return
        opening.straggler_returned(state, member, self.config.quorum)
        late.drop(state.late, event.node, WorkReason.GIVEN_UP, self._effects)
        if state.open_round is not None:
            if self.suspicions.is_suspended(event.node, state.round):
                return
            if self.adaptation.overrides.of(event.node) is not NodeOverride.EXCLUDE:
                opening.join(state, state.open_round, member)
            dispatch.assign(state.open_round, member, self.adaptation.overrides, now, self._effects)

    def _on_update(self, event: ev.UpdateArrived, now: float) -> None:
        state, effects = self.round_state, self._effects
        member, current = self.members.get(event.node), state.open_round
        unit = self.wanted_unit(event.node, event.round)
        self.members.seen(event.node, now)
        if member is not None and self._take_answer(event, member):
            return
        is_late = current is None or current.number != event.round
        outlier = None
        if event.norm is not None and unit is not None and member is not None:
            outlier = self._norms_of(event.round).judge(event.norm, unit.expected_norm_scale)
        if member is not None and is_late:
            merged = unit is not None and outlier is None
            times = {"compute_seconds": event.compute_seconds, "received_share": event.received_share}
            self._record_late(member, event.round, Activity.DONE, now, merged=merged, **times)
        is_at_other_work = unit is None and event.node in self.late_units
        if member is not None and (is_late or unit is None) and not is_at_other_work:
            opening.straggler_returned(state, member, self.config.quorum)
        if member is None or unit is None:
            status = self.update_status(event.node, event.round) or ev.UpdateStatus.STALE
            dispatch.refuse_update(event, status, member, state.round, effects)
            return
        if current is None or is_late:
            self._take_late(event, unit, member, outlier)
        elif outlier is not None:
            self.suspicions.refused(event.node, SuspicionReason.REFUSED_NORMS)
            dispatch.refuse_outlier(current, unit, event, outlier, effects)
        else:
            unit.suspect = not self._note_accepted(event, unit)
            measured = state.usefulness.measures(event.node)
            samples, seconds = dispatch.accept_update(current, event, member, now, effects, measured=measured)
            state.spot_checks.draw(event.round, member, unit, event)
            self.deadlines.observe(event.node, seconds, event.compute_seconds, unit.samples)
            self.shards.advance(unit.shard, samples)
            closing.shorten_deadline(current, state, self.config, now, effects)
        if current is not None:
            self._close_if_complete(current, now)

    def _take_answer(self, event: ev.UpdateArrived, member: Member) -> bool:
        """Compare an update with the one that it was computed to check; return whether its node has a check to do."""
        state = self.round_state
        check = state.spot_checks.wanted(event.node, event.round)
        if check is None:
            return False
        if event.attempt != check.attempt:  # of work that it had in the same round, before that was opened again
            dispatch.refuse_update(event, ev.UpdateStatus.LATE, member, state.round, self._effects)
            return True
        verdict = state.spot_checks.answer(event, self._effects)
        opening.straggler_returned(state, member, self.config.quorum)
        if verdict is not None and verdict.guilty:
            connected = self.members.connected
            accused = self.suspicions.convict(verdict.guilty, verdict.figures, state.round, connected)
            dispatch.accuse(accused, self._effects)
        return True

    def _note_accepted(self, event: ev.UpdateArrived, unit: WorkUnit) -> bool:
        """Let an update be compared with the others of the round; return whether it counts."""
        state, suspicions = self.round_state, self.suspicions
        current = state.open_round
        is_like = current is None or unit.optimizer.name == current.settings.optimizer.name
        counts = suspicions.counts(event.node)
        if event.sketch is not None and not unit.trial and is_like:
            suspicions.observe(event.node, event.sketch, unit.expected_norm_scale)
            samples = min(event.samples, unit.samples)
            weight = unit.weight(samples) * staleness_weight(state.merging_round - event.round)
            if counts and weight:
                state.usefulness.observe(event.node, event.sketch, unit.expected_norm_scale, weight)
        return counts

    def _norms_of(self, round_number: int) -> NormBound:
        return self.round_state.guards.norms[self.config.fragment_of(round_number)]

    def _take_late(self, event: ev.UpdateArrived, unit: WorkUnit, member: Member, outlier: Outlier | None) -> None:
        """Count a wanted update of a round that has closed in the open round or the next, or refuse it."""
        state, effects = self.round_state, self._effects
        if outlier is not None:
            late.drop(state.late, event.node, WorkReason.NORM_TOO_LARGE, effects)
            dispatch.refuse_outlier(None, unit, event, outlier, effects)
            return
        if not self._note_accepted(event, unit):
            late.drop(state.late, event.node, WorkReason.SUSPECTED, effects)
            dispatch.refuse_update(event, ev.UpdateStatus.LATE, member, state.round, effects)
            return
        target, current = state.merging_round, state.open_round
        samples = late.merge(state.late, event, member, effects, target=target, current=current)
        self.shards.advance(unit.shard, samples)

    def _record_late(
        self,
        member: Member,
        round_number: int,
        doing: Activity,
        now: float,
        *,
        compute_seconds: float,
        received_share: float = 1.0,
        merged: bool = False,
    ) -> None:
        """Tell the adaptation what kept a node from contributing to a round that is over."""
        current = self.round_state.open_round
        if current is None or current.number != round_number:
            work = dispatch.late_work(
                member,
                round_number,
                doing,
                now,
                compute_seconds=compute_seconds,
                awaited=self.members.stragglers.get(member.node_id, True),
                received_share=received_share,
                merged=merged,
            )
            if work is not None:
                self.adaptation.record_late(work)

    def _on_returned(self, event: ev.WorkReturned, now: float) -> None:
        state = self.round_state
        member = self.members.get(event.node)
        if member is None:
            return
        self.members.seen(event.node, now)
        check = state.spot_checks.wanted(event.node, event.round)
        if check is not None and check.attempt == event.attempt:
            state.spot_checks.give_up(event.node, self._effects)
            opening.straggler_returned(state, member, self.config.quorum)
            return
        opening.straggler_returned(state, member, self.config.quorum)
        if self.is_assigned(event.node, event.round, event.attempt) and event.node in self.late_units:
            late.drop(state.late, event.node, WorkReason.GIVEN_UP, self._effects)
        current = state.open_round
        if current is not None and event.round == current.number:
            unit = current.units.get(event.node)
            if event.reason == dispatch.NOT_FINITE and unit is not None and not unit.trial:
                self.suspicions.refused(event.node, SuspicionReason.NOT_FINITE)
            if dispatch.return_work(current, event, member, self._effects) and member.requesting:
                dispatch.assign(current, member, self.adaptation.overrides, now, self._effects)
            self._close_if_complete(current, now)

    def _on_evaluated(self, event: ev.Evaluated) -> None:
        state, effects = self.round_state, self._effects
        closed = self._take_closed(event.round)
        if closed is None:
            return
        latest = event.metric if event.loss is not None else self.metric_value
        if event.step is not None:
            state.usefulness.stepped(self.config.fragment_of(closed.round), event.step)
        report = closing.round_report(closed, event, None if self.metric == LOSS else latest, self.metric)
        judgement = self.adaptation.finish_round(report)
        loss, metric = closing.take_evaluation(state, event, judgement.model, self.metric, effects)
        closing.record_closed(closed, loss, metric, self.metric, effects, others=event.others)
        for decision in judgement.decisions:
            effects.add(decision)
        state.round = effects.round = closed.round + 1
        late.expire(state.late, state.round, effects)
        opening.reevaluate(state.opening, at_once=True)
        ending = closing.finish_after(state, closed.round, metric, self.config, self.metric)
        if ending is not None:
            self._finish(*ending)
        elif judgement.rehearsal is not None:
            effects.emit(ev.Rehearse(judgement.rehearsal))

    def _on_gain(self, event: ev.GainMeasured) -> None:
        member, gain = self.members.get(event.node), event.loss_before - event.loss_after
        if member is None or not math.isfinite(gain):
            return
        member.add_gain(gain)
        change = event.loss_after - event.loss_before
        text = f"the update of {event.node} in round {event.round} alone changes the loss by {change:+.4g}"
        figures = {"of_round": event.round, "loss_before": event.loss_before, "loss_after": event.loss_after}
        self._effects.record("gain_measured", text, node=event.node, **figures)

    def _on_evaluation_failed(self, event: ev.EvaluationFailed) -> None:
        closed = self._take_closed(event.round)
        if closed is None:
            return
        if event.stepped:  # what is saved now is the model after this round
            self.round_state.round = self._effects.round = closed.round + 1
        self._finish(ev.FinishReason.FAILED, event.detail)

    def _take_closed(self, round_number: int) -> ev.CloseRound | None:
        """Return the closed round whose evaluation has arrived, and end its phase; None if it was another's."""
        state = self.round_state
        closed = state.closed_round
        if closed is None or closed.round != round_number:
            return None
        state.closed_round, state.phase = None, IDLE
        return closed

    def _on_tick(self, now: float) -> None:
        state = self.round_state
        for node in self.members.silent(now):
            self._remove(node, ConnectionState.LOST, f"silent for {self._lost_after:g} s", now)
        if state.opening.retry_at <= now:
            opening.reevaluate(state.opening, at_once=True)
        current = state.open_round
        if current is not None and now >= current.deadline_at:
            ending = closing.at_deadline(current, state, self.config, now, self._effects)
            if ending is not None:
                self._end_round(ending, now)

    def _on_pause(self) -> None:
        state = self.round_state
        if not state.control.paused and not self.finished:
            state.control.paused = True
            suffix = "; the open round finishes first" if state.open_round else ""
            self._effects.record("paused", f"paused by the user{suffix}")
            opening.reevaluate(state.opening)

    def _on_resume(self) -> None:
        state = self.round_state
        if state.control.paused and not self.finished:
            state.control.paused = False
            self._effects.record("resumed", "resumed by the user")
            opening.reevaluate(state.opening)

    def _on_stop(self, reason: str) -> None:
        state = self.round_state
        if state.closed_round is None:
            self._finish(ev.FinishReason.STOPPED, reason)
        elif state.control.stop_reason is None:  # the saved model must be that of a whole round
            state.control.stop_reason = reason
            text = f"stopping after the evaluation of round {state.closed_round.round}: {reason}"
            self._effects.record("stopping", text, reason=reason)

    def _on_suspend(self) -> None:
        control = self.round_state.control
        if not self.finished and not control.suspended:
            control.suspended = True
            text = "coordinator shutting down; start it again with --resume to continue the run"
            self._effects.record("suspended", text)

    def _on_override(self, event: ev.OverrideSet) -> None:
        self.members.require(event.node)
        overrides = self.adaptation.overrides
        if event.override is NodeOverride.INCLUDE:
            self.suspicions.forgive(event.node)
        if overrides.of(event.node) is not event.override:
            overrides.set(event.node, event.override)
            figures = {"rule": str(event.override)}
            self._effects.decide(DecisionKind.RULE, event.node, WorkReason.USER, figures)
            opening.reevaluate(self.round_state.opening, at_once=True)

    # ------------------------------------------------------------ transitions

    def _on_rehearsed(self, event: ev.Rehearsed) -> None:
        if not self.finished:
            for decision in self.adaptation.finish_rehearsal(event.result, self.round):
                self._effects.add(decision)

    def _open_round(self, now: float) -> None:
        """Open the next round if possible, and give work to the nodes that wait for it."""
        dispatch.accuse(self.suspicions.release(self.round), self._effects)
        opened = opening.open_round(self.round_state, self.config, self.adaptation, now, self._effects)
        if opened is None:
            return
        self.round_state.usefulness.begin_round(opened.number, opened.units)
        self._effects.emit(ev.StartRound(opened.number, tuple(opened.units), opened.deadline_at))
        for node in [*opened.units, *self.round_state.spot_checks.dealt]:
            member = self.members.connected[node]
            if member.requesting and not self.round_state.spot_checks.assign(
                member, opened.deadline_at, now, self._effects
            ):
                dispatch.assign(opened, member, self.adaptation.overrides, now, self._effects)

    def _close_if_complete(self, current: Round, now: float) -> None:
        """End the open round once no update is outstanding, or needed."""
        if current.live == 0:
            self._end_round(closing.complete(current, self.members, self.config, now, self._effects), now)
        elif current.has_enough:
            self._end_round(closing.with_enough(current, self.members, self.config, now), now)

    def _end_round(self, ending: closing.Ending, now: float) -> None:
        state = self.round_state
        current, state.open_round = state.open_round, None
        self._effects.emit(self._judged(ending))
        self.members.stragglers.update(dict.fromkeys(state.spot_checks.close_round(self._effects), False))
        if isinstance(ending, ev.CloseRound):
            if current is not None:
                state.late.keep(current, self.members)
            state.closed_round, state.phase = ending, CLOSING
            state.latest.round_seconds = ending.seconds
            state.latest.utilisation = count_time(ending, self.members)
            state.guards.faults.on_closed()
            state.opening.failed_attempts = 0
            state.opening.ordered_codecs.clear()
            return
        state.phase = IDLE
        if current is not None:
            opening.keep_orders(state.opening, current)
        judgement = self.adaptation.abandon_round(ending.round, ending.fault)
        for decision in judgement.decisions:
            self._effects.add(decision)
        if judgement.model is ModelAction.REVERT:
            why = f"no node could finish round {ending.round}"
            closing.revert_model(state, ending.round - 1, why, self.metric, self._effects)
            state.opening.ordered_codecs.clear()
            state.guards.faults.on_closed()  # the next attempt is another one
        opening.on_abandoned(state, ending, now, self._effects)
        failure = state.guards.faults.on_abandoned(ending)
        if failure:
            self._finish(ev.FinishReason.FAILED, failure)

    def _judged(self, ending: closing.Ending) -> closing.Ending:
        """Return the end of a round with the nodes whose updates may not be used, and record who is suspected."""
        suspicions = self.suspicions
        if not isinstance(ending, ev.CloseRound):
            suspicions.discard()
            self.round_state.usefulness.discard()
            return ending
        judgement = suspicions.judge(ending.round, self.members.connected)
        dispatch.accuse(judgement.accusations, self._effects)
        fragment = self.config.fragment_of(ending.round)
        useful = self.round_state.usefulness.close(fragment, judgement.spoiled_by, judgement.copied)
        self.members.credit(useful)
        return replace(ending, spoiled_by=judgement.spoiled_by, useful=useful)

    def _finish(self, reason: ev.FinishReason, detail: str) -> None:
        state, effects = self.round_state, self._effects
        if state.phase is OVER:
            return
        completed = reason in ev.COMPLETE
        final_state = RunState.COMPLETED if completed else RunState.STOPPED
        state.opening.waiting_for = ""
        effects.round = self.config.shown_round(state.round)
        if state.open_round is not None:
            effects.emit(ev.AbandonRound(state.open_round.number, "the run is over"))
        state.open_round = state.closed_round = None
        late.clear(state.late, WorkReason.RUN_OVER, effects)
        state.spot_checks.clear()
        state.phase, state.control.final_state = OVER, final_state
        text = f"run {final_state}: {reason}" + (f", {detail}" if detail else "")
        effects.record(str(final_state), text, reason=str(reason), detail=detail)
        effects.emit(ev.Finish(reason, detail))
        for member in self.members.connected.values():
            if member.requesting:
                member.requesting = False
                effects.emit(ev.RunOver(member.node_id))

    def _remove(self, node: str, connection: ConnectionState, reason: str, now: float) -> None:
        """Remove a node that left or is lost, and expect no answer from it."""
        state, effects = self.round_state, self._effects
        if self.members.remove(node, connection, reason, now) is None:
            return
        if connection is ConnectionState.LEFT:
            self.deadlines.forget(node)
            late.drop(state.late, node, WorkReason.NODE_GONE, effects)
        connected = len(self.members.connected)
        state.spot_checks.give_up(node, effects)
        text = f"{node} {connection}: {reason} ({connected} connected)"
        effects.record(f"node_{connection}", text, node=node, reason=reason)
        if not connected and not self.finished:
            effects.record("no_nodes", "all nodes disconnected; waiting for nodes")
        opening.reevaluate(state.opening)
        current = state.open_round
        unit = current.units.get(node) if current else None
        if current is not None and unit is not None and unit.live and not current.settings.awaits_return:
            dispatch.drop(current, unit, WorkReason.NODE_GONE, reason, effects)
            self._close_if_complete(current, now)

    def _set_timer(self, at: float) -> None:
        self.round_state.timer_at = at
        if at < math.inf:
            self._effects.emit(ev.SetTimer(at))
