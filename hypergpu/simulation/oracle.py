"""Search for the best fixed setting of a scenario, on seeds other than those that are reported.

Successive halving (Jamieson & Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization",
AISTATS 2016): all settings get a short run, the best quarter a longer one, the best of these one on each tuning seed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

from hypergpu.common.errors import InvalidInput
from hypergpu.common.metric import MetricSpec
from hypergpu.simulation.run import Outcome
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.variants import BASELINE, STATIC, Static, Variant

RunAll = Callable[[Sequence[Scenario]], list[Outcome]]

LOCAL_STEPS: Final = (1, 10, 20, 40, 100, 200)
BATCH_FACTORS: Final = (1, 4)
RATES: Final = (0.5, 1.0, 2.0)
CLOSE_PERCENTS: Final = (60.0, 80.0, 100.0)
OPTIMIZERS: Final = ("sgd", "fedavgm", "diloco")
TUNING_SEEDS: Final = 3
_SEED_OFFSET: Final = 10_000
"""Distance of the tuning seeds from the reported ones; as many can be reported at most."""
_KEPT: Final = 4
"""One of so many settings is kept after each of the first two stages."""
_BUDGETS: Final = (0.5, 1.0, 1.5)
"""Length of the runs of each stage, in times that the yardstick needs to the target."""
_YARDSTICK: Final = STATIC["first-80"]


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best fixed setting, and what it took to find it."""

    setting: Static
    settings: int
    """Settings of the grid."""
    runs: int
    seeds: Sequence[int]

    @property
    def variant(self) -> Variant:
        """Way to run the scenario with this setting."""
        return Variant(BASELINE, static=self.setting, name=str(self.setting))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "setting": str(self.setting),
            "settings": self.settings,
            "runs": self.runs,
            "tuning_seeds": list(self.seeds),
        }


def grid(scenario: Scenario) -> list[Static]:
    """Return the settings that are tried for a scenario."""
    batch_size = scenario.config.training.batch_size
    optimizers = OPTIMIZERS if scenario.learning == "real" else ("sgd",)
    return [
        Static(steps, batch_size * factor, rate, close, optimizer)
        for steps, factor, rate, close, optimizer in product(
            LOCAL_STEPS, BATCH_FACTORS, RATES, CLOSE_PERCENTS, optimizers
        )
        if steps > 1 or optimizer != "diloco"  # a single step sends the gradient, and AdamW has nothing to do
    ]


def runs_of(settings: int) -> int:
    """Return how many runs it takes to tune over so many settings."""
    first, second = _share(settings), _share(_share(settings))
    return 1 + settings + first + second * TUNING_SEEDS


def tune(scenario: Scenario, run_all: RunAll, settings: Sequence[Static] | None = None) -> Tuned:
    """Return the setting that reaches the scenario's target first.

    Args:
        scenario: its target is set.
        run_all: runs scenarios and returns their outcomes.
        settings: by default `grid`.

    Raises:
        InvalidInput: the scenario has no target.
    """
    target = scenario.target
    if target is None:
        raise InvalidInput("a best fixed setting is one that reaches a target first: set target_accuracy")
    seeds = [scenario.seed + _SEED_OFFSET + number for number in range(TUNING_SEEDS)]
    left = list(settings or grid(scenario))
    count, runs = len(left), 0

    def run(tried: Sequence[Static], seeds: Sequence[int], seconds: float | None) -> list[list[Outcome]]:
        nonlocal runs
        limited = _until(scenario, target, seconds)
        outcomes = run_all([Variant(BASELINE, static=each).of(limited, seed) for each in tried for seed in seeds])
        runs += len(outcomes)
        return [outcomes[start : start + len(seeds)] for start in range(0, len(outcomes), len(seeds))]

    ((yardstick,),) = run([_YARDSTICK], seeds[:1], None)
    seconds = yardstick.time_to_target_seconds or yardstick.trained_seconds
    for stage, budget in enumerate(_BUDGETS):
        last = stage == len(_BUDGETS) - 1
        outcomes = run(left, seeds if last else seeds[stage : stage + 1], budget * seconds)
        ranked = sorted(zip(left, outcomes, strict=True), key=lambda pair: rank(pair[1]))
        left = [each for each, _ in ranked[: 1 if last else _share(len(ranked))]]
    return Tuned(left[0], count, runs, seeds)


def rank(outcomes: Sequence[Outcome]) -> tuple[int, float]:
    """Return a key that sorts settings: by runs without the target, then by time to it, then by the metric."""
    times = [outcome.time_to_target_seconds for outcome in outcomes]
    missed = times.count(None)
    if not missed:
        return 0, sum(math.log(max(time, 1e-9)) for time in times if time is not None)
    return missed, -sum(_shown(outcome) for outcome in outcomes)


def _shown(outcome: Outcome) -> float:
    """Return the last value of the metric, larger if better."""
    metric: MetricSpec = outcome.metric
    return -math.inf if outcome.final_metric is None else metric.gain(outcome.final_metric, 0.0)


def _share(count: int) -> int:
    return max(1, count // _KEPT)


def _until(scenario: Scenario, target: float, seconds: float | None) -> Scenario:
    """Return the scenario with an end at its target, and after a time."""
    training = scenario.config.training.model_copy(update={"target_accuracy": target})
    config = scenario.config.model_copy(update={"training": training})
    return scenario.changed(config=config, time_limit_seconds=seconds)
