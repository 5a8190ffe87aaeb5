"""Paired runs of a scenario: adaptation against fixed settings."""

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from hypergpu.common.errors import InvalidInput
from hypergpu.simulation.comparison import Comparison, Result, compared
from hypergpu.simulation.node import Compute
from hypergpu.simulation.run import Outcome, simulate
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.variants import BASELINE, baselines_of, variants_of


def compare(
    scenario: Scenario,
    policies: Sequence[str],
    strategies: Sequence[str] = (),
    *,
    baselines: Sequence[str] = (BASELINE,),
    seeds: int = 10,
    jobs: int = 1,
    compute: Compute | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Comparison:
    """Run a scenario by fixed baselines and by each policy (with each of the strategies), once for each seed.

    The runs of one seed are paired: links, data and initial parameters draw the same, so that what differs is what was
    decided.

    Args:
        scenario: its seed is the first; its target, or else the task's, is the value whose time is measured.
        policies: policies and fixed settings, as in `variants_of`.
        strategies: BATCH/SELECTION, or one of both: a candidate for each policy and each of them.
        baselines: fixed settings to compare with; `none` is the scenario's own setting without adaptation.
        seeds: how many.
        jobs: processes to run them in.
        compute: compute times, in place of those of the scenario's cards.
        progress: called with the number of runs that are done, and of all runs.

    Raises:
        UnknownName: an unknown policy, fixed setting or strategy.
        InvalidInput: nothing to compare with, or an invalid option.
        ConfigError: a fixed setting that does not go with the scenario.
    """
    candidates = variants_of(policies, strategies)
    references = [variant for variant in baselines_of(baselines) if variant not in candidates]
    if not candidates or not references:
        raise InvalidInput(
            "nothing to compare: name a policy, as in reactive, and a baseline other than it, as in none"
        )
    variants = [*references, *candidates]
    wanted = target_of(scenario)
    scenario = scenario.changed(target_accuracy=wanted)
    numbers = range(scenario.seed, scenario.seed + seeds)
    runs = [variant.of(scenario, seed) for variant in variants for seed in numbers]
    outcomes = run_all(runs, jobs, compute, progress)
    results = [Result(variant, outcomes[index * seeds : (index + 1) * seeds]) for index, variant in enumerate(variants)]
    count = len(references)
    return compared(scenario, list(numbers), wanted, results[:count], results[count:])


def target_of(scenario: Scenario) -> float | None:
    """Return the value whose time is measured: the scenario's, or else the one that its task documents."""
    if scenario.target is not None:
        return scenario.target
    from hypergpu.tasks import load_task  # noqa: PLC0415  (torch takes seconds to import)

    return load_task(scenario.config.training.task, scenario.seed).target


def run_all(
    runs: Sequence[Scenario], jobs: int, compute: Compute | None, progress: Callable[[int, int], None]
) -> list[Outcome]:
    """Run scenarios in several processes; return their outcomes in the same order."""
    run_one = partial(simulate, compute=compute)
    if jobs <= 1 or len(runs) < 4:
        return _counted(map(run_one, runs), len(runs), progress)
    # Spawned, since torch's threads do not survive a fork.
    with ProcessPoolExecutor(min(jobs, len(runs)), mp_context=multiprocessing.get_context("spawn")) as pool:
        return _counted(pool.map(run_one, runs), len(runs), progress)


def _counted(outcomes: Iterable[Outcome], total: int, progress: Callable[[int, int], None]) -> list[Outcome]:
    done = []
    progress(0, total)
    for outcome in outcomes:
        done.append(outcome)
        progress(len(done), total)
    return done
