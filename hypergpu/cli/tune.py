"""`hypergpu tune`: find the best fixed setting of a scenario."""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any, Final

import typer
import yaml

from hypergpu.cli.estimates import interval
from hypergpu.cli.scenario_argument import SCENARIO
from hypergpu.common.errors import InvalidInput
from hypergpu.common.limits import LARGEST_COUNT
from hypergpu.common.options import AsJson
from hypergpu.common.strategies import AdaptationPolicy
from hypergpu.common.text import counted, duration
from hypergpu.console import new_table, print_json, print_table, progress_bar, say
from hypergpu.node.cgroup import usable_cpus
from hypergpu.simulation.comparison import Result
from hypergpu.simulation.run import Outcome
from hypergpu.simulation.scenario_file import load_scenario
from hypergpu.simulation.statistics import geometric_mean_of
from hypergpu.simulation.tuning import Budget, Tuning, tune_scenario
from hypergpu.simulation.verdict import Standing

_SHOWN_LOSERS: Final = 5
_BUDGET: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?(min)?")

Policy = Annotated[AdaptationPolicy, typer.Option(metavar="NAME", help="Policy that the gain is measured against.")]
BudgetText = Annotated[
    str, typer.Option(metavar="N|Nmin", help="Most settings to try, or most minutes of CPU, as in 40 or 10min.")
]
Seeds = Annotated[
    int,
    typer.Option(min=1, max=10_000, metavar="N", help="Reported runs of each setting; runs of one seed form a pair."),
]
Rounds = Annotated[int | None, typer.Option(min=1, max=LARGEST_COUNT, metavar="N", help="Most rounds of a run.")]
Jobs = Annotated[
    int | None, typer.Option(min=1, max=1024, metavar="N", help="Number of processes; by default one per CPU.")
]


def tune(
    scenario: Annotated[str, SCENARIO],
    *,
    budget: BudgetText = "",
    policy: Policy = AdaptationPolicy.REACTIVE,
    seeds: Seeds = 5,
    rounds: Rounds = None,
    jobs: Jobs = None,
    as_json: AsJson = False,
) -> None:
    """Find the fixed setting that reaches a scenario's target first, and what it gains over the policy.

    Local steps, batch, optimizers, learning rate, closing share, codec and fragments are varied in virtual time. A
    setting that can no longer be near the best is cut off; the neighbours of the best are tried next. The best and two
    runners-up are then run beside the policy, on other seeds. The best is printed as YAML, for a scenario or a
    configuration file.
    The exit code is 1 if it missed the target.

    Example: hypergpu tune flaky-minority --budget 40
    """
    loaded = load_scenario(scenario)
    if rounds is not None:
        loaded = loaded.changed(rounds=rounds)
    with progress_bar("runs") as progress:
        found = tune_scenario(
            loaded,
            policy=str(policy),
            seeds=seeds,
            budget=_budget(budget),
            jobs=jobs or usable_cpus(),
            progress=progress,
        )
    if as_json:
        print_json(_record(found))
    else:
        _show(found)
    if not found.best.result.times:
        raise typer.Exit(1)


def _budget(text: str) -> Budget:
    if not text:
        return Budget()
    found = _BUDGET.fullmatch(text.strip())
    if found is None or not float(found[1]) or ("." in found[1] and not found[2]):
        raise InvalidInput(f"--budget is {text[:40]!r}; expected settings or minutes of CPU, as in 40 or 10min")
    return Budget(cpu_minutes=float(found[1])) if found[2] else Budget(settings=int(found[1]))


def _record(found: Tuning) -> dict[str, Any]:
    comparison = found.comparison
    return {
        "scenario": comparison.scenario.name,
        "target_accuracy": comparison.target,
        "policy": comparison.baseline.variant.label,
        "best": found.best.to_dict() | {"gap": found.best.gap.to_dict(), "config": found.config()},
        "runners_up": [each.to_dict() for each in comparison.candidates[1:]],
        "baseline": comparison.baseline.to_dict(),
        "seeds": list(comparison.seeds),
        "grid": found.tuned.settings,
        "tried": len(found.tuned.tried),
        "runs": found.tuned.runs,
        "tuning_seeds": list(found.tuned.seeds),
        "losers": [
            {"setting": str(setting), "time_to_target_seconds": run.time_to_target_seconds, "seconds": run.seconds}
            for setting, run in found.losers.items()
        ],
    }


def _show(found: Tuning) -> None:
    comparison, best = found.comparison, found.best
    count, policy = len(comparison.seeds), comparison.baseline.variant.label
    goal = comparison.timed_by.text(comparison.target)
    table = new_table(
        "setting", f">s to {goal}", ">reached", ">speedup", f"against {policy}",
        title=f"{comparison.scenario.name}: {counted(count, 'paired run')} of each; intervals at 95 %",
    )  # fmt: skip
    for each in comparison.candidates:
        cells = _cells(each.result, count)
        table.add_row(*cells, interval(each.match.speedup), each.match.verdict.text)
    table.add_row(*_cells(comparison.baseline, count), "", "the policy")
    print_table(table)
    tuned = found.tuned
    say(f"{len(tuned.tried)} of {tuned.settings:,} settings were tried in {counted(tuned.runs, 'run')} on other seeds")
    say(_sentence(found))
    if not best.result.times:
        return
    say("configuration of the best setting:")
    say(yaml.safe_dump({"config": found.config()}, sort_keys=False), end="")
    for line in _losers(found):
        say(line)


def _sentence(found: Tuning) -> str:
    """Return the gap between the policy and the best setting, and how sure it is."""
    best, policy = found.best, found.comparison.baseline.variant.label
    if not best.result.times:
        return f"no setting reached {found.comparison.timed_by.label(found.comparison.target)}"
    sure = {
        Standing.BETTER: f"the setting is better than {policy}, beyond the noise",
        Standing.WORSE: f"{policy} is better than every fixed setting, beyond the noise: leave it on",
        Standing.EQUAL: f"no difference to {policy} beyond the noise: leave {policy} on",
        Standing.UNKNOWN: "too few pairs to tell: take more --seeds",
    }[best.match.verdict.standing]
    gap = best.match.speedup
    if gap.mean is None:
        return sure
    return f"{policy} takes {interval(gap)} times as long as the best setting; {sure}"


def _losers(found: Tuning) -> Iterator[str]:
    """Yield the next best settings and how they ended."""
    yield f"next best of {len(found.losers)} losers, on the first tuning seed:"
    for setting, run in islice(found.losers.items(), _SHOWN_LOSERS):
        yield f"  {setting}: {_end(run)}"


def _end(run: Outcome) -> str:
    if run.time_to_target_seconds is not None:
        return f"reached the target after {duration(run.time_to_target_seconds)}"
    return f"cut off after {duration(run.seconds)} at {run.metric.label(run.final_metric)}"


def _cells(result: Result, count: int) -> list[str]:
    times = geometric_mean_of(result.times)
    return [
        result.variant.label,
        interval(times) if times.mean is not None else "never",
        f"{len(result.times)} of {count}",
    ]
