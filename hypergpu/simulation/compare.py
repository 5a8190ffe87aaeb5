"""Paired runs of a scenario: adaptation against fixed settings."""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Self

from hypergpu.common.errors import InvalidInput
from hypergpu.simulation.comparison import Comparison, Result, compared
from hypergpu.simulation.node import Compute
from hypergpu.simulation.oracle import grid, tune
from hypergpu.simulation.rehearsal.inline import simulate_with_rehearsals
from hypergpu.simulation.run import Outcome
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.variants import BASELINE, baselines_of, variants_of

_LEAST_FOR_POOL = 4
"""Least number of runs for which several processes save time, since each of them imports torch."""


def compare(
    scenario: Scenario,
    policies: Sequence[str],
    strategies: Sequence[str] = (),
    *,
    baselines: Sequence[str] = (BASELINE,),
    oracle: bool = False,
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
        oracle: search for the best fixed setting, on other seeds, and compare with it too.
        seeds: number of seeds.
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
    wanted = target_of(scenario)
    scenario = scenario.changed(target_accuracy=wanted)
    numbers = range(scenario.seed, scenario.seed + seeds)
    with Runner(jobs, compute, progress) as runner:
        runner.expect(seeds * (len(references) + len(candidates) + oracle))
        tuned = tune(scenario, runner.run_more, grid(scenario)) if oracle else None
        if tuned is not None:
            references.append(tuned.variant)
        variants = [*references, *candidates]
        outcomes = runner.run([variant.of(scenario, seed) for variant in variants for seed in numbers])
    results = [Result(variant, outcomes[index * seeds : (index + 1) * seeds]) for index, variant in enumerate(variants)]
    count = len(references)
    return compared(scenario, list(numbers), wanted, results[:count], results[count:], oracle=tuned)


def target_of(scenario: Scenario) -> float | None:
    """Return the value whose time is measured: the scenario's, or else the one that its task documents."""
    if scenario.target is not None:
        return scenario.target
    from hypergpu.tasks import load_main_task  # noqa: PLC0415  (torch takes seconds to import)

    return load_main_task(scenario.config.training).target


class Runner:
    """Runs scenarios in several processes, and reports how many are done.

    Args:
        jobs: processes.
        compute: compute times, in place of those of the scenarios' cards.
        progress: called with the number of runs that are done, and of those that are expected.
    """

    def __init__(self, jobs: int, compute: Compute | None, progress: Callable[[int, int], None]) -> None:
        self._run_one = partial(simulate_with_rehearsals, compute=compute)
        self._jobs, self._progress = jobs, progress
        self._pool: ProcessPoolExecutor | None = None
        self._workers: set[BaseProcess] = set()
        self._done = self._expected = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        if kind is not None:  # Ctrl-C, for one: nobody waits for the runs that have begun
            for worker in self._workers:
                worker.terminate()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def expect(self, runs: int) -> None:
        """Add to the number of runs that progress is measured by."""
        self._expected += runs
        self._progress(self._done, self._expected)

    def run_more(self, scenarios: Sequence[Scenario]) -> list[Outcome]:
        """Run scenarios that were not expected."""
        self.expect(len(scenarios))
        return self.run(scenarios)

    def run(self, scenarios: Sequence[Scenario]) -> list[Outcome]:
        """Run scenarios; return their outcomes in the same order."""
        outcomes = []
        for outcome in self._outcomes(scenarios):
            outcomes.append(outcome)
            self._done += 1
            self._progress(self._done, self._expected)
        return outcomes

    def _outcomes(self, scenarios: Sequence[Scenario]) -> Iterable[Outcome]:
        if self._jobs <= 1 or self._expected < _LEAST_FOR_POOL:
            return map(self._run_one, scenarios)
        if self._pool is None:  # spawned, since torch's threads do not survive a fork
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._jobs, mp_context=spawn, initializer=_ignore_interrupts)
        before = set(multiprocessing.active_children())
        with _without_main():
            found = self._pool.map(self._run_one, scenarios)  # starts the workers
        self._workers |= set(multiprocessing.active_children()) - before
        return found


def _ignore_interrupts() -> None:
    """Leave Ctrl-C, which a terminal sends to every process, to the parent: it ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the main module from processes that start: they would import it, and a script would run itself again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
