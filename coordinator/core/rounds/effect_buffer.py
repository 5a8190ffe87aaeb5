"""Buffer of the effects of one event, and the latest decisions."""

from collections import deque
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from hypergpu.coordinator.core.decisions import Decision, DecisionKind
from hypergpu.coordinator.core.rounds.events import Effect, RunEvent, UpdateReply, UpdateStatus

Figures = Mapping[str, float | int | str]


class EffectBuffer:
    """Collects effects while an event is handled."""

    def __init__(self, round_number: int, keep: int = 200) -> None:
        self.round = round_number
        """Round that run events and decisions are recorded under."""
        self.decisions: deque[Decision] = deque(maxlen=keep)
        """The latest decisions, newest first."""
        self.last_reply = UpdateReply("", 0, UpdateStatus.STALE)
        """Reply to the latest update."""
        self._effects: list[Effect] = []

    def drain(self) -> list[Effect]:
        """Return the effects since the last call, in order."""
        drained, self._effects = self._effects, []
        return drained

    def emit(self, effect: Effect) -> None:
        """Add an effect."""
        self._effects.append(effect)

    def reply(self, reply: UpdateReply) -> None:
        """Add the reply to an update."""
        self.last_reply = reply
        self._effects.append(reply)

    def record(self, kind: str, text: str, **fields: Any) -> None:
        """Add a run event."""
        self._effects.append(RunEvent(kind, self.round, text, fields))

    def decide(self, kind: DecisionKind, subject: str, reason: StrEnum, figures: Figures) -> None:
        """Add a decision of the round machine."""
        self.add_decision(Decision(self.round, kind, subject, reason, figures))

    def add_decision(self, decision: Decision) -> None:
        """Add a decision, whoever took it."""
        self.decisions.appendleft(decision)
        self._effects.append(RunEvent("decision", decision.round, decision.text, decision.record(), decision))

    def add_decisions(self, decisions: Iterable[Decision]) -> None:
        """Add the decisions of the adaptation."""
        for decision in decisions:
            self.add_decision(decision)
