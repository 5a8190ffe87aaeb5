"""Invariants of the round machine's state, which hold between any two events.

Tests check them after every event (`tests/conftest.py`); a run does not, since a check costs O(nodes).
"""

from collections.abc import Callable, Mapping
from typing import Final

from hypergpu.coordinator.core.rounds.closing import MAX_EXTENSIONS
from hypergpu.coordinator.core.rounds.membership import ConnectionState
from hypergpu.coordinator.core.rounds.state import CLOSING, IDLE, OPEN, OVER, RoundState
from hypergpu.coordinator.core.rounds.work import Round

Check = Callable[[RoundState], bool]
RoundCheck = Callable[[Round], bool]


class InvariantViolated(Exception):
    """The state of the round machine contradicts itself: a defect of the machine."""


def validate(state: RoundState) -> None:
    """Check every invariant.

    Raises:
        InvariantViolated: names each invariant that does not hold.
    """
    current = state.open_round
    broken = [name for name, holds in INVARIANTS.items() if not holds(state)]
    if current is not None:
        broken += [name for name, holds in ROUND_INVARIANTS.items() if not holds(current)]
    if broken:
        raise InvariantViolated(f"round {state.round}, {state.phase}: not true that {'; that '.join(broken)}")


def _only_connected_nodes_are_ready_or_waiting(state: RoundState) -> bool:
    connected = state.members.connected
    return all(m.node_id in connected or not (m.ready or m.requesting) for m in state.members)


def _no_node_waits_for_work_that_it_has(state: RoundState) -> bool:
    units = state.open_round.units if state.open_round else {}
    waiting = (m.node_id for m in state.members.connected.values() if m.requesting)
    return not any((unit := units.get(node)) is not None and unit.live and not unit.done for node in waiting)


def _checks_are_the_only_work_of_their_nodes(state: RoundState) -> bool:
    dealt, units = state.spot_checks.dealt, state.open_round.units if state.open_round else {}
    return dealt.keys() <= state.members.connected.keys() and not dealt.keys() & (
        units.keys() | state.late.units.keys()
    )


def _samples_are_within_what_was_assigned(current: Round) -> bool:
    assigned = {unit.node: unit.samples for unit in current.units.values()}
    return all(0 <= each.samples <= assigned[each.node] for each in current.contributions)


def _late_units_may_count(state: RoundState) -> bool:
    late, working = state.late, state.open_round.units if state.open_round else {}
    ages = (state.merging_round - each.round for each in late.units.values())
    return all(0 < age <= late.max_staleness + 1 for age in ages) and not working.keys() & late.units.keys()


INVARIANTS: Final[Mapping[str, Check]] = {
    "a round is open exactly in the open phase": lambda s: (s.open_round is not None) == (s.phase is OPEN),
    "a closed round is kept exactly in the closing phase": lambda s: (
        (s.closed_round is not None) == (s.phase is CLOSING)
    ),
    "the run has a final state exactly when it is over": lambda s: (
        (s.control.final_state is not None) == (s.phase is OVER)
    ),
    "the open or closed round is the current one": lambda s: (
        (s.open_round is None or s.open_round.number == s.round)
        and (s.closed_round is None or s.closed_round.round == s.round)
    ),
    "nothing is waited for unless no round is open": lambda s: s.phase is IDLE or not s.opening.waiting_for,
    "an idle machine has tried to open a round after every change": lambda s: (
        s.phase is not IDLE or s.control.suspended or not s.opening.should_try
    ),
    "the timer is set to what is due next": lambda s: s.timer_at == s.next_due(),
    "the connected nodes are those in state connected": lambda s: all(
        (m.connection is ConnectionState.CONNECTED) == (m.node_id in s.members.connected) for m in s.members
    ),
    "ready nodes are counted": lambda s: s.members.ready == sum(m.ready for m in s.members.connected.values()),
    "only connected nodes are ready or wait for work": _only_connected_nodes_are_ready_or_waiting,
    "stragglers are connected": lambda s: s.members.stragglers.keys() <= s.members.connected.keys(),
    "no node waits for work that it has": _no_node_waits_for_work_that_it_has,
    "no node waits for work after the run": lambda s: s.phase is not OVER or not any(m.requesting for m in s.members),
    "a late unit is of an earlier round, not too stale, and the only work of its node": _late_units_may_count,
    "late units are outstanding, and were assigned": lambda s: all(
        each.unit.live and not each.unit.done and each.unit.attempt > 0 for each in s.late.units.values()
    ),
    "a spot check is the only work of its node, which is connected": _checks_are_the_only_work_of_their_nodes,
    "a spot check that no node has begun is of the open round": lambda s: all(
        each.unit.attempt or (s.phase is OPEN and each.round == s.round) for each in s.spot_checks.dealt.values()
    ),
    "late updates wait only while no round is open": lambda s: s.phase is not OPEN or not s.late.merged,
    "no node has contributed to a later round": lambda s: all(m.last_accepted <= s.round for m in s.members),
}
"""Invariants of the whole state, by name."""

ROUND_INVARIANTS: Final[Mapping[str, RoundCheck]] = {
    "units are kept by node": lambda r: all(unit.node == node for node, unit in r.units.items()),
    "outstanding units are counted": lambda r: r.live == sum(unit.live and unit.awaited for unit in r.units.values()),
    "outstanding units of measured nodes are counted": lambda r: (
        r.live_measured == sum(unit.live and unit.awaited and not unit.is_new for unit in r.units.values())
    ),
    "awaited units are counted": lambda r: r.awaited == sum(unit.awaited for unit in r.units.values()),
    "an open round has an outstanding unit": lambda r: r.live > 0,
    "an accepted unit is not outstanding, and was assigned": lambda r: all(
        not unit.live and unit.attempt > 0 for unit in r.units.values() if unit.done
    ),
    "each accepted unit has one contribution": lambda r: (
        sorted(each.node for each in r.contributions) == sorted(unit.node for unit in r.units.values() if unit.done)
    ),
    "reserved units are of nodes without work in the round": lambda r: not r.reserved.keys() & r.units.keys(),
    "late updates are of earlier rounds": lambda r: all(
        each.round < r.number and each.staleness >= 1 and each.weight > 0 for each in r.late
    ),
    "samples are those of the contributions": lambda r: r.samples == sum(each.samples for each in r.contributions),
    "no contribution has more samples than were assigned": _samples_are_within_what_was_assigned,
    "units without a node are neither outstanding nor accepted": lambda r: (
        r.orphans.items() == {node: unit for node, unit in r.units.items() if not unit.live and not unit.done}.items()
    ),
    "the deadline is not before the start": lambda r: r.started_at <= r.deadline_at,
    "the deadline is extended a limited number of times": lambda r: 0 <= r.extensions <= MAX_EXTENSIONS,
}
"""Invariants of an open round, by name."""
