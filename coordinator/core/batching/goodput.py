"""Goodput: learning progress per second, and the plan of a round that maximises it.

Progress of a round = steps/(1 + steps/drift) · B/(B + φ), where B is the total batch of a step and φ the gradient noise
scale: the second factor is the efficiency of a batch (McCandlish et al., "An empirical model of large-batch training",
2018; Qiao et al., "Pollux", OSDI 2021), the first says that local steps are worth less the further nodes drift apart.
A synchronous round lasts as long as its slowest node, so batches are sized for equal finish times (Chen et al.,
"LB-BSP", SoCC 2020).
"""

import math
from dataclasses import dataclass

import numpy as np

from hypergpu.coordinator.core.node_arrays import Floats, Ints

_BARRIERS = np.geomspace(0.4, 4.0, 12)
"""Lengths of the compute part that are tried, relative to the one at the present sizes."""

_MOST_ENDS = 50.0
"""Beyond this, work is never done, and e^λt would leave the range of floats."""


def batch_progress(total_batch: Floats | float, noise_scale: float) -> Floats | float:
    """Worth of one step on `total_batch` samples, 0 to 1, at the learning rate that fits it."""
    return total_batch / (total_batch + noise_scale)


def steps_progress(steps: float, drift_steps: float) -> float:
    """Worth of `steps` local steps, in steps that are not local; half of it is lost at `drift_steps`."""
    return steps / (1.0 + steps / drift_steps)


def learning_rate_factor(total_batch: float, reference_batch: float, noise_scale: float, bound: float) -> float:
    """By how much the learning rate follows the total batch: AdaScale's gain (Johnson et al., ICML 2020).

    (B/B₀)·(φ + B₀)/(φ + B): linear while noise dominates, flat once the batch is beyond the noise scale; within
    [1/bound, bound].
    """
    gain = total_batch / reference_batch * (noise_scale + reference_batch) / (noise_scale + total_batch)
    return min(max(gain, 1.0 / bound), bound)


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of one local step on each node: fixed + per_sample · batch.

    Below `doubtful_below` samples it falls half as fast: there the fixed part is a guess, and the cautious one is that
    a smaller batch saves less than its share.
    """

    fixed: Floats
    per_sample: Floats
    doubtful_below: Floats | float = 0.0
    ends_per_second: float = 0.0
    """How often the process of a node ends."""

    def seconds(self, batches: Floats | Ints) -> Floats:
        """Of one step on these batches."""
        doubtful = np.maximum(self.doubtful_below - batches, 0.0)
        cost: Floats = self.fixed + self.per_sample * (batches + 0.5 * doubtful)
        return cost

    def expected(self, seconds: Floats) -> Floats:
        """What work of so many seconds takes where each end of the process means to begin anew: (e^λt - 1) / λ."""
        rate = self.ends_per_second
        return np.expm1(np.minimum(rate * seconds, _MOST_ENDS)) / rate if rate > 0 else seconds


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """What a round asks of its nodes, and what is expected of it."""

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
    """What a round with these sizes is worth."""
    seconds = float(np.max(cost.expected(communication_seconds + steps * cost.seconds(batches))))
    total = float(batches.sum())
    return RoundPlan(
        steps, batches, seconds, steps_progress(steps, drift_steps) * float(batch_progress(total, noise_scale))
    )


def hesitation(seconds: Floats | float, now_seconds: float, rounds: int) -> Floats | float:
    """What the gain of a longer round has to exceed, as a factor, after this many rounds.

    What a round learns counts when it ends. A target is passed in mid-round, so half of what a round grows by is lost,
    once, out of the `rounds` of the present length that were worked so far. Shorter rounds are free.
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
    """The plan of most progress per second, with hesitation towards longer rounds.

    Args:
        now: what is asked of the nodes at present; one of the candidates.
        communication_seconds: what each node's exchange takes, with a margin for its spread.
        cost: of a step on each node.
        least: bounds of the batch of each node.
        most: as `least`.
        steps: bounds of the local steps, both included.
        noise_scale: φ.
        drift_steps: as in `steps_progress`.
        rounds: that were worked so far.
    """
    best, most_worth = now, now.goodput
    for count in step_candidates(*steps):
        compute = count * cost.seconds(now.batches)
        longest = float(compute.max())
        barrier = float((communication_seconds + compute).max())
        # Every node works until the barrier would fall: those with idle time before it take more samples.
        allowed = barrier + (_BARRIERS[:, None] - 1.0) * longest - communication_seconds
        fitting = (allowed / count - cost.fixed) / np.maximum(cost.per_sample, 1e-12)
        batches = np.clip(fitting, least, most).astype(np.int64)
        seconds = cost.expected(communication_seconds + count * cost.seconds(batches)).max(axis=1)
        rates = batch_progress(batches.sum(axis=1), noise_scale) / np.maximum(seconds, 1e-9)
        rates = rates / hesitation(seconds, now.seconds, rounds)
        plan = evaluate(
            count,
            batches[int(np.argmax(rates))],
            communication_seconds,
            cost,
            noise_scale=noise_scale,
            drift_steps=drift_steps,
        )
        worth = plan.goodput / float(hesitation(plan.seconds, now.seconds, rounds))
        if worth > most_worth:
            best, most_worth = plan, worth
    return best


def step_candidates(least: int, most: int) -> list[int]:
    """Up to eight numbers of steps from `least` to `most`, evenly spread by ratio."""
    return sorted({round(value) for value in np.geomspace(least, most, 8)})


class NoiseScale:
    """Estimates φ = tr(Σ)/|G|² from the norms of the nodes' updates and of their mean.

    Nodes' updates are G plus independent noise, their mean has less of it; the difference tells both apart (McCandlish
    et al., appendix A.1, with the nodes as the small batches). Differing data adds to the noise, as it should:
    averaging over more nodes then helps more. Numerator and denominator are smoothed apart, as their ratio is biased.
    """

    def __init__(self, memory: float = 0.8) -> None:
        self._memory = memory
        self._noise = self._signal = self._weight = 0.0

    def observe(self, mean_square_norm: float, square_norm_of_mean: float, nodes: int, samples_per_node: float) -> None:
        """One round: mean of |updateᵢ|², |mean update|², and how many samples each update rests on."""
        finite = math.isfinite(mean_square_norm) and math.isfinite(square_norm_of_mean)
        if nodes < 2 or samples_per_node <= 0 or not finite:
            return
        noise = (mean_square_norm - square_norm_of_mean) * nodes / (nodes - 1) * samples_per_node
        signal = (nodes * square_norm_of_mean - mean_square_norm) / (nodes - 1)
        self._noise = self._memory * self._noise + noise
        self._signal = self._memory * self._signal + signal
        self._weight = self._memory * self._weight + 1.0

    def value(self, prior: float) -> float:
        """φ in samples: the estimate, drawn towards `prior` while little was seen, and within [1/16, 16] of it."""
        if self._weight == 0.0 or self._noise <= 0.0:
            return prior
        estimate = self._noise / max(self._signal, 1e-3 * self._noise / (16.0 * prior))
        bounded = min(max(estimate, prior / 16.0), 16.0 * prior)
        trust = min(self._weight / 4.0, 0.75)
        return float(prior ** (1.0 - trust) * bounded**trust)
