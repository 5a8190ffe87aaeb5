"""How long a step would take on the card that a node pretends to be."""

import math
from collections import deque
from dataclasses import dataclass

from hypergpu.common.errors import InvalidInput
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.node.core.gpu import FASTEST_TFLOPS, GPUSpecs


@dataclass(frozen=True, slots=True)
class Slowdown:
    """A card that is slower for a while: throttled by heat, or a straggler."""

    factor: float
    start: float
    """Seconds on the caller's scale."""
    duration_seconds: float
    kind: str = "straggler"

    def at(self, now: float) -> float:
        """How many times longer a step takes at `now`.

        Throttling sets in over the first tenth of its time and passes in the last, as heat does.
        """
        age = now - self.start
        if not 0 <= age < self.duration_seconds:
            return 1.0
        if self.kind != "thermal_throttle" or math.isinf(self.duration_seconds):
            return self.factor
        ramp = self.duration_seconds / 10
        return 1 + (self.factor - 1) * min(1.0, age / ramp, (self.duration_seconds - age) / ramp)


_LEAST_SAMPLE_SHARE = 0.01
"""Of the time of a large batch: no sample is free, however noisy the timings."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """What a step takes: a fixed part, and a part for each sample.

    Raises:
        InvalidInput: times that are negative or not finite, or a sample that takes no time.
    """

    seconds_per_step: float
    seconds_per_sample: float

    def __post_init__(self) -> None:
        if not (0 <= self.seconds_per_step < math.inf and 0 < self.seconds_per_sample < math.inf):
            raise InvalidInput(
                f"a step takes time: {self.seconds_per_step} s, and {self.seconds_per_sample} s per sample, can't be"
            )


def fitted(few: int, few_seconds: float, many: int, many_seconds: float) -> tuple[StepTimes, bool]:
    """Return the step times that explain two timings, and whether the timings are plausible.

    They are not where `many` samples take no more time than `few`.

    Raises:
        InvalidInput: timings that are not above 0.
    """
    least = _LEAST_SAMPLE_SHARE * many_seconds / many
    slope = (many_seconds - few_seconds) / (many - few) if many > few else 0.0
    per_sample = max(slope, least)
    return StepTimes(max(0.0, few_seconds - few * per_sample), per_sample), slope > 0


class Lateness:
    """Tells, once, that real steps take longer than the simulated card's, which then is not simulated."""

    WINDOW = 5
    """Steps that are compared together: a single slow one, such as the first, means nothing."""
    RATIO = 1.5
    """Real over simulated time. A step has costs beside forward and backward, and a spread."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, float]] = deque(maxlen=self.WINDOW)
        self._told = False

    def add(self, real_seconds: float, simulated_seconds: float) -> tuple[float, float] | None:
        """Take a step; return the mean real and simulated time of a step when they are to be told."""
        self._recent.append((real_seconds, simulated_seconds))
        if self._told or len(self._recent) < self.WINDOW:
            return None
        real, simulated = (sum(times) / self.WINDOW for times in zip(*self._recent, strict=True))
        self._told = real > self.RATIO * simulated
        return (real, simulated) if self._told else None


class ComputeModel:
    """Step times of a simulated card, from a real timing of this model on this machine.

    The timing stands for the fastest preset; a card of 1/k of its float32 throughput takes k times as long. Each
    step is then spread by a log-normal factor of mean 1, drawn by (seed, node, step).
    """

    def __init__(
        self,
        specs: GPUSpecs,
        *,
        seconds_per_step: float,
        seconds_per_sample: float,
        spread: float = 0.05,
        seed: int = 0,
        node_id: str = "",
    ) -> None:
        if not all(0 <= value < math.inf for value in (spread, seconds_per_step, seconds_per_sample)):
            raise InvalidInput("timings and their spread are finite and not negative")
        self.specs, self.spread = specs, spread
        self.scale = FASTEST_TFLOPS / specs.tflops
        self._per_step, self._per_sample = seconds_per_step, seconds_per_sample
        self._draws = KeyedRandom(seed, "compute", node_id)
        self._slowdowns: tuple[Slowdown, ...] = ()

    def step_seconds(self, step: int, batch_size: int, now: float) -> float:
        """The time that step number `step` on `batch_size` samples takes when it begins at `now`."""
        base = (self._per_step + self._per_sample * batch_size) * self.scale
        # exp(σz - σ²/2) has mean 1, so that a spread changes no average.
        jitter = math.exp(self.spread * self._draws.normal(step) - self.spread**2 / 2) if self.spread else 1.0
        slowdown = math.prod(slow.at(now) for slow in self._slowdowns) if self._slowdowns else 1
        return base * jitter * slowdown

    def throttle(self, now: float, duration_seconds: float = math.inf, factor: float = 1.6) -> None:
        """The card gets hot: it slows down and recovers gradually. 1.6 is about the ratio of boost to base clock."""
        self._add(Slowdown(factor, now, duration_seconds, "thermal_throttle"))

    def straggle(self, now: float, duration_seconds: float = math.inf, factor: float = 5.0) -> None:
        """The node becomes a straggler, `factor` times slower at once, as when another job takes the machine."""
        self._add(Slowdown(factor, now, duration_seconds, "straggler"))

    def recover(self) -> None:
        """End all slowdowns."""
        self._slowdowns = ()

    def _add(self, slowdown: Slowdown) -> None:
        if not (slowdown.factor >= 1 and slowdown.duration_seconds > 0):
            raise InvalidInput(
                f"a slowdown has a factor of at least 1 and a duration above 0, "
                f"not {slowdown.factor} and {slowdown.duration_seconds}"
            )
        running = [old for old in self._slowdowns if slowdown.start < old.start + old.duration_seconds]
        self._slowdowns = (*running, slowdown)
