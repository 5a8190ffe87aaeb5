"""Step times of a real device, from a few passes before the first work.

The coordinator plans the first rounds with them, and knows from the start whether a larger batch costs more. Later
rounds are planned with what the work itself takes.
"""

from collections.abc import Callable
from typing import Final

from hypergpu.common.step_times import StepTimes
from hypergpu.node.core.compute import fitted

_SMALL_BATCH: Final = 16
_LARGE_BATCH: Final = 64
_REPEATS: Final = 3
_LONGEST_SECONDS: Final = 0.5
"""Longest pass over the small batch. Where one takes longer, timing delays the start for more than it is worth."""


def quick_step_times(time_step: Callable[[int], float], most_samples: int) -> StepTimes | None:
    """Return the step times, from the fastest of a few passes over two batches; None if they cannot be told soon.

    Args:
        time_step: times one pass over a number of samples, in seconds.
        most_samples: largest batch.
    """
    many = min(_LARGE_BATCH, most_samples)
    few = min(_SMALL_BATCH, many // 2)
    if few < 2 or (first := time_step(few)) > _LONGEST_SECONDS:  # BatchNorm takes no single sample
        return None
    small = min(first, *(time_step(few) for _ in range(_REPEATS - 1)))
    large = min(time_step(many) for _ in range(_REPEATS))
    return fitted(few, small, many, large)[0] if small > 0 and large > 0 else None
