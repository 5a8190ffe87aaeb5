"""Main metric of a run: its name, direction of improvement and format."""

import math
from collections.abc import Iterable
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from hypergpu.common.config.section import ConfigSection
from hypergpu.common.text import UNKNOWN, figure, percent

RESERVED: Final = frozenset(
    (
        *("loss", "train_loss", "round", "rounds", "seconds", "ended_seconds", "round_seconds", "reason", "samples"),
        *(
            "contributors",
            "missing",
            "batch_sizes",
            "local_steps",
            "learning_rate",
            "local_optimizer",
            "compute_seconds",
            "waiting_seconds",
            "upload_seconds",
            "compute_utilisation",
            "codec",
            "parameters_codec",
            "noise",
            "connections_down",
            "connections_up",
            "bytes_down",
            "bytes_up",
            "kind",
            "text",
            "metric",
            "metrics",
            "task",
        ),
    )
)
"""Names that a metric cannot have: they are keys of a round's row, where its value stands under its own name."""


def finite(value: object) -> float | None:
    """Return a finite number as a float; None for anything else, including NaN and infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _writable(name: str) -> str:
    if not name.strip() or not name.isprintable() or set(name) & set("<>="):
        raise ValueError(f"{name!r} is not a metric's name: use printable characters other than <, > and =")
    return name


class MetricSpec(ConfigSection):
    """Name, direction and format of a metric."""

    name: Annotated[str, Field(min_length=1, max_length=40), AfterValidator(_writable)] = "accuracy"
    """Name, such as accuracy, mse or perplexity."""
    better: Literal["higher", "lower"] = "higher"
    """Direction of improvement."""
    format: Literal["number", "percent"] = "number"
    """`percent` shows 0.951 as 95.1 %."""
    unit: Annotated[str, Field(max_length=20)] = ""
    """Unit of a plain number."""

    @property
    def is_share(self) -> bool:
        """True if values are shares, written as a percentage."""
        return self.format == "percent"

    def reached(self, value: float | None, target: float) -> bool:
        """Return whether a value is at the target or better; an unknown value is not."""
        if value is None:
            return False
        return value >= target if self.better == "higher" else value <= target

    def gain(self, value: float, over: float) -> float:
        """Return by how much a value is better than another; negative if it is worse."""
        return value - over if self.better == "higher" else over - value

    def best(self, values: Iterable[float | None]) -> float | None:
        """Return the best of the known values."""
        known = [value for value in values if value is not None]
        return (max if self.better == "higher" else min)(known, default=None)

    def worst(self, values: Iterable[float | None]) -> float | None:
        """Return the worst of the known values."""
        known = [value for value in values if value is not None]
        return (min if self.better == "higher" else max)(known, default=None)

    def text(self, value: float | None) -> str:
        """Return a value as text: 95.1 %, 0.4213, 12.5 ms, –."""
        if value is None:
            return UNKNOWN
        if self.is_share:
            return percent(value)
        return f"{figure(value)} {self.unit}".rstrip()

    def label(self, value: float | None) -> str:
        """Return a value with its name: accuracy 95.1 %."""
        return f"{self.name} {self.text(value)}"


ACCURACY: Final = MetricSpec(name="accuracy", better="higher", format="percent")
LOSS: Final = MetricSpec(name="loss", better="lower")
"""Main metric of a task without another one."""
