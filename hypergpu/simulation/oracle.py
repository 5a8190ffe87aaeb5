"""Search for the best fixed setting of a scenario, on seeds other than those that are reported.

A climb over a grid: some settings that differ widely, then the neighbours of the best, until the best have no neighbour
left that was not tried. It is a race on one seed: a run is cut off when it can no longer be near the best so far, so
that a setting without hope costs no more than a good one. The finalists then run on every tuning seed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final

from hypergpu.common.errors import InvalidInput
from hypergpu.simulation.racing import SEED_OFFSET, RunAll, rank_by_cost
from hypergpu.simulation.run import Outcome
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.variants import BASELINE, Static, Variant, with_fragments

LOCAL_STEPS: Final = (1, 10, 20, 40, 100, 200)
BATCH_FACTORS: Final = (1, 4)
RATES: Final = (0.5, 1.0, 2.0)
CLOSE_PERCENTS: Final = (60.0, 80.0, 100.0)
OPTIMIZERS: Final = ("sgd", "fedavgm", "diloco", "muon", "muloco")
_OF_GRADIENTS: Final = ("sgd", "fedavgm")
"""Those whose nodes take plain steps, so that a single one will do."""
TUNING_SEEDS: Final = 3
_SLACK: Final = 1.25
"""Length of a run on the first seed, in times of the best run so far."""
_FINAL_SLACK: Final = 2.0
"""The same among the finalists: a setting may be slow on one seed and the best over all."""
_BATCH: Final = 8
"""Runs between two looks at the best time. More of them keep more processes busy, but are cut off later."""
_FIRST_ROUNDS: Final = 10
"""Length of the very first run."""
_GROWTH: Final = 1.5
"""Factor of the length of the next runs as long as none has reached the target."""
_FRONT: Final = 3
"""Best settings whose neighbours are tried."""
_FINALISTS: Final = 6
CODECS: Final = ("none", "int8", "int4")
_AXES: Final = ("rate", "local_steps", "optimizer", "batch_size", "close_percent", "codec", "fragments")
_NAMED: Final = ("optimizer", "codec", "fragments")
"""Axes of names, which have no order: each is next to all others."""
_WIDE: Final = ("rate", "local_steps")
"""Axes on which the first settings take two values, at the thirds; on others they take the middle one."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best fixed setting, and what it took to find it."""

    setting: Static
    settings: int
    """Settings of the grid."""
    runs: int
    seeds: Sequence[int]
    finalists: Sequence[Static] = ()
    """Settings that ran on every tuning seed, the best first."""
    tried: Mapping[Static, Outcome] = field(default_factory=dict)
    """Settings that were tried, with their runs on the first tuning seed."""

    @property
    def variant(self) -> Variant:
        """Way to run the scenario with this setting."""
        return self.variant_of(self.setting)

    @staticmethod
    def variant_of(setting: Static) -> Variant:
        """Return the way to run a scenario with a setting."""
        return Variant(BASELINE, static=setting, name=str(setting))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "setting": str(self.setting),
            "settings": self.settings,
            "runs": self.runs,
            "tuning_seeds": list(self.seeds),
        }


def grid(
    scenario: Scenario, codecs: Sequence[str | None] = (None,), fragments: Sequence[int | None] = (None,)
) -> list[Static]:
    """Return the settings that are tried for a scenario; None is the scenario's own codec, or number of fragments."""
    batch_size = scenario.config.training.batch_size
    optimizers = OPTIMIZERS if scenario.learning == "real" else ("sgd",)
    return [
        with_fragments(Static(steps, batch_size * factor, rate, close, optimizer, codec=codec), parts)
        for steps, factor, rate, close, optimizer, codec, parts in product(
            LOCAL_STEPS, BATCH_FACTORS, RATES, CLOSE_PERCENTS, optimizers, codecs, fragments
        )
        # A single step sends the gradient: AdamW has nothing to do, and there is nothing to go on with.
        if steps > 1 or (optimizer in _OF_GRADIENTS and parts is None)
    ]


def tune(
    scenario: Scenario,
    run_all: RunAll,
    settings: Sequence[Static] | None = None,
    enough: Callable[[int], bool] = lambda _: False,
) -> Tuned:
    """Return the setting that reaches the scenario's target first.

    Args:
        scenario: its target is set.
        run_all: runs scenarios and returns their outcomes.
        settings: by default `grid`.
        enough: called with the number of settings that were tried; True lets only the finalists run on.

    Raises:
        InvalidInput: the scenario has no target.
    """
    if scenario.target is None:
        raise InvalidInput("a best fixed setting is one that reaches a target first: set target_accuracy")
    settings = settings or grid(scenario)
    first, *others = [scenario.seed + SEED_OFFSET + number for number in range(TUNING_SEEDS)]
    race = _Race(scenario, first, _SLACK, run_all)
    tried = first_settings(settings)
    while tried and not enough(len(race.outcomes)):
        race.run(tried, enough)
        near = neighbours(race.best(_FRONT), settings)
        tried = [setting for setting in near if setting not in race.outcomes]
    finalists = race.best(_FINALISTS)
    races = [race]
    for seed in others:
        races.append(_Race(scenario, seed, _FINAL_SLACK, run_all))
        races[-1].run(finalists)
    ranked = sorted(finalists, key=lambda setting: rank([each.outcomes[setting] for each in races]))
    runs = sum(each.runs for each in races)
    return Tuned(ranked[0], len(settings), runs, [first, *others], ranked, race.outcomes)


class _Race:
    """Runs of settings on one seed, each cut off when it can no longer be near the best.

    Args:
        scenario: its target is set.
        seed: seed of all runs.
        slack: length of a run, in times of the best run so far.
        run_all: runs scenarios and returns their outcomes.
    """

    def __init__(self, scenario: Scenario, seed: int, slack: float, run_all: RunAll) -> None:
        self._scenario = scenario.until_target()
        self._seed, self._slack, self._run_all = seed, slack, run_all
        self.outcomes: dict[Static, Outcome] = {}
        self.runs = 0
        self._limits: dict[Static, float] = {}
        """Seconds after which each run was cut off."""

    def best(self, count: int) -> list[Static]:
        """Return the best settings, the best one first."""
        return sorted(self.outcomes, key=lambda setting: rank([self.outcomes[setting]]))[:count]

    def run(self, settings: Sequence[Static], enough: Callable[[int], bool] = lambda _: False) -> None:
        """Run settings, and those again that were cut off before the best of them was there.

        The very first one runs alone, for a few rounds: there is no time yet to cut others off at.
        """
        left = list(settings)
        while left and not (self.outcomes and enough(len(self.outcomes))):
            if not self.outcomes:
                self._run(left[:1], self._scenario.changed(rounds=min(_FIRST_ROUNDS, self._rounds)))
                self._limits[left[0]] = self.outcomes[left[0]].trained_seconds
                del left[:1]
            limit = self._limit()
            self._run(left[:_BATCH], self._scenario.changed(time_limit_seconds=limit))
            self._limits |= dict.fromkeys(left[:_BATCH], limit)
            del left[:_BATCH]
            left += [setting for setting in self._cut_off_too_soon() if setting not in left]

    def _run(self, settings: Sequence[Static], scenario: Scenario) -> None:
        outcomes = self._run_all([Variant(BASELINE, static=each).of(scenario, self._seed) for each in settings])
        self.outcomes |= zip(settings, outcomes, strict=True)
        self.runs += len(settings)

    @property
    def _rounds(self) -> int:
        return self._scenario.effective_config.training.rounds or _FIRST_ROUNDS

    def _limit(self) -> float:
        """Return the length of the next runs: longer ones until one has reached the target."""
        best = self.outcomes[self.best(1)[0]]
        reached = best.time_to_target_seconds
        return _GROWTH * max(self._limits.values()) if reached is None else self._slack * reached

    def _cut_off_too_soon(self) -> list[Static]:
        """Return the settings that could still have been the best when they were cut off."""
        reached = self.outcomes[self.best(1)[0]].time_to_target_seconds
        if reached is None:
            return []
        missed = [each for each, outcome in self.outcomes.items() if outcome.time_to_target_seconds is None]
        return [setting for setting in missed if self._limits[setting] < reached]


def first_settings(settings: Sequence[Static]) -> list[Static]:
    """Return settings that differ widely, those with most local steps first."""
    values = {axis: _values(axis, settings) for axis in _AXES}
    starts = [
        [each[len(each) // 3], each[2 * len(each) // 3]] if axis in _WIDE else [each[(len(each) - 1) // 2]]
        for axis, each in values.items()
    ]
    starts[_AXES.index("optimizer")] = values["optimizer"]
    wanted = [dict(zip(_AXES, each, strict=True)) for each in product(*starts)]
    found = [setting for setting in settings if _place(setting) in wanted] or list(settings[:1])
    found.reverse()  # DiLoCo first
    return sorted(found, key=lambda each: (each.rate, -(each.local_steps or 0)))


def neighbours(of: Sequence[Static], settings: Sequence[Static]) -> list[Static]:
    """Return the settings that are one step on one axis away from one of those given."""
    values = {axis: _values(axis, settings) for axis in _AXES}
    return [each for each in settings if any(_is_next(each, other, values) for other in of)]


def _is_next(one: Static, other: Static, values: dict[str, list[Any]]) -> bool:
    differing = [axis for axis in _AXES if getattr(one, axis) != getattr(other, axis)]
    if len(differing) != 1:
        return False
    (axis,) = differing
    if axis in _NAMED:
        return True
    first, second = (values[axis].index(getattr(each, axis)) for each in (one, other))
    return abs(first - second) == 1


def _values(axis: str, settings: Sequence[Static]) -> list[Any]:
    """Return the values on an axis in their order; names stay in the order of the settings."""
    values = list(dict.fromkeys(getattr(setting, axis) for setting in settings))
    return values if axis in _NAMED or None in values else sorted(values)


def _place(setting: Static) -> dict[str, Any]:
    return {axis: getattr(setting, axis) for axis in _AXES}


def rank(outcomes: Sequence[Outcome]) -> tuple[int, float]:
    """Return a key that sorts settings: by runs without the target, then by time to it, then by the metric."""
    return rank_by_cost([outcome.time_to_target_seconds for outcome in outcomes], outcomes)
