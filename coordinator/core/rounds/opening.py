"""Opening of a round: when the next one may open, with which nodes, on which work, and with which deadline."""

import math
from collections.abc import Collection, Mapping, Sequence

from hypergpu.common.config.training import TrainingConfig
from hypergpu.common.message import message
from hypergpu.coordinator.core.decisions import CLUSTER, DecisionKind, Figures
from hypergpu.coordinator.core.overrides import NodeOverride
from hypergpu.coordinator.core.rounds.adaptation import Adaptation, RoundPlan
from hypergpu.coordinator.core.rounds.deadlines import Deadline
from hypergpu.coordinator.core.rounds.effect_buffer import EffectBuffer
from hypergpu.coordinator.core.rounds.events import AbandonRound, Shard
from hypergpu.coordinator.core.rounds.local_shards import data_weights
from hypergpu.coordinator.core.rounds.membership import ConnectionState, Member, Membership
from hypergpu.coordinator.core.rounds.state import OPEN, OpeningState, RoundState
from hypergpu.coordinator.core.rounds.work import Round, RoundSettings, WorkUnit

SHARD_RETENTION_ROUNDS = 3
"""Rounds for which the shard of a lost node is kept for its return, before the data is split anew."""
RETRY_SECONDS = 1.0
"""Delay after a failed attempt to open a round, where a round is not shorter; doubled after each further one."""
MAX_RETRY_SECONDS = 60.0
"""Longest delay: a person may be waiting for the run to go on."""
MIN_READY_WAIT_SECONDS = 10.0
"""Shortest wait for the other nodes once a quorum is ready for the first round; usually twice what the quorum took."""


@message
class Open:
    """The next round may open."""

    available: Sequence[str]
    """Nodes that the adaptation may choose from, those that a user excluded among them."""
    allowed: int
    """Number of available nodes that no user excluded."""


@message
class Wait:
    """The next round may not open yet."""

    reason: str
    """Missing condition, in words; empty if it is unchanged."""
    retry_at: float
    """Time of the next attempt if nothing changes; infinite = none."""
    ready_by: float
    """Time until which the first round waits for nodes that have joined."""
    for_stragglers: bool = False
    """The round is held back for stragglers, once."""


def can_open(state: RoundState, config: TrainingConfig, adaptation: Adaptation, now: float) -> Open | Wait:
    """Decide whether the next round may open, and with which nodes. Changes nothing."""
    opening, members = state.opening, state.members
    connected, ready = len(members.connected), members.ready
    needed = 1 if opening.first_round_opened and not config.deterministic else config.min_nodes
    if state.control.paused:
        return Wait("resume: the run is paused", opening.retry_at, opening.ready_by)
    if connected < needed:
        return Wait(f"{_more_nodes(needed - connected)} to join ({connected} connected)", opening.retry_at, math.inf)
    if ready < needed:
        ready_by = _ready_by(opening, members, config.quorum * needed, now)
        if now < ready_by:
            reason = f"{_more_nodes(needed - ready)} to become ready ({ready} ready)"
            return Wait(reason, opening.retry_at if ready_by == math.inf else ready_by, ready_by)
    if now < opening.retry_at < math.inf:
        return Wait("", opening.retry_at, opening.ready_by)
    return _available(state, config, adaptation, now)


def _available(state: RoundState, config: TrainingConfig, adaptation: Adaptation, now: float) -> Open | Wait:
    """Return the nodes that the adaptation may choose from, or wait for them."""
    opening, stragglers, connected = state.opening, state.members.stragglers, state.members.connected
    suspended = state.guards.suspicions.is_suspended
    ready = [node for node, member in connected.items() if member.ready and not suspended(node, state.round)]
    excluded = adaptation.overrides.nodes_with(NodeOverride.EXCLUDE)
    allowed = free = available = ready
    if excluded or stragglers:
        # A probe that is late holds nothing back.
        allowed = [node for node in ready if node not in excluded and stragglers.get(node, True)]
        free = [node for node in allowed if node not in stragglers]
        available = [node for node in ready if node not in stragglers]
    if not free:
        reason = f"an available node: {len(connected)} connected, all excluded, not ready or finishing an earlier round"
        return Wait(reason, opening.retry_at, opening.ready_by)
    if config.is_buffered:  # those that are busy join when they are free
        return Open(allowed_of(ready, excluded), len(free))
    if len(free) < config.quorum * len(allowed) and not opening.waited_for_stragglers:
        busy = len(allowed) - len(free)
        reason = f"{busy} node{'s' * (busy > 1)} to finish an earlier round"
        return Wait(reason, now + _straggler_seconds(state), opening.ready_by, for_stragglers=True)
    return Open(available, len(free))


def allowed_of(nodes: Sequence[str], excluded: Collection[str]) -> Sequence[str]:
    """Return the nodes that no user excluded."""
    return [node for node in nodes if node not in excluded]


def _straggler_seconds(state: RoundState) -> float:
    """Return how long the next round waits for stragglers: as long as a round took, and until they would be lost."""
    lost_after = state.members.lost_after_seconds
    return min(state.latest.round_seconds or RETRY_SECONDS, math.inf if lost_after is None else lost_after)


def _ready_by(opening: OpeningState, members: Membership, quorum: float, now: float) -> float:
    """Time until which the first round waits for nodes to become ready; infinite until a quorum is."""
    if members.ready < quorum:
        return math.inf
    if opening.ready_by < math.inf:
        return opening.ready_by
    elapsed = now - min(member.joined_at for member in members.connected.values() if member.ready)
    return now + max(2 * elapsed, MIN_READY_WAIT_SECONDS)


def _more_nodes(count: int) -> str:
    return f"{count} more node{'s' * (count > 1)}"


def reevaluate(opening: OpeningState, *, at_once: bool = False) -> None:
    """Note that something changed that may let a round open; `at_once` cancels the delay after a failed attempt."""
    opening.should_try = True
    if at_once:
        opening.retry_at = math.inf


def straggler_returned(state: RoundState, member: Member, quorum: float) -> None:
    """Note that a straggler, if the node is one, is available again; one that does a spot check is not yet."""
    stragglers = state.members.stragglers
    if member.node_id in stragglers and member.node_id not in state.spot_checks.dealt:
        del stragglers[member.node_id]
        enough = sum(stragglers.values()) <= (1 - quorum) * len(state.members.connected)
        reevaluate(state.opening, at_once=enough and state.opening.waited_for_stragglers)


def join(state: RoundState, current: Round, member: Member) -> None:
    """Let a node that is free take its reserved unit of the open round, if it has one, on the samples that are due."""
    unit = current.reserved.get(member.node_id)
    if unit is not None:
        member.rounds_selected += 1
        busy = [late.unit.shard for late in state.late.units.values()]
        busy += [other.shard for other in current.units.values() if not other.done]
        current.join(unit, state.shards.assign([member.node_id], busy)[member.node_id], member.incarnation)


def keep_orders(opening: OpeningState, abandoned: Round) -> None:
    """Note the codecs that an abandoned round ordered: an update in one of them may still be on its way."""
    opening.ordered_codecs |= {
        unit.node: unit.earlier_codecs | {unit.codecs.update} for unit in abandoned.units.values() if unit.attempt
    }


def on_abandoned(state: RoundState, abandoned: AbandonRound, now: float, effects: EffectBuffer) -> None:
    """Delay the next attempt after an abandoned round."""
    _retry_later(state, now)
    if state.members.connected:
        _set_waiting(state.opening, f"round {abandoned.round} to restart: {abandoned.why}", effects)
    else:
        reevaluate(state.opening)


def open_round(
    state: RoundState, config: TrainingConfig, adaptation: Adaptation, now: float, effects: EffectBuffer
) -> Round | None:
    """Open the next round if possible and return it; otherwise record what it waits for."""
    opening = state.opening
    opening.should_try = False
    decision = can_open(state, config, adaptation, now)
    if isinstance(decision, Wait):
        _wait(opening, decision, effects)
        return None
    opening.waited_for_stragglers = False
    plan = adaptation.plan_round(decision.available, state.round)
    for taken in plan.decisions:
        effects.add(taken)
    available = set(decision.available)
    selected = [node for node in dict.fromkeys(plan.selected) if node in available]
    chosen = [node for node in selected if node not in state.members.stragglers]
    if not chosen:
        reason = f"a selection: the selector chose no node out of {decision.allowed}"
        _set_waiting(opening, reason, effects)
        _retry_later(state, now)
        return None
    probes = _probes(chosen, plan)
    chosen = _without_checking(state, chosen, plan, probes, effects)
    _deal_shards(state, effects, in_order=config.deterministic)
    busy = [late.unit.shard for late in state.late.units.values()]
    units = _plan_units(state, state.shards.assign(chosen, busy), plan, config, probes)
    deadline = _set_deadline(state, units, plan, effects)
    opening.first_round_opened, opening.waiting_for = True, ""
    for unit in units:
        state.members.connected[unit.node].rounds_selected += 1
    settings = _settings(plan, config, state.round, len(selected))
    state.open_round = Round.open(state.round, now, deadline, units, settings)
    if config.is_buffered:
        busy_nodes = {node: state.shards.shard_of(node) for node in selected if node not in chosen}
        reserved = _plan_units(state, busy_nodes, plan, config, probes)
        state.open_round.reserved = {unit.node: unit for unit in reserved}
    state.open_round.late = state.late.take_merged()
    state.phase = OPEN
    return state.open_round


def _without_checking(
    state: RoundState, chosen: list[str], plan: RoundPlan, probes: Collection[str], effects: EffectBuffer
) -> list[str]:
    """Deal the spot checks that wait; return the chosen nodes without those that do one in place of their work."""
    counts = state.guards.suspicions.counts
    spared = [node for node in chosen if node not in probes and node not in plan.trials and counts(node)]
    members = [state.members.connected[node] for node in spared]
    checking = state.spot_checks.deal(state.round, members, len(chosen), effects)
    return [node for node in chosen if node not in checking] if checking else chosen


def _settings(plan: RoundPlan, config: TrainingConfig, round_number: int, nodes: int) -> RoundSettings:
    """Return the settings of a round that `nodes` take part in or may join: as planned, else as configured."""
    buffer_size = min(nodes, config.buffer_size or math.ceil(nodes / 2)) if config.is_buffered else None
    return RoundSettings(
        quorum=config.quorum,
        close_share=config.close_share if plan.close_share is None else plan.close_share,
        server_momentum=plan.server_momentum,
        optimizer=config.optimizer_at(plan.optimizer or config.first_optimizer, round_number),
        local_steps=_local_steps(plan, config),
        connections=plan.connections,
        buffer_size=buffer_size,
        momentum_every=1 if buffer_size is None else math.ceil(nodes / buffer_size),
        fragment=config.fragment_of(round_number) if config.fragments > 1 else None,
        awaits_return=config.deterministic,
    )


def _wait(opening: OpeningState, decision: Wait, effects: EffectBuffer) -> None:
    """Apply a decision to wait."""
    opening.retry_at, opening.ready_by = decision.retry_at, decision.ready_by
    if decision.for_stragglers:
        opening.waited_for_stragglers = True
    if decision.reason:
        _set_waiting(opening, decision.reason, effects)


def _probes(chosen: Sequence[str], plan: RoundPlan) -> Collection[str]:
    """Return the nodes that the round does not wait for; it waits for all of them if there are no others."""
    probes = set(plan.probes)
    return probes if any(node not in probes for node in chosen) else ()


def _set_deadline(state: RoundState, units: Sequence[WorkUnit], plan: RoundPlan, effects: EffectBuffer) -> Deadline:
    """Return the deadline of a round of these units, and record the start of the round with it."""
    samples = {unit.node: unit.samples for unit in units if unit.awaited}
    for node, seconds in plan.changed_seconds.items():
        state.deadlines.shift(node, seconds)
    if plan.wait_for_all:
        deadline = state.deadlines.fixed(samples)
    else:
        deadline = state.deadlines.deadline(samples, plan.wait_for, plan.transfer_seconds, plan.expected_seconds)
    text = f"round {state.round} started with {len(units)} node{'s' * (len(units) > 1)}"
    effects.record("round_started", text, nodes=len(units), deadline_seconds=deadline.seconds)
    if deadline.reason is not state.opening.deadline_reason:
        state.opening.deadline_reason = deadline.reason
        figures: Figures = {
            "nodes": len(samples),
            "seconds": deadline.seconds,
            "median_seconds": deadline.median_seconds,
            "mad_seconds": deadline.mad_seconds,
            "measured_nodes": deadline.measured_nodes,
        }
        effects.decide(DecisionKind.DEADLINE, CLUSTER, deadline.reason, figures)
    return deadline


def _plan_units(
    state: RoundState,
    shards: Mapping[str, Shard],
    plan: RoundPlan,
    config: TrainingConfig,
    probes: Collection[str],
) -> list[WorkUnit]:
    """Plan a work unit for each node: what the adaptation chose, else the configuration, within what is possible."""
    units = []
    steps = _local_steps(plan, config)
    optimizer = plan.optimizer or config.first_optimizer
    weights = data_weights(state.members.connected, shards) if config.data_is_local else {}
    for node, shard in shards.items():
        member = state.members.connected[node]
        batch = max(1, plan.batch_sizes.get(node, config.batch_size))
        member.batch_size = min(batch, member.largest_batch) if member.largest_batch else batch
        is_trial = steps > 1 and node in plan.trials
        unit = WorkUnit(
            node,
            shard,
            member.batch_size,
            steps if steps == 1 else max(2, plan.node_steps.get(node, steps)),
            config.optimizer_at(plan.trials[node] if is_trial else optimizer, state.round),
            plan.codecs.get(node, state.codecs),
            trial=is_trial,
            earlier_codecs=state.opening.ordered_codecs.get(node, frozenset()),
            awaited=node not in probes,
            is_new=state.deadlines.need(node) is None and node not in plan.expected_seconds,
            incarnation=member.incarnation,
            data_weight=weights.get(node),
        )
        units.append(unit)
    return units


def _local_steps(plan: RoundPlan, config: TrainingConfig) -> int:
    """Return the local steps of a round; with one, nodes send gradients, and all rounds of a run send the same."""
    steps = config.local_steps if plan.local_steps is None else plan.local_steps
    return 1 if config.local_steps == 1 else max(2, steps)


def _deal_shards(state: RoundState, effects: EffectBuffer, *, in_order: bool) -> None:
    """Deal one shard to each node that is connected, or was until a few rounds ago; `in_order` of their names."""
    opening, members = state.opening, state.members
    if members.version == opening.dealt_version:
        return
    lost = [
        member.node_id
        for member in members
        if member.connection is ConnectionState.LOST and state.round - member.last_accepted <= SHARD_RETENTION_ROUNDS
    ]
    opening.dealt_version = -1 if lost else members.version
    nodes = [*members.connected, *lost]
    if state.shards.deal(sorted(nodes) if in_order else nodes):
        count = state.shards.count
        effects.record("shards_dealt", state.shards.summary, shards=count)


def _retry_later(state: RoundState, now: float) -> None:
    """Delay the next attempt, by twice as long as the last time."""
    opening = state.opening
    first = min(state.latest.round_seconds or RETRY_SECONDS, RETRY_SECONDS)
    seconds = first * 2.0 ** min(opening.failed_attempts, 30)  # the bound keeps a long wait in range of floats
    opening.retry_at = now + min(seconds, MAX_RETRY_SECONDS)
    opening.failed_attempts += 1


def _set_waiting(opening: OpeningState, reason: str, effects: EffectBuffer) -> None:
    """Record what the next round waits for, if that has changed."""
    if reason != opening.waiting_for:
        opening.waiting_for = reason
        effects.record("waiting", f"waiting for {reason}")
