"""Goodput: learning progress per second, and the round plan that maximises it.

Progress of a round = steps/(1 + steps/drift) · B/(B + φ), where B is the total batch of a step and φ the gradient noise
scale. The second factor is the efficiency of a batch (McCandlish et al., "An empirical model of large-batch training",
2018; Qiao et al., "Pollux", OSDI 2021). The first factor models the falling worth of local steps as nodes drift apart.
A synchronous round lasts as long as its slowest node, so batches are sized for equal finish times (Chen et al.,
"LB-BSP", SoCC 2020).
"""

import math
from dataclasses import dataclass

import numpy as np

from hypergpu.coordinator.core.node_arrays import Floats, Ints

_BARRIERS = np.geomspace(0.4, 4.0, 12)
"""Candidate durations of the computing part, relative to its present one."""
_SHORT_BARRIERS = np.geomspace(0.4, 1.0, 8)
"""The same where local steps may change: more of them use the time better than larger batches."""

_MOST_ENDS = 50.0
"""Limit of the exponent λt: beyond it, work never finishes, and e^λt would overflow a float."""


def batch_progress(total_batch: Floats | float, noise_scale: float) -> Floats | float:
    """Return the worth of a step on `total_batch` samples, 0 to 1, at the learning rate that fits the batch."""
    return total_batch / (total_batch + noise_scale)


def steps_progress(steps: float, drift_steps: float) -> float:
    """Return the worth of `steps` local steps in global steps; half of it is lost at `drift_steps`."""
    return steps / (1.0 + steps / drift_steps)


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of a local step on each node: fixed + per_sample · batch.

    Below `doubtful_below` samples the cost falls half as fast: the fixed part is a guess there, and the cautious guess
    is that a smaller batch saves less than its share.
    """

    fixed: Floats
    per_sample: Floats
    doubtful_below: Floats | float = 0.0
    restarts_per_second: float = 0.0
    """Rate at which a node process ends."""

    def seconds(self, batches: Floats | Ints) -> Floats:
        """Return the seconds of a step on these batches."""
        doubtful = np.maximum(self.doubtful_below - batches, 0.0)
        cost: Floats = self.fixed + self.per_sample * (batches + 0.5 * doubtful)
        return cost

    def expected(self, seconds: Floats) -> Floats:
        """Return the expected seconds to finish work that restarts whenever the node process ends: (e^λt - 1) / λ."""
        rate = self.restarts_per_second
        return np.expm1(np.minimum(rate * seconds, _MOST_ENDS)) / rate if rate > 0 else seconds


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """Local steps and batch sizes of a round, with its expected duration and progress."""

    steps: int
    batches: Ints
    seconds: float
    progress: float

    @property
    def goodput(self) -> float:
        """Progress per second."""
        return self.progress / max(self.seconds, 1e-9)


def evaluate(
    steps: int, batches: Ints, communication_seconds: Floats, cost: StepCost, *, noise_scale: float, drift_steps: float
) -> RoundPlan:
    """Return the plan of a round with these sizes, with its expected duration and progress."""
    seconds = float(np.max(cost.expected(communication_seconds + steps * cost.seconds(batches))))
    total = float(batches.sum())
    return RoundPlan(
        steps, batches, seconds, steps_progress(steps, drift_steps) * float(batch_progress(total, noise_scale))
    )


def switching_penalty(seconds: Floats | float, now_seconds: float, rounds: int) -> Floats | float:
    """Return the factor by which the goodput of a longer round must exceed the present one after `rounds` rounds.

    Progress counts when a round ends, and a target is reached in the middle of a round on average. Half of the
    additional duration is therefore lost once, spread over the `rounds` of the present length so far. Shorter rounds
    cost nothing.
    """
    longer = np.maximum(0.0, np.asarray(seconds) / max(now_seconds, 1e-9) - 1.0)
    factor: Floats = 1.0 + longer / (2.0 * max(rounds, 1))
    return factor


def best_plan(
    now: RoundPlan,
    communication_seconds: Floats,
    cost: StepCost,
    *,
    least: Ints,
    most: Ints,
    steps: tuple[int, int],
    noise_scale: float,
    drift_steps: float,
    rounds: int,
) -> RoundPlan:
    """Return the plan with the most progress per second, with `switching_penalty` towards longer rounds.

    Args:
        now: Present plan, which is one of the candidates.
        communication_seconds: Expected communication of each node, with a margin for its spread.
        cost: Cost of a step on each node.
        least: Smallest batch of each node.
        most: Largest batch of each node.
        steps: Smallest and largest number of local steps.
        noise_scale: Gradient noise scale φ in samples.
        drift_steps: Local steps at which half of their worth is lost.
        rounds: Number of rounds so far.
    """
    best, most_worth = now, now.goodput
    barriers = _BARRIERS if steps[0] == steps[1] else _SHORT_BARRIERS
    for count in step_candidates(*steps):
        compute = count * cost.seconds(now.batches)
        longest = float(compute.max())
        barrier = float((communication_seconds + compute).max())
        # Each node computes until the barrier; a node with idle time before it gets more samples.
        allowed = barrier + (barriers[:, None] - 1.0) * longest - communication_seconds
        fitting = (allowed / count - cost.fixed) / np.maximum(cost.per_sample, 1e-12)
        batches = np.clip(fitting, least, most).astype(np.int64)
        seconds = cost.expected(communication_seconds + count * cost.seconds(batches)).max(axis=1)
        rates = batch_progress(batches.sum(axis=1), noise_scale) / np.maximum(seconds, 1e-9)
        rates = rates / switching_penalty(seconds, now.seconds, rounds)
        plan = evaluate(
            count,
            batches[int(np.argmax(rates))],
            communication_seconds,
            cost,
            noise_scale=noise_scale,
            drift_steps=drift_steps,
        )
        worth = plan.goodput / float(switching_penalty(plan.seconds, now.seconds, rounds))
        if worth > most_worth:
            best, most_worth = plan, worth
    return best


def step_candidates(least: int, most: int) -> list[int]:
    """Return up to eight numbers of steps from `least` to `most` in a geometric series."""
    return sorted({round(value) for value in np.geomspace(least, most, 8)})


class NoiseScale:
    """Estimator of φ = tr(Σ)/|G|² from the norms of the nodes' updates and of their mean.

    An update is G plus independent noise, and the mean has less noise; the difference separates G from the noise
    (McCandlish et al., appendix A.1, with nodes as the small batches). Different data on the nodes adds to the noise,
    and rightly so: averaging over more nodes then helps more. Numerator and denominator are smoothed separately, since
    their ratio is biased.
    """

    def __init__(self, memory: float = 0.8) -> None:
        self._memory = memory
        self._noise = self._signal = self._weight = 0.0

    def observe(self, mean_square_norm: float, square_norm_of_mean: float, nodes: int, samples_per_node: float) -> None:
        """Record a round: mean of |updateᵢ|², |mean update|², number of nodes and samples per update."""
        finite = math.isfinite(mean_square_norm) and math.isfinite(square_norm_of_mean)
        if nodes < 2 or samples_per_node <= 0 or not finite:
            return
        noise = (mean_square_norm - square_norm_of_mean) * nodes / (nodes - 1) * samples_per_node
        signal = (nodes * square_norm_of_mean - mean_square_norm) / (nodes - 1)
        self._noise = self._memory * self._noise + noise
        self._signal = self._memory * self._signal + signal
        self._weight = self._memory * self._weight + 1.0

    def value(self, prior: float) -> float:
        """Return φ in samples, drawn towards `prior` while data is scarce, and within [1/16, 16] times `prior`."""
        if self._weight == 0.0 or self._noise <= 0.0:
            return prior
        estimate = self._noise / max(self._signal, 1e-3 * self._noise / (16.0 * prior))
        bounded = min(max(estimate, prior / 16.0), 16.0 * prior)
        trust = min(self._weight / 4.0, 0.75)
        return float(prior ** (1.0 - trust) * bounded**trust)
