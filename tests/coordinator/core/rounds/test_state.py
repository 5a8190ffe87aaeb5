"""The table of transitions and the invariants: each entry is taken by a transcript, and each invariant can fail."""

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from hypergpu.common.config.training import TrainingConfig
from hypergpu.common.local_optimizer import LocalOptimizer
from hypergpu.coordinator.core.model.sketch import WIDTH
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.adaptation import FixedAdaptation
from hypergpu.coordinator.core.rounds.closing import MAX_EXTENSIONS
from hypergpu.coordinator.core.rounds.late import LateUnit
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.coordinator.core.rounds.membership import ConnectionState
from hypergpu.coordinator.core.rounds.spot_checks import Check, Dealt
from hypergpu.coordinator.core.rounds.state import TRANSITIONS, Phase, RoundState, RunState
from hypergpu.coordinator.core.rounds.validation import INVARIANTS, ROUND_INVARIANTS, InvariantViolated, validate
from hypergpu.coordinator.core.rounds.work import Round, WorkUnit
from tests.coordinator.core.rounds.test_transcripts import DIRECTORY, replayed
from tools.site.rounds import PAGE, with_diagram


def test_the_table_has_an_entry_for_every_phase_and_event() -> None:
    assert set(TRANSITIONS) == {(phase, event) for phase in Phase for event in get_args(ev.Event)}


def test_the_transcripts_take_every_transition_of_the_table_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {(phase, event, after) for (phase, event), afters in TRANSITIONS.items() for after in afters}
    taken = set()
    handle = RoundMachine.handle

    def recorded(self: RoundMachine, event: ev.Event, now: float) -> list[ev.Effect]:
        before = self.round_state.phase
        effects = handle(self, event, now)
        taken.add((before, type(event), self.round_state.phase))
        return effects

    monkeypatch.setattr(RoundMachine, "handle", recorded)
    for file in DIRECTORY.glob("*.txt"):
        replayed(file.read_text())
    assert sorted(f"{phase} {event.__name__} {after}" for phase, event, after in listed ^ taken) == []


def machine_in(phase: Phase) -> RoundMachine:
    """A machine with nodes a (whose update has arrived), b (which works) and c (which has left), in this phase."""
    config = TrainingConfig(rounds=5, min_nodes=2, local_steps=2, batch_size=8)
    machine = RoundMachine(config, FixedAdaptation(8), lost_after_seconds=100.0)
    events: list[ev.Event] = [ev.NodeJoined("a"), ev.NodeJoined("b"), ev.NodeJoined("c"), ev.NodeLeft("c")]
    events += [ev.WorkRequested("a"), ev.WorkRequested("b")]
    events += [ev.UpdateArrived("a", 1, 1, 16, 1.0, 0.1)]
    if phase is not Phase.OPEN:
        events += [ev.UpdateArrived("b", 1, 1, 16, 1.0, 0.1)]
    if phase is Phase.IDLE:
        events += [ev.Pause(), ev.Evaluated(1, 0.5, 0.5)]
    if phase is Phase.OVER:
        events += [ev.Fail("error")]
    for event in events:
        machine.handle(event, 0.0)
    assert machine.round_state.phase is phase
    return machine


@pytest.mark.parametrize("phase", list(Phase))
def test_the_state_of_a_machine_is_valid(phase: Phase) -> None:
    validate(machine_in(phase).round_state)


def opened(state: RoundState) -> Round:
    assert state.open_round is not None
    return state.open_round


def break_members(state: RoundState, field: str, value: object) -> None:
    setattr(state.members.require("c"), field, value)


def dealt(state: RoundState, *, attempt: int) -> Dealt:
    unit = WorkUnit("b", ev.Shard(0, 2, 0), 8, 2, LocalOptimizer("sgd", 0.1), attempt=attempt)
    return Dealt(Check("a", 1, unit, np.zeros(WIDTH, np.float32), ""), unit, state.round)


LATE_UPDATE = ev.LateUpdate("c", 0, 1, 16, 11.3, loss=1.0, compute_seconds=0.1)
BREAKS: dict[str, tuple[Phase, Callable[[RoundState], object]]] = {
    "a round is open exactly in the open phase": (Phase.OPEN, lambda s: setattr(s, "open_round", None)),
    "a closed round is kept exactly in the closing phase": (Phase.CLOSING, lambda s: setattr(s, "closed_round", None)),
    "the run has a final state exactly when it is over": (
        Phase.OPEN,
        lambda s: setattr(s.control, "final_state", RunState.STOPPED),
    ),
    "the open or closed round is the current one": (Phase.CLOSING, lambda s: setattr(s, "round", 2)),
    "nothing is waited for unless no round is open": (Phase.OPEN, lambda s: setattr(s.opening, "waiting_for", "x")),
    "an idle machine has tried to open a round after every change": (
        Phase.IDLE,
        lambda s: setattr(s.opening, "should_try", True),
    ),
    "the timer is set to what is due next": (Phase.OPEN, lambda s: setattr(s, "timer_at", 1.0)),
    "the connected nodes are those in state connected": (
        Phase.OPEN,
        lambda s: break_members(s, "connection", ConnectionState.CONNECTED),
    ),
    "ready nodes are counted": (Phase.OPEN, lambda s: setattr(s.members, "ready", 3)),
    "only connected nodes are ready or wait for work": (Phase.OPEN, lambda s: break_members(s, "ready", True)),
    "stragglers are connected": (Phase.OPEN, lambda s: s.members.stragglers.update(c=True)),
    "no node waits for work that it has": (
        Phase.OPEN,
        lambda s: setattr(s.members.require("b"), "requesting", True),
    ),
    "no node waits for work after the run": (Phase.OVER, lambda s: setattr(s.members.require("b"), "requesting", True)),
    "a late unit is of an earlier round, not too stale, and the only work of its node": (
        Phase.OPEN,
        lambda s: s.late.units.update(b=LateUnit(0, opened(s).units["b"])),
    ),
    "late units are outstanding, and were assigned": (
        Phase.OPEN,
        lambda s: s.late.units.update(c=LateUnit(1, opened(s).units["a"])),
    ),
    "late updates wait only while no round is open": (Phase.OPEN, lambda s: s.late.merged.append(LATE_UPDATE)),
    "a spot check is the only work of its node, which is connected": (
        Phase.OPEN,
        lambda s: s.spot_checks.dealt.update(b=dealt(s, attempt=1)),
    ),
    "a spot check that no node has begun is of the open round": (
        Phase.IDLE,
        lambda s: s.spot_checks.dealt.update(b=dealt(s, attempt=0)),
    ),
    "reserved units are of nodes without work in the round": (
        Phase.OPEN,
        lambda s: opened(s).reserved.update(a=opened(s).units["a"]),
    ),
    "late updates are of earlier rounds": (
        Phase.OPEN,
        lambda s: opened(s).late.append(replace(LATE_UPDATE, staleness=0)),
    ),
    "no node has contributed to a later round": (Phase.OPEN, lambda s: break_members(s, "last_accepted", 2)),
    "units are kept by node": (Phase.OPEN, lambda s: setattr(opened(s).units["b"], "node", "c")),
    "awaited units are counted": (Phase.OPEN, lambda s: setattr(opened(s), "awaited", 7)),
    "outstanding units of measured nodes are counted": (Phase.OPEN, lambda s: setattr(opened(s), "live_measured", 2)),
    "outstanding units are counted": (Phase.OPEN, lambda s: setattr(opened(s), "live", 2)),
    "an open round has an outstanding unit": (Phase.OPEN, lambda s: setattr(opened(s), "live", 0)),
    "an accepted unit is not outstanding, and was assigned": (
        Phase.OPEN,
        lambda s: setattr(opened(s).units["a"], "attempt", 0),
    ),
    "each accepted unit has one contribution": (Phase.OPEN, lambda s: opened(s).contributions.clear()),
    "samples are those of the contributions": (Phase.OPEN, lambda s: setattr(opened(s), "samples", 15)),
    "no contribution has more samples than were assigned": (
        Phase.OPEN,
        lambda s: setattr(opened(s).units["a"], "batch_size", 1),
    ),
    "units without a node are neither outstanding nor accepted": (
        Phase.OPEN,
        lambda s: opened(s).orphans.update(a=opened(s).units["a"]),
    ),
    "the deadline is not before the start": (Phase.OPEN, lambda s: setattr(opened(s), "started_at", 1e9)),
    "the deadline is extended a limited number of times": (
        Phase.OPEN,
        lambda s: setattr(opened(s), "extensions", MAX_EXTENSIONS + 1),
    ),
}


def test_every_invariant_is_tried() -> None:
    assert BREAKS.keys() == {*INVARIANTS, *ROUND_INVARIANTS}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_invariant_is_named(name: str) -> None:
    phase, break_it = BREAKS[name]
    state = machine_in(phase).round_state
    break_it(state)
    with pytest.raises(InvariantViolated) as raised:
        validate(state)
    assert f"that {name}" in str(raised.value)


def test_the_machine_refuses_a_transition_that_the_table_does_not_list(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = machine_in(Phase.OPEN)
    monkeypatch.setitem(TRANSITIONS, (Phase.OPEN, ev.Stop), (Phase.OPEN,))
    with pytest.raises(RuntimeError, match="Stop led from open to over"):
        machine.handle(ev.Stop("enough"), 0.0)


def test_the_picture_of_the_phases_is_that_of_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_diagram(page), "run: python -m tools.site.rounds"
    assert "    open --> closing: NodeLeft, NodeLost, UpdateArrived,<br>WorkReturned, Tick\n" in page
