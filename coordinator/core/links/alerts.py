"""Alerts about links. An alert opens when its condition begins, is updated while it lasts, and closes when it ends."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum

from hypergpu.common.errors import UnknownName


class Severity(IntEnum):
    """Severity of an alert."""

    LOW = 1
    MEDIUM = 2
    HIGH = 3

    @classmethod
    def named(cls, name: "str | Severity") -> "Severity":
        """Return the severity with this name, ignoring case.

        Raises:
            UnknownName: There is no such severity.
        """
        if isinstance(name, cls):
            return name
        try:
            return cls[str(name).upper()]
        except KeyError:
            raise UnknownName("severity", str(name), [level.name.lower() for level in cls]) from None


class AlertKind(StrEnum):
    """Condition that an alert reports."""

    OFFLINE = "offline"
    CRITICAL_QUALITY = "critical_quality"
    HIGH_LOSS = "high_loss"
    DEGRADING = "degrading"


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert. Times are seconds on the monitor's clock."""

    node_id: str
    kind: AlertKind
    severity: Severity
    opened_at: float
    figures: Mapping[str, float]
    """Figures at the last update by name; the name includes the unit."""
    closed_at: float | None = None

    @property
    def message(self) -> str:
        """Alert as one line of text."""
        figures = ", ".join(f"{name} {value:.4g}" for name, value in self.figures.items())
        return f"{self.node_id}: {self.kind.replace('_', ' ')} ({figures})"


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition that holds now and requires an open alert."""

    node_id: str
    kind: AlertKind
    severity: Severity
    figures: Mapping[str, float]


class AlertLog:
    """Open alerts and the most recently closed ones."""

    def __init__(self, history: int = 1000) -> None:
        self._open: dict[tuple[str, AlertKind], Alert] = {}
        self._closed: deque[Alert] = deque(maxlen=history)

    def updated(self, conditions: Iterable[Condition], now: float) -> "AlertLog":
        """Return a new log with open alerts for exactly these conditions; all other alerts are closed at `now`."""
        log = AlertLog()
        log._closed = self._closed.copy()
        current = {(condition.node_id, condition.kind): condition for condition in conditions}
        for key, alert in self._open.items():
            if key in current:
                log._open[key] = alert
            else:
                log._closed.append(replace(alert, closed_at=now))
        for key, condition in current.items():
            opened_at = log._open[key].opened_at if key in log._open else now
            log._open[key] = Alert(condition.node_id, condition.kind, condition.severity, opened_at, condition.figures)
        return log

    def nodes_with(self, kind: AlertKind) -> list[str]:
        """Return the nodes with an open alert of this kind."""
        return [node_id for node_id, open_kind in self._open if open_kind is kind]

    def alerts(self, least: Severity, *, include_closed: bool = False) -> list[Alert]:
        """Return the alerts of at least this severity, the most severe first, then the oldest."""
        every = [*self._open.values(), *(self._closed if include_closed else ())]
        wanted = [alert for alert in every if alert.severity >= least]
        return sorted(wanted, key=lambda alert: (-alert.severity, alert.opened_at, alert.node_id))
