"""The rounds of a run as a pure state machine: `RoundMachine.handle(event, now) -> list[Effect]`.

It knows nothing of sockets, threads, clocks or tensors. The asyncio engine and the virtual-time simulator drive it
alike: they run the effects and feed what comes of them back as events. Every event costs O(log nodes) at most, but
those that begin or end a round.
"""

import math
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

from common.config.training import TrainingConfig
from coordinator.core import events as ev
from coordinator.core.adaptation import Adaptation
from coordinator.core.deadlines import DeadlineEstimator, DeadlineReason
from coordinator.core.decisions import CLUSTER, Decision, DecisionKind
from coordinator.core.journal import Figures, Journal
from coordinator.core.membership import Member, Membership, Presence
from coordinator.core.shards import ShardTable
from coordinator.core.start import RETRY_SECONDS, RoundStarter
from coordinator.core.work import Order, Round

MAX_RETURNS = 3
"""Times that one node may give the same unit of work up before it is left out of the round."""
MAX_EXTENSIONS = 2
"""Times that a deadline which passed without a quorum is extended, each time to twice as long."""
OUT_OF_MEMORY = "OutOfMemory"
FINAL_REASONS = frozenset({"shutting_down", "leaving"})
"""Reasons of `WorkReturned` after which the node is not asked again in this round."""


class RunState(StrEnum):
    """Where a run stands."""

    WAITING = "waiting"
    TRAINING = "training"
    EVALUATING = "evaluating"
    PAUSED = "paused"
    COMPLETED = "completed"
    STOPPED = "stopped"


class WorkReason(StrEnum):
    """Why a unit of work changed hands, or an update was not used as it came."""

    NODE_GONE = "node_gone"
    GIVEN_UP = "given_up"
    TOO_MANY_ATTEMPTS = "too_many_attempts"
    SMALLER_BATCH = "smaller_batch"
    TAKEN_OVER = "taken_over"
    AFTER_DEADLINE = "after_deadline"
    NOT_ORDERED = "not_ordered"
    WEIGHT_BOUNDED = "weight_bounded"
    USER = "user"


class RoundMachine:
    """Decides everything about rounds: who trains what, what counts, when a round ends, and why.

    Args:
        config: rounds, quorum, batch, steps, learning rate.
        adaptation: chooses the nodes and batch sizes of each round.
        max_nodes: that may be connected at once.
        lost_after_seconds: silence after which a node is lost; None where somebody else tells (`NodeLost`).
        first_round: 1, or where a resumed run goes on.
        shards: the cursors of a resumed run.
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
    ) -> None:
        self.config = config
        self.adaptation = adaptation
        self.members = Membership(max_nodes=max_nodes, lost_after_seconds=lost_after_seconds)
        self.shards = shards or ShardTable()
        self.deadlines = DeadlineEstimator(mads=config.deadline_mads)
        self.round = first_round
        """The round that runs or is to come next; 1 is the first."""
        self.loss = 0.0
        self.accuracy = 0.0
        self.last_round_seconds = 0.0
        self._journal = Journal(first_round)
        self._starter = RoundStarter(
            config=config,
            adaptation=adaptation,
            members=self.members,
            shards=self.shards,
            deadlines=self.deadlines,
            journal=self._journal,
        )
        self._current: Round | None = None
        self._closed: ev.CloseRound | None = None
        self._finished: RunState | None = None
        self._paused = False
        self._timer_at = math.inf
        self._lost_after = lost_after_seconds
        self._handled_at: float | None = None
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
            ev.Tick: self._on_tick,
            ev.Pause: self._on_pause,
            ev.Resume: self._on_resume,
            ev.Stop: self._on_stop,
            ev.RuleSet: self._on_rule,
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
        return tuple(self._current.orders) if self._current else ()

    @property
    def waiting_for(self) -> str:
        """Why no round is running, in words; empty while one is."""
        return self._starter.waiting_for

    @property
    def decisions(self) -> Sequence[Decision]:
        """The latest decisions, newest first."""
        return self._journal.decisions

    def is_working(self, node: str) -> bool:
        """Whether the node holds an order that is still wanted."""
        order = self._current.orders.get(node) if self._current else None
        return order is not None and order.attempt > 0 and not order.done

    def outcome_of(self, node: str, round_number: int) -> ev.Outcome | None:
        """What an update of this unit of work gets without being looked at; None: it is wanted."""
        member = self.members.get(node)
        if member is None or round_number < 1 or round_number > self.round:
            return ev.Outcome.STALE
        if round_number == member.last_accepted:
            return ev.Outcome.DUPLICATE
        if self._current is None or round_number != self._current.number:
            return ev.Outcome.LATE
        order = self._current.orders.get(node)
        if order is None:
            return ev.Outcome.LATE
        return None if order.attempt > 0 else ev.Outcome.STALE

    # ------------------------------------------------------------ events

    def handle(self, event: ev.Event, now: float) -> list[ev.Effect]:
        """Take in one event at time `now` (seconds, never going back) and say what is to be done, in order.

        Raises:
            ResourceExhausted: `NodeJoined` beyond `max_nodes`.
            NotFound: `RuleSet` for a node that never was there.
        """
        self._notice_own_absence(now)
        self._handlers[type(event)](event, now)
        if self._starter.may_start and not self.finished and self._current is None and self._closed is None:
            self._begin(self._starter.try_to_start(self.round, now, paused=self._paused), now)
        self._set_timer()
        return self._journal.take()

    def _on_joined(self, event: ev.NodeJoined, now: float) -> None:
        member, new = self.members.join(event.node, event.incarnation, now)
        member.largest_batch, member.info = event.largest_batch, event.info
        if not new:
            return
        if self._current is not None:
            self._current.reinstate(event.node)
        self._starter.ready(at_once=True)
        connected = len(self.members.connected)
        self._journal.record(
            "node_joined", f"{event.node} joined ({connected} connected)", node=event.node, **event.info
        )

    def _on_seen(self, event: ev.NodeSeen, now: float) -> None:
        self.members.seen(event.node, now)

    def _on_left(self, event: ev.NodeLeft, now: float) -> None:
        self._remove(event.node, Presence.LEFT, event.reason or "left", now)

    def _on_lost(self, event: ev.NodeLost, now: float) -> None:
        self._remove(event.node, Presence.LOST, event.reason, now)

    def _on_requested(self, event: ev.WorkRequested, now: float) -> None:
        if self.finished:
            self._journal.effect(ev.RunOver(event.node))
            return
        if not self.members.seen(event.node, now):
            return
        member = self.members.connected[event.node]
        member.asking = True
        self._starter.is_back(member)
        if self._current is not None:
            self._hand_out(self._current, member, now)

    def _on_request_ended(self, event: ev.RequestEnded, now: float) -> None:
        del now
        member = self.members.get(event.node)
        if member is not None:
            member.asking = False

    def _on_update(self, event: ev.UpdateArrived, now: float) -> None:
        member = self.members.get(event.node)
        outcome = self.outcome_of(event.node, event.round)
        if member is None or outcome is not None or self._current is None:
            self._refuse(event, outcome or ev.Outcome.STALE, member)
            return
        self.members.seen(event.node, now)
        order = self._current.orders[event.node]
        weight = min(event.samples, order.samples)
        if weight < event.samples:
            figures: Figures = {"claimed_samples": event.samples, "ordered_samples": weight}
            self._journal.decide(DecisionKind.UPDATE, event.node, WorkReason.WEIGHT_BOUNDED, figures)
        self.deadlines.observe(event.node, self._current.accept(order, event, weight, now))
        self.shards.advance(order.shard, weight)
        member.last_accepted = event.round
        member.rounds_contributed += 1
        member.compute_seconds = event.compute_seconds
        self._journal.effect(ev.Verdict(event.node, event.round, ev.Outcome.ACCEPTED, weight))
        self._close_if_done(now)
        self._tighten_deadline(now)

    def _on_returned(self, event: ev.WorkReturned, now: float) -> None:
        member = self.members.get(event.node)
        if member is None:
            return
        self.members.seen(event.node, now)
        self._starter.is_back(member)
        current = self._current
        order = current.orders.get(event.node) if current and event.round == current.number else None
        if current is None or order is None or order.done or not order.live or order.attempt == 0:
            return
        member.retries += 1
        order.returns += 1
        text = f"{event.node} gave its work up: {event.reason}" + (f" ({event.detail})" if event.detail else "")
        self._journal.record("work_returned", text, node=event.node, reason=event.reason, detail=event.detail)
        if event.reason in FINAL_REASONS:
            self._drop(current, order, WorkReason.GIVEN_UP, event.reason)
        elif event.reason == OUT_OF_MEMORY and order.batch_size > 1:
            order.batch_size = member.batch_size = order.batch_size // 2
            figures: Figures = {"batch_size": order.batch_size}
            self._journal.decide(DecisionKind.BATCH_SIZE, event.node, WorkReason.SMALLER_BATCH, figures)
        elif order.returns >= MAX_RETURNS:
            self._drop(current, order, WorkReason.TOO_MANY_ATTEMPTS, event.reason)
        if member.asking:
            self._hand_out(current, member, now)
        self._close_if_done(now)

    def _on_evaluated(self, event: ev.Evaluated, now: float) -> None:
        del now
        closed = self._closed
        if closed is None or closed.round != event.round:
            return
        self._closed = None
        if event.loss is not None and not math.isfinite(event.loss):
            hint = "try a lower training.learning_rate"
            self._finish(ev.FinishReason.DIVERGED, f"the loss is {event.loss} after round {event.round}; {hint}")
            return
        self.loss = event.loss if event.loss is not None else self.loss
        self.accuracy = event.accuracy if event.accuracy is not None else self.accuracy
        self._journal.round_closed(closed, event.loss, event.accuracy)
        metrics = {
            "loss": event.loss if event.loss is not None else closed.loss,
            "accuracy": self.accuracy,
            "round_time": closed.seconds,
            "samples": closed.samples,
            "contributions": closed.contributions,
            "update_norms": event.update_norms,
        }
        self._journal.adopt(self.adaptation.post_round_evaluation(closed.round, metrics))
        self.round = self._journal.round = closed.round + 1
        self._starter.ready(at_once=True)
        target = self.config.target_accuracy
        if target is not None and event.accuracy is not None and event.accuracy >= target:
            self._finish(ev.FinishReason.TARGET_REACHED, f"accuracy {event.accuracy:.4f} in round {event.round}")
        elif event.round >= self.config.rounds:
            self._finish(ev.FinishReason.ROUNDS_DONE, f"{event.round} rounds")

    def _on_tick(self, event: ev.Tick, now: float) -> None:
        del event
        for node in self.members.silent(now):
            self._remove(node, Presence.LOST, f"silent for {self._lost_after:g} s", now)
        if self._starter.retry_at <= now:
            self._starter.ready(at_once=True)
        if self._current is not None and now >= self._current.deadline_at:
            self._at_deadline(self._current, now)

    def _on_pause(self, event: ev.Pause, now: float) -> None:
        del event, now
        if not self._paused and not self.finished:
            self._paused = True
            first = "; the running round is finished first" if self._current else ""
            self._journal.record("paused", f"paused by the user{first}")
            self._starter.ready()

    def _on_resume(self, event: ev.Resume, now: float) -> None:
        del event, now
        if self._paused and not self.finished:
            self._paused = False
            self._journal.record("resumed", "resumed by the user")
            self._starter.ready()

    def _on_stop(self, event: ev.Stop, now: float) -> None:
        del now
        if not self.finished:
            self._finish(ev.FinishReason.STOPPED, event.reason)

    def _on_rule(self, event: ev.RuleSet, now: float) -> None:
        del now
        member = self.members.require(event.node)
        if member.rule is not event.rule:
            member.rule = event.rule
            self._journal.decide(DecisionKind.RULE, event.node, WorkReason.USER, {"rule": str(event.rule)})
            self._starter.ready(at_once=True)

    # ------------------------------------------------------------ beginning a round

    def _begin(self, started: Round | None, now: float) -> None:
        """Give work to those who wait for it already; the others get theirs when they ask."""
        if started is None:
            return
        self._current = started
        self._journal.effect(ev.StartRound(started.number, tuple(started.orders), started.deadline_at))
        for node in list(started.orders):
            member = self.members.connected[node]
            if member.asking:
                self._hand_out(started, member, now)

    def _hand_out(self, current: Round, member: Member, now: float) -> None:
        """Give a node that asks its work of this round, if it has any."""
        order = current.orders.get(member.node_id)
        if order is None and member.joined_at >= current.started_at and member.rule is not ev.Rule.EXCLUDE:
            order = self._take_over(current, member)
        if order is None or order.done or not order.live:
            return
        if order.attempt > order.returns:
            member.retries += 1  # it asks again without a word: a broken stream, or a restart
        member.asking = False
        self._journal.effect(current.hand_out(order, now))

    def _take_over(self, current: Round, member: Member) -> Order | None:
        """A node that came during this round gets the work of one that went."""
        taken = current.take_over(member.node_id, member.largest_batch)
        if taken is None:
            return None
        order, former = taken
        member.batch_size = order.batch_size
        member.rounds_selected += 1
        figures: Figures = {"former": former, "shard": order.shard.index}
        self._journal.decide(DecisionKind.REASSIGNMENT, member.node_id, WorkReason.TAKEN_OVER, figures)
        return order

    # ------------------------------------------------------------ ending a round

    def _close_if_done(self, now: float) -> None:
        current = self._current
        if current is None or current.live > 0:
            return
        if not current.contributions:
            self._abandon(current, "nobody is left who could contribute", now)
        elif len(current.contributions) == len(current.orders):
            self._close(current, ev.CloseReason.ALL_CONTRIBUTED, now)
        else:
            self._close(current, ev.CloseReason.SURVIVORS_CONTRIBUTED, now)

    def _at_deadline(self, current: Round, now: float) -> None:
        if current.has_quorum:
            self._close(current, ev.CloseReason.QUORUM_AT_DEADLINE, now)
        elif current.extensions < MAX_EXTENSIONS:
            current.extensions += 1
            current.deadline_at = now + max(now - current.started_at, RETRY_SECONDS)
            figures: Figures = {
                "contributed": len(current.contributions),
                "outstanding": current.live,
                "quorum": current.quorum,
                "seconds": current.deadline_at - current.started_at,
            }
            self._journal.decide(DecisionKind.DEADLINE, CLUSTER, DeadlineReason.EXTENDED, figures)
        elif current.contributions:
            self._close(current, ev.CloseReason.BELOW_QUORUM, now)
        else:
            self._abandon(current, "nobody answered in time", now)

    def _close(self, current: Round, reason: ev.CloseReason, now: float) -> None:
        self._leave_behind(current)
        self._starter.succeeded()
        self.last_round_seconds = now - current.started_at
        last = current.number >= self.config.rounds
        self._closed = ev.CloseRound(
            current.number,
            current.outcome(now),
            reason,
            self.last_round_seconds,
            current.samples,
            current.mean_loss,
            evaluate=last or current.number % self.config.evaluate_every == 0,
        )
        self._journal.effect(self._closed)

    def _abandon(self, current: Round, why: str, now: float) -> None:
        """The round comes to nothing, and starts again later."""
        self._leave_behind(current)
        self._journal.effect(ev.AbandonRound(current.number))
        self._journal.record("round_abandoned", f"round {current.number} will start again: {why}", reason=why)
        self._starter.retry_later(now)
        if self.members.connected:
            self._starter.wait(f"round {current.number} to start again: {why}")
        else:
            self._starter.ready()

    def _leave_behind(self, current: Round) -> None:
        """No round runs any more; who still works on this one is not counted on until it shows up."""
        self._current = None
        for order in current.orders.values():
            member = self.members.connected.get(order.node)
            if member is not None and not order.done and order.live and not member.asking:
                self.members.straggling.add(order.node)

    def _tighten_deadline(self, now: float) -> None:
        """Where nothing was known before the round, its first contributors show how long it takes."""
        current = self._current
        if (
            current is None
            or self._starter.deadline_reason is not DeadlineReason.NOT_MEASURED
            or not current.has_quorum
        ):
            return
        seconds = self.deadlines.after_quorum(now - current.started_at)
        if current.started_at + seconds < current.deadline_at:
            current.deadline_at = current.started_at + seconds
            figures: Figures = {"seconds": seconds, "contributed": len(current.contributions)}
            self._journal.decide(DecisionKind.DEADLINE, CLUSTER, DeadlineReason.AFTER_QUORUM, figures)

    def _finish(self, reason: ev.FinishReason, detail: str) -> None:
        done = reason in (ev.FinishReason.ROUNDS_DONE, ev.FinishReason.TARGET_REACHED)
        self._finished = RunState.COMPLETED if done else RunState.STOPPED
        self._starter.waiting_for = ""
        self._journal.round = min(self.round, self.config.rounds)
        if self._current is not None:
            self._journal.effect(ev.AbandonRound(self._current.number))
        self._current = self._closed = None
        text = f"the run is over: {reason}" + (f", {detail}" if detail else "")
        self._journal.record(str(self._finished), text, reason=str(reason), detail=detail)
        self._journal.effect(ev.Finish(reason, detail))
        for member in self.members.connected.values():
            if member.asking:
                member.asking = False
                self._journal.effect(ev.RunOver(member.node_id))

    # ------------------------------------------------------------ nodes and time

    def _remove(self, node: str, presence: Presence, reason: str, now: float) -> None:
        if self.members.remove(node, presence, reason, now) is None:
            return
        if presence is Presence.LEFT:
            self.deadlines.forget(node)
        connected = len(self.members.connected)
        text = f"{node} {presence}: {reason} ({connected} connected)"
        self._journal.record(f"node_{presence}", text, node=node, reason=reason)
        if not connected and not self.finished:
            self._journal.record("no_nodes", "no node is connected any more; waiting for nodes to join")
            self._starter.ready()
        order = self._current.orders.get(node) if self._current else None
        if self._current is not None and order is not None and order.live:
            self._drop(self._current, order, WorkReason.NODE_GONE, reason)
            self._close_if_done(now)

    def _drop(self, current: Round, order: Order, why: WorkReason, because: str) -> None:
        current.drop(order)
        figures: Figures = {"because": because, "outstanding": current.live}
        self._journal.decide(DecisionKind.REASSIGNMENT, order.node, why, figures)

    def _refuse(self, event: ev.UpdateArrived, outcome: ev.Outcome, member: Member | None) -> None:
        figures: Figures = {"of_round": event.round, "at_round": self.round}
        if member is not None:
            self._starter.is_back(member)
        if member is not None and outcome is ev.Outcome.LATE:
            member.late += 1
            self._journal.decide(DecisionKind.UPDATE, event.node, WorkReason.AFTER_DEADLINE, figures)
        elif member is not None and outcome is ev.Outcome.DUPLICATE:
            member.retries += 1
        elif outcome is ev.Outcome.STALE:
            self._journal.decide(DecisionKind.UPDATE, event.node, WorkReason.NOT_ORDERED, figures)
        detail = f"round {event.round} of {event.node}; the run is at round {self.round}"
        self._journal.effect(ev.Verdict(event.node, event.round, outcome, detail=detail))

    def _notice_own_absence(self, now: float) -> None:
        """After a pause of the whole process, the silence of the others means nothing."""
        before, self._handled_at = self._handled_at, now
        if before is not None and self._lost_after is not None and now - before > 0.5 * self._lost_after:
            self.members.forgive(now)

    def _set_timer(self) -> None:
        due = (self.members.next_silence(), self.deadline_at, self._starter.retry_at)
        at = math.inf if self.finished else min(at for at in due if at is not None)
        if at != self._timer_at:
            self._timer_at = at
            if at < math.inf:
                self._journal.effect(ev.SetTimer(at))
