"""When a round may begin, with whom and on what: the part of the machine that runs between two rounds."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from hypergpu.common.config.training import TrainingConfig
from hypergpu.coordinator.core.decisions import CLUSTER, DecisionKind
from hypergpu.coordinator.core.overrides import NodeOverride
from hypergpu.coordinator.core.rounds.adaptation import Adaptation, RoundPlan
from hypergpu.coordinator.core.rounds.deadlines import DeadlineEstimator, DeadlineReason
from hypergpu.coordinator.core.rounds.effect_buffer import EffectBuffer
from hypergpu.coordinator.core.rounds.events import AbandonRound, Shard
from hypergpu.coordinator.core.rounds.membership import ConnectionState, Member, Membership
from hypergpu.coordinator.core.rounds.shards import ShardTable
from hypergpu.coordinator.core.rounds.work import Round, WorkUnit

_EXCLUDE: Final = NodeOverride.EXCLUDE  # an enum's member is looked up slowly: not for every node
SHARD_PATIENCE_ROUNDS = 3
"""Rounds for which the shard of a lost node is kept for its return, before the data is cut anew."""
RETRY_SECONDS = 1.0
"""Where no round could begin, the time until the next try; doubled after each that came to nothing."""
LONGEST_RETRY_SECONDS = 60.0
LEAST_PATIENCE_SECONDS = 10.0
"""Once a quorum is ready for the first round, the others get twice the time that it needed, and this at least."""


class RoundOpener:
    """Waits for nodes, lets the adaptation choose, deals shards, plans work units, sets the deadline."""

    def __init__(
        self,
        *,
        config: TrainingConfig,
        adaptation: Adaptation,
        members: Membership,
        shards: ShardTable,
        deadlines: DeadlineEstimator,
        effects: EffectBuffer,
    ) -> None:
        self.config = config
        self.adaptation = adaptation
        self.members = members
        self.shards = shards
        self.deadlines = deadlines
        self.waiting_for = ""
        """Why no round is running, in words; empty while one is."""
        self.should_try = False
        """Something changed since the last try."""
        self.retry_at = math.inf
        """When to try again, though nothing changes."""
        self.deadline_reason: DeadlineReason | None = None
        """What the last deadline rested on."""
        self._effects = effects
        self._first_round_opened = False
        self._ready_by = math.inf
        self._waited_for_stragglers = False
        self._failed_attempts = 0
        self._dealt_version = -1

    def reevaluate(self, *, at_once: bool = False) -> None:
        """Something changed that may let a round begin."""
        self.should_try = True
        if at_once:
            self.retry_at = math.inf

    def failed(self, abandoned: AbandonRound, now: float) -> None:
        """A round came to nothing: not again at once."""
        self._retry_later(now)
        if self.members.connected:
            self.wait(f"round {abandoned.round} to start again: {abandoned.why}")
        else:
            self.reevaluate()

    def _retry_later(self, now: float) -> None:
        seconds = RETRY_SECONDS * 2.0 ** min(
            self._failed_attempts, 30
        )  # of a long wait, it would leave the range of floats
        self.retry_at = now + min(seconds, LONGEST_RETRY_SECONDS)
        self._failed_attempts += 1

    def succeeded(self) -> None:
        """A round was closed: the next one that comes to nothing is tried again soon."""
        self._failed_attempts = 0

    def straggler_returned(self, member: Member) -> None:
        """A node that was late is there again."""
        stragglers = self.members.stragglers
        if member.node_id in stragglers:
            stragglers.discard(member.node_id)
            enough = len(stragglers) <= (1 - self.config.quorum) * len(self.members.connected)
            self.reevaluate(at_once=enough and self._waited_for_stragglers)

    def wait(self, what: str) -> None:
        """Say what is waited for, when it changes."""
        if what != self.waiting_for:
            self.waiting_for = what
            self._effects.record("waiting", f"waiting for {what}")

    def try_to_open(self, number: int, now: float, *, paused: bool) -> Round | None:
        """Begin round `number` if that can be; else `waiting_for` says what is missing."""
        self.should_try = False
        connected = self.members.connected
        needed = 1 if self._first_round_opened else self.config.min_nodes
        if paused:
            self.wait("the user to resume")
        elif len(connected) < needed:
            self._ready_by = math.inf
            self.wait(f"{needed} node{'s' * (needed > 1)} to join: {len(connected) or 'none'} connected")
        elif self.members.ready < needed and not self._ready_wait_expired(needed, now):
            ready = self.members.ready
            missing = needed - ready
            self.wait(f"{missing} node{'s' * (missing > 1)} to get ready: {ready or 'none'} asked for work")
        elif self.retry_at == math.inf or self.retry_at <= now:
            return self._select(number, now)
        return None

    def _ready_wait_expired(self, needed: int, now: float) -> bool:
        """Whether the first round has waited for nodes that joined, and don't ask for work, as long as it should."""
        if self.members.ready < self.config.quorum * needed:
            self._ready_by = math.inf
            return False
        if self._ready_by == math.inf:
            took = now - min(member.joined_at for member in self.members.connected.values() if member.ready)
            self._ready_by = now + max(2 * took, LEAST_PATIENCE_SECONDS)
        if now >= self._ready_by:
            return True
        self.retry_at = self._ready_by
        return False

    def _select(self, number: int, now: float) -> Round | None:
        """Let the adaptation choose among the nodes that are free, and begin."""
        connected = self.members.connected
        ready = [node for node, member in connected.items() if member.ready]
        allowed = [node for node in ready if self.adaptation.override(node) is not _EXCLUDE]
        stragglers = self.members.stragglers
        free = [node for node in allowed if node not in stragglers]
        if not free:
            busy = "excluded, not ready or still busy with a round that is over"
            self.wait(f"a free node: of {len(connected)}, each is {busy}")
            return None
        if len(free) < self.config.quorum * len(allowed) and not self._waited_for_stragglers:
            self._waited_for_stragglers = True
            self.wait(f"more nodes: {len(allowed) - len(free)} are still busy with a round that is over")
            self.retry_at = now + RETRY_SECONDS
            return None
        self._waited_for_stragglers = False
        available = [node for node in ready if node not in stragglers]
        plan = self.adaptation.plan_round(available, number)
        self._effects.adopt(plan.decisions)
        offered = set(available)
        chosen = [node for node in dict.fromkeys(plan.selected) if node in offered]
        if chosen:
            return self._start(number, chosen, plan, now)
        self.wait(f"a node to be selected: none of {len(free)} was")
        self._retry_later(now)
        return None

    def _start(self, number: int, chosen: Sequence[str], plan: RoundPlan, now: float) -> Round:
        self._deal_shards(number)
        self._first_round_opened, self.waiting_for = True, ""
        deadline = self.deadlines.fixed() if plan.wait_for_all else self.deadlines.deadline(chosen)
        units = self._orders(self.shards.assign(chosen), plan)
        text = f"round {number} begins with {len(chosen)} nodes"
        self._effects.record("round_started", text, nodes=len(chosen), deadline_seconds=deadline.seconds)
        if deadline.reason is not self.deadline_reason:
            self.deadline_reason = deadline.reason
            figures: dict[str, float | int | str] = {
                "nodes": len(chosen),
                "seconds": deadline.seconds,
                "median_seconds": deadline.median_seconds,
                "mad_seconds": deadline.mad_seconds,
                "measured_nodes": deadline.measured_nodes,
            }
            self._effects.decide(DecisionKind.DEADLINE, CLUSTER, deadline.reason, figures)
        return Round.begin(number, now, now + deadline.seconds, self.config.quorum, units)

    def _orders(self, shards: Mapping[str, Shard], plan: RoundPlan) -> list[WorkUnit]:
        """What the adaptation plans for each node, or the configured values, within what can work."""
        config, connected, units = self.config, self.members.connected, []
        steps = config.local_steps if plan.local_steps is None else plan.local_steps
        rate = config.learning_rate if plan.learning_rate is None else plan.learning_rate
        # One step sends gradients and more send changes: a round is one or the other.
        steps = 1 if config.local_steps == 1 else max(2, steps)
        for node, shard in shards.items():
            member = connected[node]
            batch = max(1, plan.batch_sizes.get(node, config.batch_size))
            member.batch_size = min(batch, member.largest_batch) if member.largest_batch else batch
            member.rounds_selected += 1
            units.append(WorkUnit(node, shard, member.batch_size, steps, rate, incarnation=member.incarnation))
        return units

    def _deal_shards(self, number: int) -> None:
        """One shard for each node that is there, or was until a few rounds ago."""
        if self.members.version == self._dealt_version:
            return
        lost = [
            member.node_id
            for member in self.members
            if member.connection is ConnectionState.LOST and number - member.last_accepted <= SHARD_PATIENCE_ROUNDS
        ]
        self._dealt_version = -1 if lost else self.members.version
        if self.shards.deal([*self.members.connected, *lost]):
            count = self.shards.count
            self._effects.record("shards_dealt", f"the data is cut into {count} shards", shards=count)
