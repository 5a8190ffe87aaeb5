"""Verdict on a variant against a reference, pair by pair: by whether it reached the target, when, and how it ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from hypergpu.common.metric import MetricSpec
from hypergpu.common.text import counted, figure
from hypergpu.simulation.run import Outcome
from hypergpu.simulation.statistics import CONFIDENCE, SMALLEST, Estimate, geometric_mean_of, mean_of, sign_test

_LEAST_DIFFERENCE: Final = 0.005
"""Difference of final values that counts: half a point of a share, this part of the value of another metric."""
_RUIN: Final = 0.1
"""Share by which a run has to end below its pair to count as ruined: ten points, far beyond what seeds do."""
_RUIN_OF_GAIN: Final = 0.5
"""Part of what its pair gained in training that a ruined run is short of, if the metric is no share."""


class Standing(StrEnum):
    """Class of a verdict."""

    BETTER = "better"
    EQUAL = "equal"
    """No difference beyond the noise."""
    WORSE = "worse"
    UNKNOWN = "unknown"
    """One pair, or a target that nobody reached."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict on a comparison."""

    standing: Standing
    text: str
    """A few words, for a cell of a table."""


@dataclass(frozen=True, slots=True)
class Match:
    """Figures of a variant against a reference."""

    pairs: int
    reached: int
    """Runs of the variant that reached the target."""
    reference_reached: int
    only_variant: int
    """Pairs in which the variant alone reached the target."""
    only_reference: int
    speedup: Estimate
    """Time to target of the reference over that of the variant: geometric mean over the pairs in which both reached it.

    A run that did not reach the target has no time, so its pair is left out here and counts for the verdict.
    """
    difference: Estimate
    """Final value of the variant's metric less that of the reference."""
    ruined: int
    """Runs of the variant that ended far worse than their pair."""
    reference_ruined: int
    metric: MetricSpec
    scale: float
    """Size of the metric: 1 for a share, or the mean final value of the reference."""

    @property
    def verdict(self) -> Verdict:
        """Verdict on reach, final value and time together: what is worse in one of them is not better as a whole."""
        return self._failure() or self._difference_of_ends() or self._reach() or self._time()

    @property
    def compared(self) -> int:
        """Pairs in which both reached the target."""
        return self.reached - self.only_variant

    def _failure(self) -> Verdict | None:
        if self.ruined > self.reference_ruined:
            return Verdict(Standing.WORSE, f"ruined {self.ruined} of {counted(self.pairs, 'run')}")
        if self.only_reference > self.only_variant:
            count = f"{self.reached} of {self.pairs}"
            if not self.reached:
                return Verdict(Standing.WORSE, f"did not reach the target ({count})")
            return Verdict(Standing.WORSE, f"reached the target less often ({count}, not {self.reference_reached})")
        return None

    def _difference_of_ends(self) -> Verdict | None:
        gain = self._significant_gain()
        if gain is None:
            return None
        if gain < 0:
            faster = "faster, but " if self._time().standing is Standing.BETTER else ""
            return Verdict(Standing.WORSE, f"{faster}ends {self._amount(gain)} worse")
        time = self._time()
        if time.standing is Standing.WORSE:
            return Verdict(Standing.WORSE, f"{time.text}, but ends {self._amount(gain)} better")
        faster = "faster, and " if time.standing is Standing.BETTER else ""
        return Verdict(Standing.BETTER, f"{faster}ends {self._amount(gain)} better")

    def _significant_gain(self) -> float | None:
        """Return the mean gain of the final value, if it is beyond the noise and large enough to matter."""
        mean, low, high = self.difference.mean, self.difference.ci_low, self.difference.ci_high
        if mean is None or low is None or high is None or low <= 0 <= high:
            return None
        gain = self.metric.gain(mean, 0.0)
        return gain if abs(gain) > _LEAST_DIFFERENCE * self.scale else None

    def _reach(self) -> Verdict | None:
        if sign_test(self.only_variant, self.only_reference) < 1 - CONFIDENCE:
            text = f"reached the target more often ({self.reached} of {self.pairs}, not {self.reference_reached})"
            return Verdict(Standing.BETTER, text)
        return None

    def _time(self) -> Verdict:
        low, high = self.speedup.ci_low, self.speedup.ci_high
        if low is None or high is None:
            if self.compared:
                return Verdict(Standing.UNKNOWN, "noise unknown (one pair)")
            never = "target not reached" if not self.reached else "the reference did not reach the target"
            return Verdict(Standing.UNKNOWN, never)
        if low <= 1.0 <= high:
            return Verdict(Standing.EQUAL, "within the noise")
        return Verdict(Standing.BETTER, "faster") if low > 1.0 else Verdict(Standing.WORSE, "slower")

    def _amount(self, gain: float) -> str:
        if self.metric.is_share:
            return f"{100 * abs(gain):.2g} points"
        return f"{figure(abs(gain))} {self.metric.unit}".rstrip()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        bounds = self.only_variant + self.only_reference
        return {
            "speedup": self.speedup.to_dict() | {"pairs": self.compared, "bounds": bounds},
            f"{self.metric.name}_difference": self.difference.to_dict(),
            "reached_alone": self.only_variant,
            "missed_alone": self.only_reference,
            "ruined": self.ruined,
            "reference_ruined": self.reference_ruined,
            "standing": str(self.verdict.standing),
            "verdict": self.verdict.text,
        }


def match(reference: Sequence[Outcome], variant: Sequence[Outcome]) -> Match:
    """Compare two variants run by run; the runs are in the order of the seeds."""
    ratios, differences, only_variant, only_reference = [], [], 0, 0
    for before, after in zip(reference, variant, strict=True):
        theirs, ours = before.time_to_target_seconds, after.time_to_target_seconds
        if theirs is not None and ours is not None:
            ratios.append(max(theirs, SMALLEST) / max(ours, SMALLEST))
        only_variant += theirs is None and ours is not None
        only_reference += ours is None and theirs is not None
        if before.final_metric is not None and after.final_metric is not None:
            differences.append(after.final_metric - before.final_metric)
    finals = [outcome.final_metric for outcome in reference if outcome.final_metric is not None]
    metric = reference[0].metric
    return Match(
        pairs=len(variant),
        reached=len(ratios) + only_variant,
        reference_reached=len(ratios) + only_reference,
        only_variant=only_variant,
        only_reference=only_reference,
        speedup=geometric_mean_of(ratios),
        difference=mean_of(differences),
        ruined=sum(map(_is_ruined, reference, variant)),
        reference_ruined=sum(map(_is_ruined, variant, reference)),
        metric=metric,
        scale=1.0 if metric.is_share or not finals else abs(sum(finals) / len(finals)),
    )


def _is_ruined(before: Outcome, after: Outcome) -> bool:
    """Return whether a run ended far worse than its pair, or without a value where its pair has one."""
    metric, theirs, ours = before.metric, before.final_metric, after.final_metric
    if theirs is None or ours is None:
        return theirs is not None
    short = metric.gain(theirs, ours)
    if metric.is_share:
        return short > _RUIN
    gained = metric.gain(theirs, before.course[0][1]) if before.course else 0.0
    return gained > 0 and short > _RUIN_OF_GAIN * gained
