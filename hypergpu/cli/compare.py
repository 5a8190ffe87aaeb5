"""`hypergpu compare`: compare policies in paired runs of a scenario."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from hypergpu.cli.scenario_argument import ScenarioName
from hypergpu.common.command_line import PREFIX
from hypergpu.common.limits import LARGEST_COUNT
from hypergpu.common.metric import ACCURACY
from hypergpu.common.options import AsJson
from hypergpu.common.text import counted, size
from hypergpu.console import new_table, print_json, print_table, progress_bar, say
from hypergpu.node.cgroup import usable_cpus
from hypergpu.simulation.compare import Candidate, Comparison, Result, Threshold, metric_of_scenario, parse_threshold
from hypergpu.simulation.compare import compare as run_all
from hypergpu.simulation.scenario_file import load_scenario
from hypergpu.simulation.statistics import Estimate
from hypergpu.simulation.variants import STATIC, split_variants

_FEWEST_PAIRS = 5
"""With fewer pairs, chance alone often puts all of them on one side."""


def compare(
    scenario: ScenarioName,
    *,
    seeds: Annotated[
        int, typer.Option(min=1, max=10_000, metavar="N", help="Runs of each policy; runs of one seed form a pair.")
    ] = 5,
    policies: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,…", help=f"Policies and fixed settings ({', '.join(STATIC)}) to compare with `none`."
        ),
    ] = None,
    strategies: Annotated[
        str, typer.Option(metavar="BATCH/SELECTION,…", help="Strategies to try each policy with.")
    ] = "",
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIGURE>=NUMBER", help="Condition on each candidate; the exit code is 1 if one fails. Repeatable."
        ),
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, max=LARGEST_COUNT, metavar="N", help="Rounds to train.")] = None,
    jobs: Annotated[int, typer.Option(min=1, max=1024, metavar="N", help="Number of processes.")] = min(
        2, usable_cpus()
    ),
    as_json: AsJson = False,
) -> None:
    """Compare policies with the fixed baseline: time to the target, final metric, bytes and confidence intervals.

    Example: hypergpu compare flaky-minority --seeds 3 --policies reactive,aggressive
    """
    loaded = load_scenario(scenario)
    metric = metric_of_scenario(loaded) if threshold else ACCURACY
    conditions = [parse_threshold(text, metric) for text in threshold or ()]
    if rounds is not None:
        loaded = loaded.changed(rounds=rounds)
    own = loaded.config.orchestrator.policy
    named = split_variants(policies) if policies is not None else [own if own != "none" else "reactive"]
    with progress_bar("runs") as tell:
        comparison = run_all(loaded, named, _split(strategies), seeds=seeds, jobs=jobs, progress=tell)
    record = comparison.record()
    record["thresholds"] = _checked(conditions, comparison, record)
    if as_json:
        print_json(record)
    else:
        _show(comparison)
        for row in record["thresholds"]:
            verdict = "pass" if row["passed"] else "FAIL"
            say(f"{verdict}  {row['threshold']} for {row['candidate']}: {_short(row['value'])}")
    if comparison.given_up:
        say(f"{PREFIX}every run was aborted: {comparison.given_up}", error=True)
    if comparison.given_up or not all(row["passed"] for row in record["thresholds"]):
        raise typer.Exit(1)


def _checked(
    conditions: Sequence[Threshold], comparison: Comparison, record: Mapping[str, Any]
) -> list[dict[str, Any]]:
    return [
        {
            "threshold": condition.text,
            "candidate": candidate.result.variant.label,
            "value": condition.value(row),
            "passed": condition.holds(row),
        }
        for condition in conditions
        for candidate, row in zip(comparison.candidates, record["candidates"], strict=True)
    ]


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _show(comparison: Comparison) -> None:
    count, metric = len(comparison.seeds), comparison.metric
    goal = comparison.timed_by.text(comparison.target)
    table = new_table(
        "policy", f">s to {goal}", ">reached", f">{metric.name}", ">transferred", ">rounds", ">speedup", "",
        title=f"{comparison.scenario.name}: {counted(count, 'paired run')} of each; intervals at 95 %",
    )  # fmt: skip
    table.add_row(*_cells(comparison.baseline, count), "", "the baseline")
    for candidate in comparison.candidates:
        table.add_row(*_cells(candidate.result, count), _interval(candidate.speedup), candidate.verdict)
    print_table(table)
    if comparison.remark:
        say(comparison.remark)
    if count < _FEWEST_PAIRS:
        say(f"too few seeds to estimate noise; try --seeds {_FEWEST_PAIRS}")
    for line in _remarks(comparison.baseline, comparison):
        say(line)
    for candidate in comparison.candidates:
        for line in (*_differences(candidate), *_remarks(candidate.result, comparison)):
            say(line)


def _cells(result: Result, count: int) -> list[str]:
    record = result.record()
    times = Estimate(**record["time_to_target_seconds"])
    return [
        result.variant.label,
        _interval(times) if times.mean is not None else "never",
        f"{record['reached']} of {count}",
        result.metric.text(result.mean("final_metric")),
        size(record["bytes"]),
        f"{record['rounds']:g}",
    ]


def _remarks(result: Result, comparison: Comparison) -> Iterator[str]:
    """Yield what is notable about the runs of one policy."""
    label = result.variant.label
    if not result.times and comparison.target is not None:
        metric = comparison.timed_by
        yield f"{label}: {metric.label(comparison.target)} was never reached; the best was {metric.text(result.best)}"
    if result.given_up:
        runs = counted(len(result.outcomes), "run")
        yield f"{label}: {len(result.given_up)} of {runs} aborted, {result.given_up[0]}"
    for node, reasons in result.quarantined().items():
        told = ", ".join(f"{reason} × {times}" for reason, times in reasons.items())
        yield f"{label}: quarantine of {node}: {told}"


def _differences(candidate: Candidate) -> Iterator[str]:
    """Yield how a candidate differs from the baseline."""
    label, pairs = candidate.result.variant.label, len(candidate.result.outcomes)
    if candidate.verdict == "within the noise":
        yield f"{label}: the difference in time is within the noise of {counted(pairs, 'run')}"
    if candidate.bounds:
        yield (
            f"{label}: in {candidate.bounds} of {counted(pairs, 'pair')} only one run reached the target; the other is "
            "counted as reaching it at its end, and not before the first"
        )
    yield f"{label}: final {candidate.result.metric.name} differs by {_interval(candidate.difference)}"


def _interval(estimate: Estimate) -> str:
    if estimate.mean is None:
        return "–"
    return f"{_short(estimate.mean)} [{_short(estimate.ci_low)}, {_short(estimate.ci_high)}]"


def _short(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
