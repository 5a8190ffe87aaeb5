"""Report of a node about the samples that it alone holds, as far as its user permits one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

ReportedData = Literal["none", "count", "classes"]
"""Figures of a node's own samples that it sends to the coordinator."""
MAX_CLASSES: Final = 1000
"""Most classes in a report: as many as ImageNet has. With more, a report has their total alone."""


@dataclass(frozen=True, slots=True)
class DataReport:
    """Figures of a node's own samples."""

    samples: int
    """Number of samples, at least 1."""
    classes: Mapping[int, int] = field(default_factory=dict)
    """Number of samples by class; empty if it was not reported."""
