"""`hypergpu compare`: compare policies with fixed settings in paired runs of a scenario."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from hypergpu import api
from hypergpu.cli.scenario_argument import ScenarioName
from hypergpu.common.command_line import PREFIX
from hypergpu.common.limits import LARGEST_COUNT
from hypergpu.common.metric import ACCURACY
from hypergpu.common.options import FLAG, AsJson
from hypergpu.common.text import counted, size
from hypergpu.console import new_table, print_json, print_table, progress_bar, say
from hypergpu.simulation.comparison import Candidate, Comparison, Result
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.statistics import Estimate
from hypergpu.simulation.thresholds import Threshold, metric_of_scenario, parse_threshold
from hypergpu.simulation.variants import STATIC, split_variants
from hypergpu.simulation.verdict import Match

_FEWEST_PAIRS = 5
"""With fewer pairs, intervals are several times as wide as with ten."""


Seeds = Annotated[
    int, typer.Option(min=1, max=10_000, metavar="N", help="Runs of each policy; runs of one seed form a pair.")
]
Policies = Annotated[
    str | None, typer.Option(metavar="A,B,…", help="Policies or fixed settings to compare with the baselines.")
]
Baselines = Annotated[
    str,
    typer.Option(metavar="A,B,…", help=f"Fixed settings: none, {', '.join(STATIC)}, static:H=40,batch=64,close=80."),
]
Oracle = Annotated[
    bool,
    typer.Option(
        "--oracle", metavar=FLAG, help="Search for the best fixed setting, on other seeds, and compare with it too."
    ),
]
Strategies = Annotated[str, typer.Option(metavar="BATCH/SELECTION,…", help="Strategies to try each policy with.")]
Thresholds = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FIGURE>=NUMBER", help="Condition on each candidate; the exit code is 1 if one fails. Repeatable."
    ),
]
Rounds = Annotated[int | None, typer.Option(min=1, max=LARGEST_COUNT, metavar="N", help="Rounds to train.")]
Jobs = Annotated[
    int | None, typer.Option(min=1, max=1024, metavar="N", help="Number of processes; by default one per CPU.")
]


def compare(
    scenario: ScenarioName,
    *,
    seeds: Seeds = 10,
    policies: Policies = None,
    baselines: Baselines = "none,first-80",
    oracle: Oracle = False,
    strategies: Strategies = "",
    threshold: Thresholds = None,
    rounds: Rounds = None,
    jobs: Jobs = None,
    as_json: AsJson = False,
) -> None:
    """Compare policies with fixed settings: reach, time to the target, final metric, bytes, confidence intervals.

    Figures and verdicts are against the first baseline; those against the others follow the table. A candidate that
    reaches the target less often or ends worse counts as worse, however fast it is.

    Example: hypergpu compare flaky-minority --policies reactive,diloco --threshold ruined<=0
    """
    loaded = api.scenario_of(scenario, rounds=rounds)
    conditions = _conditions(threshold or (), loaded)
    with progress_bar("runs") as progress:
        comparison = api.compare(
            loaded,
            split_variants(policies) if policies is not None else None,
            strategies=[part.strip() for part in strategies.split(",") if part.strip()],
            baselines=split_variants(baselines),
            oracle=oracle,
            seeds=seeds,
            jobs=jobs,
            progress=progress,
        )
    _report(comparison, conditions, as_json=as_json)


def _conditions(texts: Sequence[str], scenario: Scenario) -> list[Threshold]:
    metric = metric_of_scenario(scenario) if texts else ACCURACY
    return [parse_threshold(text, metric) for text in texts]


def _report(comparison: Comparison, conditions: Sequence[Threshold], *, as_json: bool) -> None:
    """Print a comparison; exit with 1 if a condition fails, or no run made progress."""
    record = comparison.to_dict()
    record["thresholds"] = checked = _checked(conditions, comparison, record)
    if as_json:
        print_json(record)
    else:
        _show(comparison)
        for row in checked:
            verdict = "pass" if row["passed"] else "FAIL"
            say(f"{verdict}  {row['threshold']} for {row['candidate']}: {_short(row['value'])}")
    if comparison.given_up:
        say(f"{PREFIX}every run was aborted: {comparison.given_up}", error=True)
    if comparison.given_up or not all(row["passed"] for row in checked):
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


def _show(comparison: Comparison) -> None:
    count, metric = len(comparison.seeds), comparison.metric
    goal = comparison.timed_by.text(comparison.target)
    first = comparison.baseline.variant.label
    table = new_table(
        "policy", f">s to {goal}", ">reached", f">{metric.name}", ">transferred", ">rounds", ">speedup",
        f"against {first}",
        title=f"{comparison.scenario.name}: {counted(count, 'paired run')} of each; intervals at 95 %",
    )  # fmt: skip
    table.add_row(*_cells(comparison.baseline, count), "", "the baseline")
    for each in (*comparison.baselines, *comparison.candidates):
        table.add_row(*_cells(each.result, count), _interval(each.match.speedup), each.match.verdict.text)
    print_table(table)
    if comparison.oracle is not None:
        found = comparison.oracle
        say(f"best of {found.settings} fixed settings, by {found.runs:,} runs on other seeds: {found.setting}")
        for each in comparison.candidates:
            say(f"{each.result.variant.label}: {_interval(each.gap)} times the time of the best fixed setting")
    if comparison.remark:
        say(comparison.remark)
    if count < _FEWEST_PAIRS:
        say(f"too few seeds to estimate noise; try --seeds {_FEWEST_PAIRS}")
    for line in _remarks(comparison.baseline, comparison):
        say(line)
    for each in (*comparison.baselines, *comparison.candidates):
        for line in (*_details(each, first), *_remarks(each.result, comparison)):
            say(line)


def _cells(result: Result, count: int) -> list[str]:
    record = result.to_dict()
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
    """Yield notes on the runs of one policy."""
    label = result.variant.label
    if not result.times and comparison.target is not None:
        metric = comparison.timed_by
        yield f"{label}: {metric.label(comparison.target)} was never reached; the best was {metric.text(result.best)}"
    if result.given_up:
        runs = counted(len(result.outcomes), "run")
        yield f"{label}: {len(result.given_up)} of {runs} aborted, {result.given_up[0]}"
    for node, reasons in result.quarantined().items():
        counts = ", ".join(f"{reason} × {times}" for reason, times in reasons.items())
        yield f"{label}: quarantine of {node}: {counts}"


def _details(candidate: Candidate, first: str) -> Iterator[str]:
    """Yield the differences of a candidate from each baseline."""
    label, found = candidate.result.variant.label, candidate.match
    if found.only_variant or found.only_reference:
        reached = f"the target was reached by both in {counted(found.compared, 'pair')}"
        alone = f"by {label} alone in {found.only_variant}, by {first} alone in {found.only_reference}"
        yield f"{label}: {reached}, {alone}; a pair without both times has no speedup"
    yield f"{label}: final {found.metric.name} differs by {_interval(found.difference)}"
    for other, match in candidate.against:
        yield f"{label} against {other.variant.label}: {_sentence(match)}"


def _sentence(match: Match) -> str:
    times = f"{_interval(match.speedup)} times as fast" if match.speedup.mean is not None else "no times to compare"
    return f"{times}, final {match.metric.name} differs by {_interval(match.difference)}: {match.verdict.text}"


def _interval(estimate: Estimate) -> str:
    if estimate.mean is None:
        return "–"
    if estimate.ci_low is None:
        return _short(estimate.mean)
    return f"{_short(estimate.mean)} [{_short(estimate.ci_low)}, {_short(estimate.ci_high)}]"


def _short(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
