"""Search for the best setting of a scenario, and its gain over the policy that would decide without it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hypergpu.common.config import SystemConfig
from hypergpu.common.errors import InvalidInput
from hypergpu.simulation.compare import Runner, target_of
from hypergpu.simulation.comparison import Candidate, Comparison, Result, compared
from hypergpu.simulation.oracle import CODECS, Tuned, grid, rank, tune
from hypergpu.simulation.run import Outcome
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.variants import FRAGMENTS, Static, Variant

DEFAULT_POLICY: Final = "reactive"
_FINALISTS: Final = 2
"""Further settings that are reported: the runners-up."""
_SECTIONS: Final = ("training", "compression", "transfers")


@dataclass(frozen=True, slots=True)
class Budget:
    """End of the search; the finalists still run after it."""

    settings: int = 0
    """Most settings to try; 0 = no limit."""
    cpu_minutes: float = 0.0
    """Most minutes of all processes; 0 = no limit."""

    def watch(self, jobs: int) -> Callable[[int], bool]:
        """Return a function of the number of settings so far that says whether the budget, from now on, is spent."""
        began = time.monotonic()

        def spent(settings: int) -> bool:
            minutes = jobs * (time.monotonic() - began) / 60
            return 0 < self.settings <= settings or 0 < self.cpu_minutes <= minutes

        return spent


@dataclass(frozen=True)
class Tuning:
    """Outcome of a search."""

    tuned: Tuned
    comparison: Comparison
    """The best setting and the runners-up, against the policy, on seeds that the search has not seen."""

    @property
    def best(self) -> Candidate:
        """The best setting against the policy."""
        return self.comparison.candidates[0]

    @property
    def losers(self) -> Mapping[Static, Outcome]:
        """The other settings with their runs on the first tuning seed, the best first."""
        rest = {setting: run for setting, run in self.tuned.tried.items() if setting != self.tuned.setting}
        return dict(sorted(rest.items(), key=lambda item: rank([item[1]])))

    def config(self) -> dict[str, Any]:
        """Return the configuration of the best setting, as far as it is not the default."""
        return changed_settings(self.tuned.variant.of(self.comparison.scenario, 0).config)


def tune_scenario(
    scenario: Scenario,
    *,
    policy: str = DEFAULT_POLICY,
    seeds: int = 5,
    budget: Budget | None = None,
    jobs: int = 1,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Tuning:
    """Find the best fixed setting of a scenario, and run it beside the policy.

    Args:
        scenario: its target, or else the task's, is what has to be reached.
        policy: what the gain is measured against.
        seeds: paired runs of each, on other seeds than those of the search.
        budget: where the search ends.
        jobs: processes to run in.
        progress: called with the number of runs that are done, and of those that are known to come.

    Raises:
        InvalidInput: the scenario has no target.
        ConfigError: settings that do not go with the scenario.
    """
    wanted = target_of(scenario)
    if wanted is None:
        raise InvalidInput("a best setting is one that reaches a target first: set target_accuracy")
    scenario = scenario.changed(target_accuracy=wanted)
    enough = (budget or Budget()).watch(jobs)
    with Runner(jobs, None, progress) as runner:
        runner.expect(seeds * (2 + _FINALISTS))
        tuned = tune(scenario, runner.run_more, grid(scenario, CODECS, fragments_of(scenario)), enough)
        settings = tuned.finalists[: 1 + _FINALISTS]
        variants = [Variant(policy), *(tuned.variant_of(setting) for setting in settings)]
        numbers = range(scenario.seed, scenario.seed + seeds)
        outcomes = runner.run([variant.of(scenario, seed) for variant in variants for seed in numbers])
    results = [Result(variant, outcomes[index * seeds : (index + 1) * seeds]) for index, variant in enumerate(variants)]
    return Tuning(tuned, compared(scenario, list(numbers), wanted, results[:1], results[1:]))


def fragments_of(scenario: Scenario) -> Sequence[int | None]:
    """Return the numbers of fragments to try: those that the scenario's rounds, and the tensors of its model, allow."""
    training = scenario.config.training
    if training.mode != "sync":
        return (None,)
    if scenario.learning == "model":
        return FRAGMENTS
    # torch takes seconds to import.
    from hypergpu.tasks import build, load_main_task  # noqa: PLC0415

    model = build(load_main_task(training), training.seed)
    tensors = sum(start < model.parameter_count for _, start in model.manifest.offsets())
    return [count for count in FRAGMENTS if count is None or count <= tensors]


def changed_settings(config: SystemConfig, sections: Sequence[str] = _SECTIONS) -> dict[str, Any]:
    """Return the settings of a configuration that are not the default, and its policy."""
    found: dict[str, Any] = {"orchestrator": {"policy": str(config.orchestrator.policy)}}
    for name in sections:
        values = getattr(config, name)
        own, plain = values.model_dump(mode="json"), type(values)().model_dump(mode="json")
        own.pop("min_nodes", None)  # that of the simulated cluster
        if changed := {key: value for key, value in own.items() if value != plain.get(key)}:
            found[name] = changed
    return found
