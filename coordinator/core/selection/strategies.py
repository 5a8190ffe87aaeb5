"""Which of the eligible nodes a strategy wants, as functions over arrays of nodes."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from hypergpu.common.statistics import robust_sigma
from hypergpu.coordinator.core.batching.goodput import batch_progress
from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints


class SelectionStrategy(StrEnum):
    """How the nodes of a round are chosen."""

    ALL_AVAILABLE = "all_available"
    QUALITY_THRESHOLD = "quality_threshold"
    """Links whose score passes a fixed threshold."""
    TOP_N = "top_n"
    """The best by node score; half of the eligible where no maximum is set."""
    ADAPTIVE_THRESHOLD = "adaptive_threshold"
    """Nodes that do not fall behind what is usual in this cluster: median − 2σ, σ from the MAD."""
    CONTRIBUTION_BASED = "contribution_based"
    """Nodes that compute rather than wait, and deliver."""
    UTILITY = "utility"
    """The set of most progress per second: a node is in if its samples pay for the time that it adds."""


class SelectionReason(StrEnum):
    """Why a node is in or out of a round."""

    WARM_UP = "warm_up"
    ALL_AVAILABLE = "all_available"
    ABOVE_THRESHOLD = "above_threshold"
    BELOW_THRESHOLD = "below_threshold"
    TOP_RANKED = "top_ranked"
    NOT_TOP_RANKED = "not_top_ranked"
    WORTH_ITS_TIME = "worth_its_time"
    COSTS_MORE_THAN_IT_ADDS = "costs_more_than_it_adds"
    KEEPS_THE_MINIMUM = "keeps_the_minimum"
    """Taken only because a least share of the nodes must take part."""
    BEYOND_THE_MAXIMUM = "beyond_the_maximum"
    UNEXPLORED = "unexplored"
    """Nothing is known of it yet: a round will tell."""
    FAIRNESS_TURN = "fairness_turn"
    """Left out for long enough."""
    FORCED_IN = "forced_in"
    FORCED_OUT = "forced_out"
    QUARANTINED = "quarantined"
    ON_PROBATION = "on_probation"
    OFFLINE = "offline"
    RELEASED_TO_FILL_ROUND = "released_to_fill_round"
    """Nobody else was left."""
    ROLLED_BACK = "rolled_back"
    """In or out as it was in the configuration that is restored."""


REASONS = tuple(SelectionReason)
CODE = {reason: number for number, reason in enumerate(REASONS)}


@dataclass(frozen=True, slots=True)
class StrategyResult:
    """What a strategy wants, one entry per candidate."""

    chosen: Bools
    reasons: Ints
    """Positions in `REASONS`."""
    figures: dict[str, Floats]
    """What each of the reasons rests on."""


def everyone(count: int) -> StrategyResult:
    """All of them."""
    return StrategyResult(np.ones(count, bool), np.full(count, CODE[SelectionReason.ALL_AVAILABLE]), {})


def as_restored(chosen: Bools) -> StrategyResult:
    """Those who were in a configuration that is restored."""
    return StrategyResult(chosen, np.full(len(chosen), CODE[SelectionReason.ROLLED_BACK]), {})


def above(scores: Floats, threshold: float, name: str) -> StrategyResult:
    """Those whose score reaches the threshold."""
    chosen = scores >= threshold
    return StrategyResult(
        chosen,
        np.where(chosen, CODE[SelectionReason.ABOVE_THRESHOLD], CODE[SelectionReason.BELOW_THRESHOLD]),
        {name: scores, "threshold": np.full(len(scores), threshold)},
    )


def adaptive_threshold(scores: Floats) -> float:
    """Median − 2σ, with σ = 1.4826·MAD and at least 5 points, so that a uniform cluster stays whole."""
    if not len(scores):
        return 0.0
    median = float(np.median(scores))
    return median - 2.0 * max(robust_sigma(scores), 5.0)


def best_ranked(scores: Floats, count: int) -> StrategyResult:
    """The `count` best; of equals the first."""
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
    """The set of nodes of most progress per second.

    For any limit on the time, the best set is everyone who is within it; so the candidates are the prefixes of the
    nodes in order of speed. The length of a round is the expected maximum over its nodes, taken over their measured
    rounds, so that many jittery nodes are rightly slower than one. Of sets that are about as good (within half of
    `gain`) the largest is taken, since more data is seen; and a set that only leaves out some of the previous one must
    promise `gain` more, lest noise be chased.

    Args:
        seconds: likely durations of each node's round: shape (nodes, measurements).
        samples: weight of each node: the samples of a step times how much they teach.
        noise_scale: φ of `batch_progress`.
        previous: who was in the last round.
        least: bounds of the number of nodes.
        most: as `least`.
        gain: relative.
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
    # Those out are judged by what they would add to the chosen set.
    inside, total = seconds[chosen].max(axis=0), float(samples[chosen].sum())
    with_it = np.maximum(inside[None, :], seconds).mean(axis=1)
    now = float(inside.mean())
    base = float(batch_progress(total, noise_scale))
    joined = np.asarray(batch_progress(np.where(chosen, total, total + samples), noise_scale))
    reasons = np.where(chosen, CODE[SelectionReason.WORTH_ITS_TIME], CODE[SelectionReason.COSTS_MORE_THAN_IT_ADDS])
    bounded = np.zeros(count, bool)  # in or out for the sake of the bounds alone
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
    """`choice`, filled up to `least` nodes with the best ranked of the others."""
    short = min(least, len(ranking)) - int(choice.chosen.sum())
    if short <= 0:
        return choice
    others = np.flatnonzero(~choice.chosen)
    added = others[np.argsort(-ranking[others], kind="stable")[:short]]
    chosen, reasons = choice.chosen.copy(), choice.reasons.copy()
    chosen[added] = True
    reasons[added] = CODE[SelectionReason.KEEPS_THE_MINIMUM]
    return StrategyResult(chosen, reasons, choice.figures)
