"""Collects the effects of one event, and keeps the latest decisions."""

from collections import deque
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from hypergpu.common.metric import LOSS, MetricSpec
from hypergpu.coordinator.core.decisions import Decision, DecisionKind
from hypergpu.coordinator.core.rounds.events import CloseRound, Effect, RunEvent

Figures = Mapping[str, float | int | str]


class EffectBuffer:
    """What the machine wants done and recorded."""

    def __init__(self, round_number: int, keep: int = 200) -> None:
        self.round = round_number
        self.decisions: deque[Decision] = deque(maxlen=keep)
        """The latest, newest first."""
        self._effects: list[Effect] = []

    def drain(self) -> list[Effect]:
        """The effects since the last call."""
        taken, self._effects = self._effects, []
        return taken

    def emit(self, effect: Effect) -> None:
        """Something to be done."""
        self._effects.append(effect)

    def record(self, kind: str, text: str, **fields: Any) -> None:
        """Something that happened."""
        self._effects.append(RunEvent(kind, self.round, text, fields))

    def decide(self, kind: DecisionKind, subject: str, reason: StrEnum, figures: Figures) -> None:
        """A decision of the machine itself."""
        self.keep(Decision(self.round, kind, subject, reason, figures))

    def keep(self, decision: Decision) -> None:
        """A decision, whoever took it."""
        self.decisions.appendleft(decision)
        self._effects.append(RunEvent("decision", decision.round, decision.text, decision.record(), decision))

    def adopt(self, decisions: Iterable[Decision]) -> None:
        """Record the decisions of an adaptation."""
        for decision in decisions:
            self.keep(decision)

    def round_closed(self, closed: CloseRound, loss: float | None, spec: MetricSpec, metric: float | None) -> None:
        """A round is over and its step is taken; loss and metric on held-out data, where they were measured."""
        there = [c.node for c in closed.contributions if c.success]
        missing = [c.node for c in closed.contributions if not c.success]
        figures = f"loss {loss:.4f}" if loss is not None else f"training loss {closed.loss:.4f}"
        if loss is not None and spec != LOSS:
            figures += f", {spec.label(metric)}"
        self.record(
            "round_closed",
            f"round {closed.round}: {len(there)} of {len(closed.contributions)} nodes in {closed.seconds:.2f} s, "
            f"{figures} ({closed.reason})",
            round_seconds=closed.seconds,
            reason=str(closed.reason),
            contributors=there,
            missing=missing,
            samples=closed.samples,
            train_loss=closed.loss,
            **{spec.name: metric, "loss": loss},
        )
