"""Decisions and their reasons: one record for the log, the metrics, the report and the status line."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Figures = Mapping[str, float | int | str]
"""Numbers behind a decision, by name, with the unit in the name."""

CLUSTER = "cluster"
"""Subject of a decision about the whole cluster."""


class DecisionKind(StrEnum):
    """Subject matter of a decision."""

    SELECTION = "selection"
    BATCH_SIZE = "batch_size"
    LOCAL_STEPS = "local_steps"
    LEARNING_RATE = "learning_rate"
    OPTIMIZER = "optimizer"
    QUARANTINE = "quarantine"
    QUALITY = "quality"
    PHASE = "phase"
    POLICY = "policy"
    ROLLBACK = "rollback"
    COMPRESSION = "compression"
    CONNECTIONS = "connections"
    DEADLINE = "deadline"
    ROUND = "round"
    REASSIGNMENT = "reassignment"
    UPDATE = "update"
    MEMBERSHIP = "membership"
    RULE = "rule"
    REHEARSAL = "rehearsal"
    SPOT_CHECK = "spot_check"


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision.

    `reason` is a member of an enum of the part that decided. The set of values is closed, so it can label a metric.
    """

    round: int
    kind: DecisionKind
    subject: str
    """Node id, or `CLUSTER`."""
    reason: StrEnum
    figures: Figures = field(default_factory=dict)
    """Numbers behind the decision by name; the name includes the unit."""

    @property
    def detail(self) -> str:
        """Figures as text, for example `latency_ms 212.5, loss_rate 0.03`."""
        return ", ".join(f"{name} {_short(value)}" for name, value in self.figures.items())

    @property
    def text(self) -> str:
        """Decision as one line of text."""
        detail = self.detail
        return f"{self.kind} {self.subject}: {self.reason}" + (f" ({detail})" if detail else "")

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as a JSON object."""
        return {
            "round": self.round,
            "kind": str(self.kind),
            "subject": self.subject,
            "reason": str(self.reason),
            "figures": dict(self.figures),
        }


class DecisionLog:
    """The latest decisions, each recorded under a round."""

    def __init__(self, keep: int, round_number: int = -1) -> None:
        self.round = round_number
        """Round that decisions are recorded under."""
        self.latest: deque[Decision] = deque(maxlen=keep)
        """The latest decisions, newest last."""

    def decide(self, kind: DecisionKind, subject: str, reason: StrEnum, figures: Figures) -> None:
        """Take a decision, and record it."""
        self.add(Decision(self.round, kind, subject, reason, figures))

    def add(self, decision: Decision) -> None:
        """Record a decision, whoever took it."""
        self.latest.append(decision)


def _short(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
