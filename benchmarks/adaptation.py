"""Adaptation against strong fixed settings, on the shipped scenarios, or on others: `benchmarks/scenarios` has eight.

Times to the target are geometric means over the seeds. A ratio is the time of the policy over that of a fixed setting:
above 1, the policy lost. The best setting of a scenario is chosen in hindsight, from the same runs. Then follows each
setting for all scenarios, with the geometric mean of the ratios.

With `--oracle`, the best setting of a grid of 486 is searched for in each scenario, on other seeds, and joins the fixed
settings there.

A run that missed its target counts as twice its length, and is marked with `*`. Fixed settings are cut off at ten times
the time of the policy, and `none` at a thousand. Each run is kept in a file as soon as
it is done, and not run again by the next call: delete the file after a change of the code.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

from hypergpu.common import strict_json
from hypergpu.node.cgroup import usable_cpus
from hypergpu.simulation.compare import target_of
from hypergpu.simulation.oracle import tune
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.scenario_file import load_scenario, shipped_names
from hypergpu.simulation.statistics import geometric_mean_of
from hypergpu.simulation.variants import BASELINE, Variant, split_variants, variants_of

SETTINGS: Final = (
    "static:H=20,rate=2,close=80",
    "static:H=40,rate=2,close=80",
    "static:H=40,close=80,optimizer=fedavgm",
    "diloco",
    "diloco:H=100",
    "static:H=40,close=80,optimizer=muon",
)
_C = TypeVar("_C", bound=Hashable)
CUT_OFF: Final = 10.0
CUT_OFF_NONE: Final = 1000.0
"""Times of the policy after which `none` and the fixed settings are cut off."""
MISSED: Final = 2.0
"""Lengths of a run without the target that its time counts as."""


class Case(NamedTuple):
    """One run."""

    scenario: str
    variant: str
    seed: int

    def __str__(self) -> str:
        return f"{self.scenario} {self.variant} {self.seed}"


class Row(NamedTuple):
    """Times of a scenario in seconds, by variant, and the variants with a run that missed the target."""

    scenario: str
    seconds: Mapping[str, float]
    rounds: Mapping[str, float]
    missed: frozenset[str]

    def best(self, settings: Sequence[str]) -> str:
        """Return the fixed setting with the shortest time."""
        return min((name for name in settings if name in self.seconds), key=lambda name: self.seconds[name])


def variant_of(name: str) -> Variant:
    """Return a policy or fixed setting by its name."""
    return Variant(BASELINE) if name == BASELINE else variants_of([name])[0]


def is_possible(scenario: Scenario, variant: Variant) -> bool:
    """Return whether a scenario can run this way: the model of convergence knows no optimizer but SGD."""
    return scenario.learning == "real" or variant.static is None or variant.static.optimizer is None


def run(case: Case, limits: Mapping[tuple[str, int], float] = MappingProxyType({})) -> dict[str, Any]:
    """Return the figures of one run, which ends at its target, or at the limit of its scenario and seed in seconds."""
    scenario = load_scenario(case.scenario)
    limit = limits.get((case.scenario, case.seed))
    scenario = scenario.changed(target_accuracy=target_of(scenario), time_limit_seconds=limit).until_target()
    began = time.process_time()
    outcome = simulate(variant_of(case.variant).of(scenario, case.seed))
    return case._asdict() | {
        "rounds": outcome.rounds,
        "time_to_target_seconds": outcome.time_to_target_seconds,
        "trained_seconds": outcome.trained_seconds,
        "best": outcome.best_metric,
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def find_best(name: str) -> dict[str, Any]:
    """Return the best fixed setting of a scenario."""
    scenario, began = load_scenario(name), time.process_time()
    found = tune(scenario.changed(target_accuracy=target_of(scenario)), lambda tried: list(map(simulate, tried)))
    return found.to_dict() | {"scenario": name, "cpu_seconds": round(time.process_time() - began, 1)}


def run_all(
    cases: Sequence[_C],
    work: Callable[[_C], dict[str, Any]],
    key: Callable[[Mapping[str, Any]], _C],
    file: Path,
    jobs: int,
) -> dict[_C, dict[str, Any]]:
    """Return the figures of each case: those in the file, and of new runs, which are added to it."""
    kept = strict_json.read_lines(file) if file.exists() else ()
    found = {key(row): row for row in kept}
    missing = [case for case in cases if case not in found]
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(jobs, mp_context=context) as pool, file.open("a", encoding="utf-8") as lines:
        futures = {pool.submit(work, case): case for case in missing}
        for number, future in enumerate(as_completed(futures), 1):
            case, row = futures[future], future.result()
            found[case] = row
            lines.write(json.dumps(row) + "\n")
            lines.flush()
            print(f"{number}/{len(missing)} {case}", file=sys.stderr, flush=True)
    return {case: found[case] for case in cases}


def case_of(row: Mapping[str, Any]) -> Case:
    """Return the case of a run."""
    return Case(row["scenario"], row["variant"], row["seed"])


def best_settings(scenarios: Sequence[str], file: Path, jobs: int) -> dict[str, str]:
    """Return the best fixed setting of each scenario, and print what it took to find it."""
    found = run_all(scenarios, find_best, lambda row: str(row["scenario"]), file, jobs)
    for name, row in found.items():
        figures = f"best of {row['settings']} settings by {row['runs']} runs, {row['cpu_seconds'] / 60:.1f} min of CPU"
        print(f"{name}: {row['setting']} ({figures})", file=sys.stderr)
    return {name: row["setting"] for name, row in found.items()}


def seconds_of(row: Mapping[str, Any]) -> float:
    """Return the time of a run to its target."""
    reached: float | None = row["time_to_target_seconds"]
    return MISSED * row["trained_seconds"] if reached is None else reached


def rows_of(runs: Mapping[Case, Mapping[str, Any]]) -> list[Row]:
    """Return the means of each scenario."""
    grouped: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for case, row in runs.items():
        grouped.setdefault(case.scenario, {}).setdefault(case.variant, []).append(row)
    return [
        Row(
            scenario,
            {name: mean(map(seconds_of, found)) for name, found in variants.items()},
            {name: mean(float(row["rounds"]) for row in found) for name, found in variants.items()},
            frozenset(n for n, found in variants.items() if any(r["time_to_target_seconds"] is None for r in found)),
        )
        for scenario, variants in grouped.items()
    ]


def mean(values: Iterable[float]) -> float:
    """Return the geometric mean of at least one value."""
    found = geometric_mean_of(list(values)).mean
    assert found is not None
    return found


def against(rows: Sequence[Row], policy: str, setting: str) -> float:
    """Return the geometric mean of the ratios to one setting, over the scenarios that can have it."""
    return mean(row.seconds[policy] / row.seconds[setting] for row in rows if setting in row.seconds)


def show(rows: Sequence[Row], policy: str, settings: Sequence[str], tuned: Mapping[str, str]) -> None:
    """Print the table in Markdown.

    Args:
        rows: one per scenario.
        policy: the policy.
        settings: fixed settings of all scenarios.
        tuned: best setting of a grid, by scenario.
    """

    def cell(row: Row, name: str) -> str:
        return f"{row.seconds[name]:.3g}{'*' if name in row.missed else ''} ({row.rounds[name]:.0f})"

    print(f"| scenario | {policy}: seconds (rounds) | `none` | best setting | its figures | ratio |")
    print("|---|---|---|---|---|---|")
    ratios = []
    for row in rows:
        best = row.best([*settings, *([tuned[row.scenario]] if tuned else [])])
        ratios.append(row.seconds[policy] / row.seconds[best])
        cells = f"{cell(row, policy)} | {cell(row, BASELINE)} | `{best}` | {cell(row, best)}"
        print(f"| {Path(row.scenario).stem} | {cells} | {ratios[-1]:.2f} |")
    print(f"| geometric mean | | | the best of each | | {mean(ratios):.2f} |")
    for name in (BASELINE, *settings):
        if any(name in row.seconds for row in rows):
            print(f"| geometric mean | | | `{name}` for all | | {against(rows, policy, name):.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", default=",".join(shipped_names()), metavar="A,B,…", help="names or files")
    parser.add_argument("--seeds", type=int, default=2, metavar="N")
    parser.add_argument("--policy", default="reactive", metavar="NAME")
    parser.add_argument("--settings", default=",".join(SETTINGS), metavar="A,B,…", help="fixed settings")
    parser.add_argument("--oracle", action="store_true", help="search for the best setting of each scenario")
    parser.add_argument("--oracle-file", type=Path, default=Path("oracle.jsonl"), help="file of what was found")
    parser.add_argument("--jobs", type=int, default=usable_cpus(), metavar="N", help="processes")
    parser.add_argument("--file", type=Path, default=Path("adaptation.jsonl"), help="file of the runs")
    parser.add_argument("--json", action="store_true", help="print the means as JSON")
    options = parser.parse_args()
    settings = split_variants(options.settings)
    scenarios = options.scenarios.split(",")
    tuned = best_settings(scenarios, options.oracle_file, options.jobs) if options.oracle else {}
    policies = [Case(name, options.policy, seed) for name in scenarios for seed in range(options.seeds)]
    runs = run_all(policies, run, case_of, options.file, options.jobs)
    seconds = {(case.scenario, case.seed): row["trained_seconds"] for case, row in runs.items()}
    chosen = {name: [*settings, *([tuned[name]] if tuned else [])] for name in scenarios}
    for factor, variants in ((CUT_OFF_NONE, {name: [BASELINE] for name in scenarios}), (CUT_OFF, chosen)):
        limits = {key: factor * value for key, value in seconds.items()}
        cases = [
            Case(name, variant, seed)
            for name, seed in seconds
            for variant in dict.fromkeys(variants[name])
            if is_possible(load_scenario(name), variant_of(variant))
        ]
        runs |= run_all(cases, partial(run, limits=limits), case_of, options.file, options.jobs)
    rows = rows_of(runs)
    if options.json:
        print(json.dumps([row._asdict() | {"missed": sorted(row.missed)} for row in rows], indent=2))
    else:
        show(rows, options.policy, settings, tuned)


if __name__ == "__main__":
    main()
