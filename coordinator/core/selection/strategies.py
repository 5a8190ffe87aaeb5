"""Selection strategies, as functions over arrays of eligible nodes."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from hypergpu.common.statistics import robust_sigma
from hypergpu.coordinator.core.batching.goodput import batch_progress
from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints


class SelectionReason(StrEnum):
    """Reason why a node is selected or left out."""

    WARM_UP = "warm_up"
    ALL_AVAILABLE = "all_available"
    ABOVE_THRESHOLD = "above_threshold"
    BELOW_THRESHOLD = "below_threshold"
    TOP_RANKED = "top_ranked"
    NOT_TOP_RANKED = "not_top_ranked"
    WORTH_ITS_TIME = "worth_its_time"
    COSTS_MORE_THAN_IT_ADDS = "costs_more_than_it_adds"
    KEEPS_THE_MINIMUM = "keeps_the_minimum"
    """Selected only to reach the minimum number of nodes."""
    BEYOND_THE_MAXIMUM = "beyond_the_maximum"
    BEYOND_THE_BUDGET = "beyond_the_budget"
    """Left out because the budget per hour pays for others."""
    UNEXPLORED = "unexplored"
    """Selected to measure a node without any history."""
    FAIRNESS_TURN = "fairness_turn"
    """Selected after enough idle rounds."""
    DATA_TURN = "data_turn"
    """Selected because the samples that it alone holds were seen too little."""
    RECOVERY_PROBE = "recovery_probe"
    """Given work that the round does not wait for, to see whether its link has recovered."""
    FORCED_IN = "forced_in"
    FORCED_OUT = "forced_out"
    QUARANTINED = "quarantined"
    ON_PROBATION = "on_probation"
    OFFLINE = "offline"
    RELEASED_TO_FILL_ROUND = "released_to_fill_round"
    """Selected because no other node was available."""


REASONS = tuple(SelectionReason)
CODE = {reason: number for number, reason in enumerate(REASONS)}


@dataclass(frozen=True, slots=True)
class StrategyResult:
    """Result of a strategy, one entry per candidate."""

    chosen: Bools
    reasons: Ints
    """Positions in `REASONS`."""
    figures: dict[str, Floats]
    """Figures behind the reasons, by name."""


def everyone(count: int) -> StrategyResult:
    """Choose all candidates."""
    return StrategyResult(np.ones(count, bool), np.full(count, CODE[SelectionReason.ALL_AVAILABLE]), {})


def above(scores: Floats, threshold: float, name: str) -> StrategyResult:
    """Choose the nodes whose score reaches the threshold."""
    chosen = scores >= threshold
    return StrategyResult(
        chosen,
        np.where(chosen, CODE[SelectionReason.ABOVE_THRESHOLD], CODE[SelectionReason.BELOW_THRESHOLD]),
        {name: scores, "threshold": np.full(len(scores), threshold)},
    )


def adaptive_threshold(scores: Floats) -> float:
    """Return median − 2σ with σ = 1.4826·MAD, at least 5 points, so that a uniform cluster stays complete."""
    if not len(scores):
        return 0.0
    median = float(np.median(scores))
    return median - 2.0 * max(robust_sigma(scores), 5.0)


def best_ranked(scores: Floats, count: int) -> StrategyResult:
    """Choose the `count` nodes with the best score; ties go to the first."""
    order = np.argsort(-scores, kind="stable")
    rank = np.empty(len(scores), np.int64)
    rank[order] = np.arange(len(scores))
    chosen = rank < count
    return StrategyResult(
        chosen,
        np.where(chosen, CODE[SelectionReason.TOP_RANKED], CODE[SelectionReason.NOT_TOP_RANKED]),
        {"node_score": scores, "rank": rank.astype(np.float64) + 1.0},
    )


def most_progress_per_second(
    seconds: Floats, samples: Floats, noise_scale: float, *, previous: Bools, least: int, most: int, gain: float
) -> StrategyResult:
    """Choose the set of nodes with the most progress per second.

    For any time limit, the best set is every node within the limit. The candidate sets are therefore the prefixes of
    the nodes in order of speed. The duration of a round is the expected maximum over its nodes' samples, so many nodes
    with jitter are slower than one. Among sets within half of `gain` of the best, the largest wins, since it uses more
    data. A set that only removes nodes from the previous one must gain more than `gain`, so that noise causes no
    changes.

    Args:
        seconds: Samples of each node's expected round in seconds: shape (nodes, samples).
        samples: Weight of each node: samples per step, times its statistical utility.
        noise_scale: φ of `batch_progress`, in samples.
        previous: Nodes of the last round.
        least: Smallest number of nodes.
        most: Largest number of nodes.
        gain: Smallest relative gain for a change.
    """
    count = len(samples)
    usual: Floats = seconds.mean(axis=1)
    order = np.argsort(usual, kind="stable")
    lasts = np.maximum.accumulate(seconds[order], axis=0).mean(axis=1)
    progress = np.asarray(batch_progress(np.cumsum(samples[order]), noise_scale))
    value = progress / np.maximum(lasts, 1e-9)
    low, high = min(max(least, 1), count), min(max(most, 1), count)
    allowed = value[low - 1 : max(high, low)]
    best = float(allowed.max())
    size = low + int(np.flatnonzero(allowed >= best / (1.0 + 0.5 * gain))[-1])
    paying = 1 + int(np.flatnonzero(value >= float(value.max()) / (1.0 + 0.5 * gain))[-1])
    chosen = np.zeros(count, bool)
    chosen[order[:size]] = True
    if low <= previous.sum() <= high and not (chosen & ~previous).any():
        kept = float(seconds[previous].max(axis=0).mean())
        worth = float(batch_progress(float(samples[previous].sum()), noise_scale)) / max(kept, 1e-9)
        if worth >= best / (1.0 + gain):
            chosen = previous.copy()
    # Nodes that are left out are judged by the time and progress that they would add to the chosen set.
    inside, total = seconds[chosen].max(axis=0), float(samples[chosen].sum())
    with_it = np.maximum(inside[None, :], seconds).mean(axis=1)
    now = float(inside.mean())
    base = float(batch_progress(total, noise_scale))
    joined = np.asarray(batch_progress(np.where(chosen, total, total + samples), noise_scale))
    reasons = np.where(chosen, CODE[SelectionReason.WORTH_ITS_TIME], CODE[SelectionReason.COSTS_MORE_THAN_IT_ADDS])
    bounded = np.zeros(count, bool)  # selected or left out only because of the bounds
    bounded[order[min(paying, size) : max(paying, size)]] = True
    reasons[bounded & chosen] = CODE[SelectionReason.KEEPS_THE_MINIMUM]
    reasons[bounded & ~chosen] = CODE[SelectionReason.BEYOND_THE_MAXIMUM]
    figures: dict[str, Floats] = {
        "expected_seconds": usual,
        "round_seconds": np.full(count, now, np.float64),
        "adds_seconds": np.where(chosen, 0.0, with_it - now),
        "adds_progress_share": np.where(chosen, 0.0, joined / max(base, 1e-12) - 1.0),
    }
    return StrategyResult(chosen, reasons, figures)


def at_least(choice: StrategyResult, ranking: Floats, least: int) -> StrategyResult:
    """Return `choice`, filled up to `least` nodes with the highest ranked of the other nodes."""
    short = min(least, len(ranking)) - int(choice.chosen.sum())
    if short <= 0:
        return choice
    others = np.flatnonzero(~choice.chosen)
    added = others[np.argsort(-ranking[others], kind="stable")[:short]]
    chosen, reasons = choice.chosen.copy(), choice.reasons.copy()
    chosen[added] = True
    reasons[added] = CODE[SelectionReason.KEEPS_THE_MINIMUM]
    return StrategyResult(chosen, reasons, choice.figures)
