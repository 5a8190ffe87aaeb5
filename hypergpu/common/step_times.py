"""Time of a step of training on a node, by the number of its samples."""

from dataclasses import dataclass
from typing import Final

from hypergpu.common.errors import InvalidInput

MAX_SECONDS: Final = 1e6
"""Longest time of a part of a step."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Time of a forward and backward pass: a fixed part, and a part per sample.

    Raises:
        InvalidInput: negative or endless times, or a sample that takes no time.
    """

    seconds_per_step: float
    seconds_per_sample: float

    def __post_init__(self) -> None:
        if not (0 <= self.seconds_per_step <= MAX_SECONDS and 0 < self.seconds_per_sample <= MAX_SECONDS):
            raise InvalidInput(
                f"step times must be above 0 s, and {MAX_SECONDS:g} s at most: got {self.seconds_per_step} s and "
                f"{self.seconds_per_sample} s per sample"
            )

    def seconds(self, samples: float) -> float:
        """Return the time of a step on so many samples."""
        return self.seconds_per_step + self.seconds_per_sample * samples

    @property
    def fixed_samples(self) -> float:
        """Number of samples that take as long as the fixed part."""
        return self.seconds_per_step / self.seconds_per_sample


def step_times(seconds_per_step: float, seconds_per_sample: float) -> StepTimes:
    """Return step times of which a sample takes at least a nanosecond."""
    return StepTimes(seconds_per_step, max(seconds_per_sample, 1e-9))
