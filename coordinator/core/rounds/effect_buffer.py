"""Buffer of the effects of one event, and the latest decisions."""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

from hypergpu.coordinator.core.decisions import Decision, DecisionKind, DecisionLog, Figures
from hypergpu.coordinator.core.rounds.events import Effect, RunEvent, UpdateReply, UpdateStatus


class EffectBuffer:
    """Collects effects while an event is handled."""

    def __init__(self, round_number: int, keep: int = 200) -> None:
        self._log = DecisionLog(keep, round_number)
        self.last_reply = UpdateReply("", 0, UpdateStatus.STALE)
        """Reply to the latest update."""
        self._effects: list[Effect] = []

    @property
    def round(self) -> int:
        """Round that run events and decisions are recorded under."""
        return self._log.round

    @round.setter
    def round(self, number: int) -> None:
        self._log.round = number

    @property
    def decisions(self) -> Sequence[Decision]:
        """The latest decisions, newest first."""
        return tuple(reversed(self._log.latest))

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
        self._emit_decision(self._log.decide(kind, subject, reason, figures))

    def add_decision(self, decision: Decision) -> None:
        """Add a decision, whoever took it."""
        self._log.add(decision)
        self._emit_decision(decision)

    def add_decisions(self, decisions: Iterable[Decision]) -> None:
        """Add the decisions of the adaptation."""
        for decision in decisions:
            self.add_decision(decision)

    def _emit_decision(self, decision: Decision) -> None:
        self._effects.append(RunEvent("decision", decision.round, decision.text, decision.record(), decision))
