"""Closing of a round: when it closes, whether it counts, and what its evaluation means for the run."""

import math
from collections.abc import Mapping
from dataclasses import replace

from hypergpu.common.config.training import TrainingConfig
from hypergpu.common.metric import LOSS, MetricSpec
from hypergpu.common.text import figure
from hypergpu.coordinator.core.decisions import CLUSTER, DecisionKind, Figures
from hypergpu.coordinator.core.rounds.adaptation import ModelAction, RoundReport
from hypergpu.coordinator.core.rounds.deadlines import (
    MAX_EMPTY_ROUND_SECONDS,
    MIN_SLACK_SECONDS,
    OWN_DATA_FACTOR,
    UNMEASURED_FACTOR,
    DeadlineReason,
)
from hypergpu.coordinator.core.rounds.effect_buffer import EffectBuffer
from hypergpu.coordinator.core.rounds.events import (
    AbandonRound,
    CloseReason,
    CloseRound,
    Evaluated,
    FinishReason,
    KeepModel,
    RevertModel,
)
from hypergpu.coordinator.core.rounds.late import clear
from hypergpu.coordinator.core.rounds.membership import Membership
from hypergpu.coordinator.core.rounds.state import RoundState
from hypergpu.coordinator.core.rounds.work import Round, WorkReason
from hypergpu.coordinator.core.score import Score

MAX_EXTENSIONS = 2
"""Times that a deadline without a quorum is extended, each time to twice the time since the round opened, once an
update has arrived in the run."""

FINISH_FACTOR = 16.0
"""Times of a round after which a new node, which the round did not wait for, has to abandon its work."""

Ending = CloseRound | AbandonRound
"""End of a round: it counts, or it is abandoned and restarts later."""


def complete(current: Round, members: Membership, config: TrainingConfig, now: float, effects: EffectBuffer) -> Ending:
    """Return the end of a round in which no update is outstanding."""
    if current.is_empty:
        return _abandon(current, "no remaining node can contribute", members, effects)
    by_all = all(unit.done for unit in current.units.values() if unit.awaited)
    reason = CloseReason.ALL_CONTRIBUTED if by_all else CloseReason.SURVIVORS_CONTRIBUTED
    return _close(current, reason, members, config, now)


def at_deadline(
    current: Round, state: RoundState, config: TrainingConfig, now: float, effects: EffectBuffer
) -> Ending | None:
    """Return the end of the round at its deadline, or extend the deadline while there is no quorum.

    Before the first update of a run, nobody knows whether a round takes seconds or hours: it is extended until one
    arrives, for a day at most.
    """
    awaits_return = current.settings.awaits_return
    if current.has_quorum and not awaits_return:
        return _close(current, CloseReason.QUORUM_AT_DEADLINE, state.members, config, now)
    elapsed = now - current.started_at
    is_first = not current.contributions and state.deadlines.is_unmeasured
    is_waited_for = is_first or awaits_return
    if elapsed < MAX_EMPTY_ROUND_SECONDS if is_waited_for else current.extensions < MAX_EXTENSIONS:
        seconds = elapsed + max(elapsed, MIN_SLACK_SECONDS)
        current.extensions += not is_first
        current.deadline_at = current.started_at + (min(seconds, MAX_EMPTY_ROUND_SECONDS) if is_first else seconds)
        figures: Figures = {
            "contributed": len(current.contributions),
            "outstanding": current.live,
            "quorum": current.settings.quorum,
            "seconds": current.deadline_at - current.started_at,
        }
        effects.decide(DecisionKind.DEADLINE, CLUSTER, DeadlineReason.EXTENDED, figures)
        return None
    if not current.is_empty:
        return _close(current, CloseReason.BELOW_QUORUM, state.members, config, now)
    state.deadlines.record_empty_round(elapsed)
    return _abandon(current, "no update arrived before the deadline", state.members, effects)


def with_enough(current: Round, members: Membership, config: TrainingConfig, now: float) -> CloseRound:
    """Return the end of a round that needs no further update."""
    return _close(current, CloseReason.ENOUGH_CONTRIBUTED, members, config, now)


def shorten_deadline(
    current: Round, state: RoundState, config: TrainingConfig, now: float, effects: EffectBuffer
) -> None:
    """Set a deadline from the time that the updates so far needed, in a round with nodes that were not measured before.

    With alike data, waiting can raise the worth of the round by the share of the missing nodes at most, so that no more
    time than that share pays. Otherwise the missing data is worth more.
    """
    if current.shortest_deadline_at >= current.deadline_at:
        return
    if not current.has_quorum or not current.live or not current.samples:  # updates of trials alone teach nothing
        return
    measured_at = current.shortest_deadline_at if current.live_measured else current.started_at
    factor = OWN_DATA_FACTOR if config.data_is_local else UNMEASURED_FACTOR
    if config.shards_are_alike:
        factor = max(1.0, current.awaited / len(current.contributions))
    seconds = state.deadlines.after_quorum(now - current.started_at, factor)
    deadline_at = max(current.started_at + seconds, measured_at)
    if deadline_at < current.deadline_at:
        current.deadline_at = deadline_at
        figures: Figures = {
            "seconds": deadline_at - current.started_at,
            "contributed": len(current.contributions),
            "measured_seconds": measured_at - current.started_at,
        }
        effects.decide(DecisionKind.DEADLINE, CLUSTER, DeadlineReason.AFTER_QUORUM, figures)


def _close(current: Round, reason: CloseReason, members: Membership, config: TrainingConfig, now: float) -> CloseRound:
    _mark_stragglers(current, members, now)
    last, settings = config.is_last(current.number), current.settings
    return CloseRound(
        current.number,
        current.all_contributions(now),
        reason,
        now - current.started_at,
        current.used_samples,
        current.mean_loss,
        evaluate=last or current.number % config.evaluate_every == 0,
        restarts=members.drain_restarts(now),
        server_momentum=settings.server_momentum,
        momentum_every=settings.momentum_every,
        local_steps=settings.local_steps,
        learning_rate=settings.optimizer.learning_rate,
        local_optimizer=settings.optimizer.name,
        late=tuple(current.late),
    )


def _abandon(current: Round, why: str, members: Membership, effects: EffectBuffer) -> AbandonRound:
    _mark_stragglers(current, members)
    effects.record("round_abandoned", f"restarting round {current.number}: {why}", reason=why)
    return AbandonRound(current.number, why, *current.shared_fault)


def _mark_stragglers(current: Round, members: Membership, now: float = -math.inf) -> None:
    """Exclude nodes that still work on this round from the next ones, until they return.

    Work that the round did not wait for may go on to its deadline, and that of a new node for longer: it shows how long
    the node takes.
    """
    long_after = current.started_at + FINISH_FACTOR * (now - current.started_at)
    for unit in current.units.values():
        member = members.connected.get(unit.node)
        if member is not None and not unit.done and unit.live and not member.requesting:
            members.stragglers[unit.node] = unit.awaited
            if member.assignment is not None and member.assignment.round == current.number:
                until = -math.inf if unit.awaited else current.deadline_at
                until = max(until, long_after) if unit.is_new else until
                member.assignment = replace(member.assignment, deadline_at=current.deadline_at, may_finish_until=until)


def take_evaluation(
    state: RoundState, event: Evaluated, action: ModelAction, spec: MetricSpec, effects: EffectBuffer
) -> tuple[float | None, float | None]:
    """Keep, leave or revert the model; return its loss and metric, None unless they were measured and it stays."""
    guard, loss = state.guards.model, event.loss
    if loss is not None:
        state.guards.improvement.observe(Score(event.round, loss, loss if spec == LOSS else event.metric, spec))
    usable = loss is None or guard.judge(loss)
    if not usable or action is ModelAction.REVERT:
        if action is ModelAction.REVERT:
            guard.reverts = 0  # the adaptation has changed what led there
        found = "training diverged" if loss is None else f"loss is {loss:.4g}"
        revert_model(state, event.round, f"{found} after round {event.round}", spec, effects)
        return None, None
    if loss is None:
        return None, None if spec == LOSS else event.metric
    metric = loss if spec == LOSS else event.metric
    _set_figures(state, loss, metric, event.round)
    if action is ModelAction.KEEP:
        effects.emit(KeepModel(event.round))
        guard.keep(event.round, loss, metric)
    return loss, metric


def revert_model(state: RoundState, done: int, why: str, spec: MetricSpec, effects: EffectBuffer) -> None:
    """Return to the kept model and its figures in the present round, when `done` rounds are done."""
    guard = state.guards.model
    loss, metric = guard.kept_figures
    effects.emit(RevertModel(state.round))
    clear(state.late, WorkReason.MODEL_REVERTED, effects)  # these updates lead on from the model that is given up
    figures = {"kept_round": guard.kept_round, spec.name: metric, "loss": loss}
    effects.record("model_reverted", f"{why}; reverting to {guard.kept_text}", **figures)
    _set_figures(state, loss, metric, done)


def _set_figures(state: RoundState, loss: float | None, metric: float | None, done: int) -> None:
    latest = state.latest
    latest.loss, latest.metric_value, latest.evaluated_round = loss, metric, done


def record_closed(
    closed: CloseRound,
    loss: float | None,
    metric: float | None,
    spec: MetricSpec,
    effects: EffectBuffer,
    *,
    others: Mapping[str, float | None],
) -> None:
    """Record a closed round, with the loss and metric on held-out data where they were measured."""
    contributors = [each.node for each in closed.contributions if each.success]
    missing = [each.node for each in closed.contributions if not each.success]
    figures = f"loss {loss:.4f}" if loss is not None else f"training loss {closed.loss:.4f}"
    if loss is not None and spec != LOSS:
        figures += f", {spec.label(metric)}"
    figures += "".join(f", {name} {figure(value)}" for name, value in others.items())
    effects.record(
        "round_closed",
        f"round {closed.round}: {len(contributors)} of {len(closed.contributions)} nodes in {closed.seconds:.2f} s, "
        f"{figures} ({closed.reason})" + (f", {len(closed.late)} late merged" if closed.late else ""),
        round_seconds=closed.seconds,
        reason=str(closed.reason),
        contributors=contributors,
        missing=missing,
        samples=closed.samples,
        train_loss=closed.loss,
        **{spec.name: metric, "loss": loss},
    )


def round_report(closed: CloseRound, event: Evaluated, metric: float | None, spec: MetricSpec) -> RoundReport:
    """Return what the adaptation learns from a round."""
    return RoundReport(
        round=closed.round,
        loss=event.loss if event.loss is not None else closed.loss,
        evaluated=event.loss is not None,
        metric=metric,
        spec=spec,
        seconds=closed.seconds,
        samples=closed.samples,
        contributions=closed.contributions,
        late=closed.late,
        update_norms=event.update_norms,
        restarts=closed.restarts,
    )


def finish_after(
    state: RoundState, number: int, metric: float | None, config: TrainingConfig, spec: MetricSpec
) -> tuple[FinishReason, str] | None:
    """Return why the run ends after round `number`, with a detail, or None if it continues."""
    target = config.target_accuracy
    if state.guards.model.divergence:
        return FinishReason.DIVERGED, state.guards.model.divergence
    if target is not None and spec.reached(metric, target):
        return FinishReason.TARGET_REACHED, f"{spec.label(metric)} in round {number}"
    if config.is_last(number):
        return FinishReason.ROUNDS_DONE, f"{number} rounds"
    if state.control.stop_reason is not None:
        return FinishReason.STOPPED, state.control.stop_reason
    unimproved = state.guards.improvement.ended(config.patience)
    return (FinishReason.NO_IMPROVEMENT, unimproved) if unimproved else None
