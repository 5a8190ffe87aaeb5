"""Search for the learning rate, by trials of a higher one on a few nodes of each round.

A node reports the loss of its first batch before and after its work. The relative decrease needs no model of training,
and both losses are of the same samples, so that the noise between batches cancels. The updates of a trial are measured
and not applied, since a rate that is far too high ruins a model in one step.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

from hypergpu.common.metric import finite
from hypergpu.coordinator.core.adaptation.state import RateSearchState
from hypergpu.coordinator.core.rounds.events import Contribution

_SHARE = 0.25
"""Share of the nodes that try a higher rate."""
_MIN_NODES = 3
"""Fewest nodes of which one can try another rate; with fewer, all try it together in turn."""
_NODES_FOR_BOTH = 6
"""Fewest nodes of which some try a higher and another a lower rate in the same round, so that half try nothing."""
_LOW = 1.0 / 16.0
"""Factor of the low rate that one node tries in the first round, in case that the configured one is far too high."""
_RUIN = 0.5
"""Ratio of the usual decrease to that of the low rate below which the usual updates have harmed the model."""
_MIN_GAIN = 1.2
"""Ratio of the decreases for which the low rate has won. Where data differs between nodes, the usual updates must have
harmed the model: the loss of a node with few classes falls faster at any rate."""
_GAIN_POWER = 0.25
"""Power of the factor of a trial by which its decrease must exceed the usual one: 1.4 times for a factor of four.
A smaller gain within a round seldom lasts: the higher rate is near the one that harms."""
_MARGIN = 1.4
"""Factor that is kept between a trial and the lowest rate that decreased the loss less."""
_SAFETY = 2.0
"""Factor that is kept between the rate and the lowest one that made the loss worse."""
_LEAST_STEP = 1.35
"""Smallest factor worth a trial."""
_RETREAT = 2.0
"""Factor by which the rate falls after divergence."""
_LOWEST = 2.0**-12
"""Lowest factor of the configured rate."""


class RateReason(StrEnum):
    """Reason for a change of the learning rate."""

    TRIAL_WON = "trial_won"
    """A higher rate decreased the loss faster on the nodes that tried it."""
    DIVERGED = "diverged"
    """The loss of the model rose, or was not finite."""
    NEAR_DIVERGENCE = "near_divergence"
    """A slightly higher rate made the loss of the nodes that tried it worse."""
    TOO_HIGH = "too_high"
    """A far lower rate decreased the loss faster."""
    LOSS_STALLED = "loss_stalled"
    """The loss no longer falls: a lower rate averages out more noise."""


@dataclass(frozen=True, slots=True)
class RateChange:
    """Change of the learning-rate factor, with the figures behind it."""

    reason: RateReason
    before: float
    after: float
    figures: Mapping[str, float | int | str]
    ruinous: bool = False
    """The updates at the rate before have harmed the model."""


class RateSearch:
    """Factor of the configured learning rate, raised as long as trials show that more is better.

    Args:
        step: Factor of a first trial; it shrinks after each that did not win.
        bound: Largest factor that is tried; 1 tries none, nor a lower one.
        factor: Factor to begin with.
        alike: True if the nodes' data are alike, so that their losses can be compared closely.
    """

    def __init__(self, step: float, bound: float, factor: float = 1.0, *, alike: bool = True) -> None:
        self.factor = factor
        """Factor of the rate of all nodes that try nothing."""
        self.bound = bound
        self._least_ratio = _MIN_GAIN if alike else 1.0 / _RUIN
        self._step = step
        self._slower = self._diverged = math.inf
        self._turn = 0
        self._trial: frozenset[str] = frozenset()
        self._tried = 1.0
        self._low: frozenset[str] = frozenset()
        self._tries_low = step > 1.0 and bound > 1.0
        self._last_gain: float | None = None

    def state(self) -> RateSearchState:
        """Return the state for a checkpoint; trials of the open round are not part of it."""
        return RateSearchState(
            factor=self.factor,
            step=self._step,
            bound=self.bound,
            slower=finite(self._slower),
            diverged=finite(self._diverged),
            turn=self._turn,
            tries_low=self._tries_low,
            last_gain=self._last_gain,
        )

    def restore(self, state: RateSearchState) -> None:
        """Go on from the state of an earlier process."""
        self.factor, self._step = state.factor, state.step
        self.bound = min(self.bound, state.bound)  # the user may have lowered it since
        self._slower = math.inf if state.slower is None else state.slower
        self._diverged = math.inf if state.diverged is None else state.diverged
        self._turn, self._tries_low, self._last_gain = state.turn, state.tries_low, state.last_gain

    @property
    def candidate(self) -> float | None:
        """Factor of the next trial; None if the search is over."""
        room = min(self.bound, self._slower / _MARGIN, self._diverged / _SAFETY) / self.factor
        step = min(self._step, room)
        return self.factor * step if step >= _LEAST_STEP else None

    def plan(self, nodes: Sequence[str]) -> tuple[float, dict[str, float]]:
        """Return the factor of the coming round, and the factors of the nodes that try another one."""
        candidate = self.candidate
        self._trial = self._low = frozenset()
        if not nodes or (candidate is None and not self._tries_low):
            return self.factor, {}
        self._tried = candidate or self.factor
        if len(nodes) < _MIN_NODES:
            if candidate is None or self._last_gain is None:  # there is nothing to try, or to compare with yet
                return self.factor, {}
            self._trial = frozenset(nodes)
            return candidate, {}
        few = self._tries_low and not self._turn and len(nodes) < _NODES_FOR_BOTH
        count = 0 if few or candidate is None else max(1, int(_SHARE * len(nodes)))
        first = self._turn % len(nodes)
        chosen = [nodes[(first + index) % len(nodes)] for index in range(count)]
        self._turn += max(count, 1)
        self._trial = frozenset(chosen)
        trials = dict.fromkeys(chosen, self._tried)
        if self._tries_low:
            self._low = frozenset([nodes[(first + count) % len(nodes)]])
            trials |= dict.fromkeys(self._low, self.factor * _LOW)
        return self.factor, trials

    def observe(self, contributions: Sequence[Contribution]) -> RateChange | None:
        """Judge the trial of a round, if there was one, and return the change of the factor that follows."""
        trial = [each for each in contributions if each.node in self._trial]
        others = self._trial | self._low
        at_usual = [each for each in contributions if each.node not in others]
        usual = relative_decreases(at_usual)
        low = [each for each in contributions if each.node in self._low]
        lowered = self._judge_low(low, usual) if usual or not any(each.late for each in at_usual) else None
        if lowered is not None:
            return lowered
        failed = any(each.trial_failed for each in trial)
        gains = relative_decreases(trial)
        reference = fmean(usual) if usual else self._last_gain
        if not self._trial:
            self._last_gain = reference
            return None
        if not failed and (not gains or reference is None):
            return None  # nobody who tried it answered in time
        gain = -math.inf if failed else fmean(gains)
        if gain <= 0:
            return self._on_failed(len(trial))
        if reference is not None and gain < (self._tried / self.factor) ** _GAIN_POWER * reference:
            if gain < reference:
                self._slower = min(self._slower, self._tried)
            self._step = math.sqrt(min(self._step, self._tried / self.factor))
            return None
        self._last_gain = None
        figures = {"decrease": gain, "usual_decrease": reference or 0.0, "nodes": len(gains)}
        return self._move(RateReason.TRIAL_WON, self._tried, figures)

    def _judge_low(self, low: Sequence[Contribution], usual: Sequence[float]) -> RateChange | None:
        """Take the low rate if it decreased the loss clearly faster than the present one, or if no other node could."""
        gains = relative_decreases(low)
        if not gains:
            return None
        self._tries_low = False
        gain, reference = fmean(gains), fmean(usual) if usual else 0.0
        if gain <= 0 or gain < self._least_ratio * reference:
            return None
        self._diverged, self._last_gain = min(self._diverged, self.factor), None
        figures = {"decrease": gain, "usual_decrease": reference, "nodes": len(gains)}
        return self._move(RateReason.TOO_HIGH, self.factor * _LOW, figures, ruinous=reference < _RUIN * gain)

    def _on_failed(self, nodes: int) -> RateChange | None:
        """Keep away from a rate that made the loss worse, and lower the present one if it is too near."""
        self._diverged = min(self._diverged, self._tried)
        self._step = math.sqrt(min(self._step, self._tried / self.factor))
        safe = self._diverged / _SAFETY
        if self.factor <= safe:
            return None
        self._last_gain = None
        return self._move(RateReason.NEAR_DIVERGENCE, safe, {"failed_factor": self._tried, "nodes": nodes})

    def retreat(self) -> RateChange | None:
        """Lower the rate after divergence, and never try the present one again; None at the lowest factor."""
        self._diverged = min(self._diverged, self.factor)
        self._step = min(self._step, 2.0)
        self._trial, self._last_gain = frozenset(), None
        after = self.factor / _RETREAT
        return self._move(RateReason.DIVERGED, after, {}) if after >= _LOWEST else None

    def settle(self, least: float) -> RateChange | None:
        """End the search and halve the factor, down to `least`; None if it is there already."""
        self._step, self._tries_low = 1.0, False
        if self.factor <= least:
            return None
        return self._move(RateReason.LOSS_STALLED, max(least, 0.5 * self.factor), {})

    def _move(
        self, reason: RateReason, after: float, figures: Mapping[str, float | int | str], *, ruinous: bool = False
    ) -> RateChange:
        before, self.factor = self.factor, after
        return RateChange(reason, before, after, figures, ruinous)


def relative_decreases(contributions: Iterable[Contribution]) -> list[float]:
    """Return the relative decreases of the loss of the nodes' first batches, where they were measured."""
    return [gain for each in contributions if (gain := _relative_decrease(each)) is not None]


def _relative_decrease(contribution: Contribution) -> float | None:
    before, after = contribution.loss_before, contribution.loss_after
    if not contribution.success or after is None or not before > 0:
        return None
    gain = (before - after) / before
    return gain if math.isfinite(gain) else None
