"""Step times of a simulated card."""

import math
from collections import deque
from dataclasses import dataclass

from hypergpu.common.errors import InvalidInput
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.common.step_times import StepTimes, step_times
from hypergpu.node.core.gpu import FASTEST_TFLOPS, GPUSpecs


@dataclass(frozen=True, slots=True)
class Slowdown:
    """A period in which a card is slower: throttled by heat, or a straggler."""

    factor: float
    start: float
    """Start in seconds, on the caller's clock."""
    duration_seconds: float
    kind: str = "straggler"

    def at(self, now: float) -> float:
        """Return the factor by which a step takes longer at `now`.

        Throttling builds up over the first tenth of its duration and fades over the last, as heat does.
        """
        age = now - self.start
        if not 0 <= age < self.duration_seconds:
            return 1.0
        if self.kind != "thermal_throttle" or math.isinf(self.duration_seconds):
            return self.factor
        ramp = self.duration_seconds / 10
        return 1 + (self.factor - 1) * min(1.0, age / ramp, (self.duration_seconds - age) / ramp)


_LEAST_SAMPLE_SHARE = 0.01
"""Smallest time of a sample as a share of its part of a large batch: no sample is free, however noisy the timings."""


def fitted(few: int, few_seconds: float, many: int, many_seconds: float) -> tuple[StepTimes, bool]:
    """Return the step times that fit two timings, and whether the timings are plausible.

    They are implausible if `many` samples take no more time than `few`.

    Raises:
        InvalidInput: timings that are not above 0.
    """
    least = _LEAST_SAMPLE_SHARE * many_seconds / many
    slope = (many_seconds - few_seconds) / (many - few) if many > few else 0.0
    per_sample = max(slope, least)
    return StepTimes(max(0.0, few_seconds - few * per_sample), per_sample), slope > 0


class Lateness:
    """Detects, once, that real steps take longer than simulated ones, so that the card is not simulated."""

    WINDOW = 5
    """Steps per comparison: a single slow one, such as the first, is normal."""
    RATIO = 1.5
    """Ratio of real to simulated time that is too slow; a step has costs besides forward and backward, and a spread."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, float]] = deque(maxlen=self.WINDOW)
        self._reported = False

    def add(self, real_seconds: float, simulated_seconds: float) -> tuple[float, float] | None:
        """Add a step; return the mean real and simulated times if real steps are found too slow."""
        self._recent.append((real_seconds, simulated_seconds))
        if self._reported or len(self._recent) < self.WINDOW:
            return None
        real, simulated = (sum(times) / self.WINDOW for times in zip(*self._recent, strict=True))
        self._reported = real > self.RATIO * simulated
        return (real, simulated) if self._reported else None


class ComputeModel:
    """Step times of a simulated card, from a real timing of this model on this machine.

    The timing represents the fastest preset; a card with 1/k of its float32 throughput takes k times as long. Each step
    is multiplied by a log-normal factor of mean 1, keyed by (seed, node, step).
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
            raise InvalidInput("timings and their spread must be finite and not negative")
        self.specs, self.spread = specs, spread
        self.scale = FASTEST_TFLOPS / specs.tflops
        self._per_step, self._per_sample = seconds_per_step, seconds_per_sample
        self._draws = KeyedRandom(seed, "compute", node_id)
        self._slowdowns: tuple[Slowdown, ...] = ()

    @property
    def step_times(self) -> StepTimes:
        """Time of a step without its spread, slowdowns and optimizer."""
        return step_times(self._per_step * self.scale, self._per_sample * self.scale)

    def step_seconds(self, step: int, batch_size: int, now: float, optimizer_seconds: float = 0.0) -> float:
        """Return the time of step number `step` on `batch_size` samples that starts at `now`.

        Args:
            step: number of the step.
            batch_size: samples.
            now: time at which it starts.
            optimizer_seconds: what its optimizer takes beside the gradients, on the fastest preset.
        """
        base = (self._per_step + self._per_sample * batch_size + optimizer_seconds) * self.scale
        # exp(σz - σ²/2) has mean 1: the spread does not change the average.
        jitter = math.exp(self.spread * self._draws.normal(step) - self.spread**2 / 2) if self.spread else 1.0
        slowdown = math.prod(slow.at(now) for slow in self._slowdowns) if self._slowdowns else 1
        return base * jitter * slowdown

    def throttle(self, now: float, duration_seconds: float = math.inf, factor: float = 1.6) -> None:
        """Slow the card down gradually, as heat does; 1.6 is about the ratio of boost to base clock."""
        self._add(Slowdown(factor, now, duration_seconds, "thermal_throttle"))

    def straggle(self, now: float, duration_seconds: float = math.inf, factor: float = 5.0) -> None:
        """Make the card `factor` times slower at once, as when another job uses the machine."""
        self._add(Slowdown(factor, now, duration_seconds, "straggler"))

    def recover(self) -> None:
        """End all slowdowns."""
        self._slowdowns = ()

    def _add(self, slowdown: Slowdown) -> None:
        if not (slowdown.factor >= 1 and slowdown.duration_seconds > 0):
            raise InvalidInput(
                f"a slowdown must have a factor of at least 1 and a duration above 0, "
                f"not {slowdown.factor} and {slowdown.duration_seconds}"
            )
        running = [old for old in self._slowdowns if slowdown.start < old.start + old.duration_seconds]
        self._slowdowns = (*running, slowdown)
