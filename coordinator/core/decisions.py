"""A decision and why it was taken: one record for the log, the metrics, the report and the status line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

CLUSTER = "cluster"
"""The subject of a decision that concerns no single node."""


class DecisionKind(StrEnum):
    """What was decided."""

    SELECTION = "selection"
    BATCH_SIZE = "batch_size"
    LOCAL_STEPS = "local_steps"
    LEARNING_RATE = "learning_rate"
    QUARANTINE = "quarantine"
    QUALITY = "quality"
    PHASE = "phase"
    POLICY = "policy"
    ROLLBACK = "rollback"
    SNAPSHOT = "snapshot"
    COMPRESSION = "compression"
    DEADLINE = "deadline"
    ROUND = "round"
    REASSIGNMENT = "reassignment"
    UPDATE = "update"
    MEMBERSHIP = "membership"
    RULE = "rule"


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision. `reason` is a member of the deciding part's own enum: closed, so that it can label a metric."""

    round: int
    kind: DecisionKind
    subject: str
    """A node id, or `CLUSTER`."""
    reason: StrEnum
    figures: Mapping[str, float | int | str] = field(default_factory=dict)
    """The numbers behind it, by name, with the unit in the name."""

    @property
    def detail(self) -> str:
        """The figures in words: `latency_ms 212.5, loss_rate 0.03`."""
        return ", ".join(f"{name} {_short(value)}" for name, value in self.figures.items())

    @property
    def text(self) -> str:
        """One line for people."""
        detail = self.detail
        return f"{self.kind} {self.subject}: {self.reason}" + (f" ({detail})" if detail else "")

    def record(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "round": self.round,
            "kind": str(self.kind),
            "subject": self.subject,
            "reason": str(self.reason),
            "figures": dict(self.figures),
        }


def _short(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
