"""Buffer of the effects of one event, and the latest decisions."""

from typing import Any

from hypergpu.coordinator.core.decisions import Decision, DecisionLog
from hypergpu.coordinator.core.rounds.events import Effect, RunEvent, UpdateReply, UpdateStatus


class EffectBuffer(DecisionLog):
    """Collects effects while an event is handled. A decision is one of them."""

    def __init__(self, round_number: int, keep: int = 200) -> None:
        super().__init__(keep, round_number)
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

    def add(self, decision: Decision) -> None:
        """Add a decision, whoever took it."""
        super().add(decision)
        self._effects.append(RunEvent("decision", decision.round, decision.text, decision.to_dict(), decision))
