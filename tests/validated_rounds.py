"""Check of every round machine in a test: after each event its state is valid, and its phase is in the table."""

import pytest

from hypergpu.coordinator.core.rounds.events import Effect, Event
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.coordinator.core.rounds.state import TRANSITIONS
from hypergpu.coordinator.core.rounds.validation import validate


@pytest.fixture(autouse=True)
def validated_rounds(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Validate the state after every event, except in tests that are marked `unvalidated`."""
    if request.node.get_closest_marker("unvalidated"):
        return
    handle = RoundMachine.handle

    def validated(self: RoundMachine, event: Event, now: float) -> list[Effect]:
        before = self.round_state.phase
        effects = handle(self, event, now)
        assert self.round_state.phase in TRANSITIONS[before, type(event)]
        validate(self.round_state)
        return effects

    monkeypatch.setattr(RoundMachine, "handle", validated)
