"""`hypergpu demo` around its run: what is said, and what is left when a part fails."""

import asyncio
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hypergpu.cli import demo as command
from hypergpu.cli.demo_progress import Level, Lines, progress_of_run, steps
from hypergpu.common.errors import InvalidInput
from hypergpu.dashboard import History, Snapshot
from hypergpu.demo import demo_changes, demo_nodes
from hypergpu.local_run import Progress
from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.simulation.comparison import Comparison, Result, compared
from hypergpu.simulation.run import Outcome
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.variants import Variant

Cli = Callable[..., Any]


def summary(**more: Any) -> dict[str, Any]:
    node = {"node_id": "node_0", "profile": "perfect", "gpu": "T4", "quality": "unknown", "latency_ms": None}
    counts = {"rounds_contributed": 1, "retries": 0, "rpcs_lost": 0}
    metric = {"name": "r2", "better": "higher", "format": "number", "unit": ""}
    own = {"state": "completed", "rounds": 2, "duration_seconds": 3.0, "policy": "reactive"}
    figures = {"metric": metric, "final_r2": -0.5, "final_loss": 0.25}
    return {**own, **figures, "nodes": {"node_0": {**node, **counts}}, "network_events": [], **more}


def outcome(policy: str, step: float) -> Outcome:
    course = ((step, -1.0), (2 * step, -0.5))
    return Outcome(
        *("s", policy, 0, "completed", "rounds_done", 2, 2 * step, -0.5, 0.25, -0.5, 0.9, None, 10, 10, []),
        round_seconds=[step, step],
        trained_seconds=2 * step,
        course=course,
        losses=course,
    )


def write_run(directory: Path, step: float, **more: Any) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    rows = [{"round": n, "ended_seconds": step * n, "seconds": step, "r2": -1.0 / n, "loss": 0.5 / n} for n in (1, 2)]
    (directory / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "summary.json").write_text(json.dumps(summary(**more)))


@pytest.fixture
def compares(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A demo without processes, whose comparison may be replaced; in order, what was there when it was called."""
    seen: list[str] = []

    async def run(run_dir: Path, *_: Any, **__: Any) -> dict[str, Any]:
        write_run(run_dir, 1.0)
        return summary()

    def compare(run_dir: Path, *_: Any) -> Comparison:
        seen.append(f"report is there: {(run_dir / 'report.html').exists()}")
        for policy, step in (("reactive", 2.0), ("none", 4.0)):
            write_run(run_dir / "simulated" / policy, step, simulated=True, policy=policy, target_accuracy=0.9)
        scenario = Scenario.model_validate({"nodes": [{"id": "a"}]})
        results = [
            Result(Variant("none"), [outcome("none", 4.0)]),
            Result(Variant("reactive"), [outcome("reactive", 2.0)]),
        ]
        return compared(scenario, [0], 0.9, results[:1], results[1:])

    monkeypatch.setattr(command, "run_demo", run)
    monkeypatch.setattr(command, "without_adaptation", compare)
    return seen


def test_the_report_is_written_before_the_comparison_and_again_with_it(cli: Cli, compares: list[str]) -> None:
    result = cli("demo", "--out", "run")
    assert result.code == 0, result.err
    assert compares == ["report is there: True"]
    assert "completed: test r2 -0.5, loss 0.25 after 2 rounds in 2.0 s" in result.out, "as in the report, not 3.0 s"
    assert "on 1 node in 2.0 s" in Path("run/report.html").read_text()
    headings = next(line for line in result.out.splitlines() if line.startswith("policy (simulated)"))
    assert headings.endswith("rounds  accuracy  round (median)  total"), "nothing is cut where there is no terminal"
    assert "…" not in headings
    assert "–" in next(line for line in result.out.splitlines() if line.startswith("node_0"))
    verdict = "In simulation: neither run reached the target of 0.9"
    (told,) = [line for line in result.out.splitlines() if line.startswith("In simulation")]
    assert told.startswith(verdict)
    assert "2.00 times sooner" in told
    assert told in Path("run/report.html").read_text()
    assert "never" not in result.out


@pytest.mark.parametrize("error", [InvalidInput("no [round] was finished"), KeyError("metric"), ValueError()])
def test_a_comparison_that_fails_costs_neither_the_report_nor_the_exit_code(
    cli: Cli, compares: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> Comparison:
        raise error

    monkeypatch.setattr(command, "without_adaptation", fail)
    result = cli("demo", "--out", "run")
    assert result.code == 0
    assert f"no comparison with and without adaptation: {str(error) or 'ValueError'}" in result.out
    assert Path("run/report.html").is_file()
    result = cli("demo", "--out", "again", "--json")
    assert result.code == 0
    assert json.loads(result.out)["comparison"] is None


def test_an_interrupted_comparison_leaves_the_report(
    cli: Cli, compares: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> Comparison:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "without_adaptation", interrupt)
    result = cli("demo", "--out", "run")
    assert result.code == 130
    assert "the run and its report are in run" in result.out
    assert Path("run/report.html").is_file()


def test_quiet_is_the_result_the_verdict_and_where_the_report_is(cli: Cli, compares: list[str]) -> None:
    lines = cli("demo", "--out", "run", "--quiet").out.splitlines()
    assert [line.split()[0] for line in lines] == ["completed:", "In", "report:"]
    both = cli("demo", "--quiet", "--verbose")
    assert both.code == 2
    assert "give either --quiet or --verbose" in both.err


def test_json_is_strict_and_tells_the_same_speedup_as_the_report(cli: Cli, compares: list[str]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    told = json.loads(cli("demo", "--out", "run", "--json").out, parse_constant=refuse)
    (candidate,) = told["comparison"]["candidates"]
    assert candidate["speedup"]["mean"] == 2.0
    assert told["comparison"]["wanted_target"] == 0.9
    assert told["comparison"]["target_accuracy"] == -0.5
    assert told["comparison"]["verdict"] in Path("run/report.html").read_text()


def lines(level: Level, rounds: int = 25, *, kinds: tuple[str, ...] = ()) -> list[str]:
    """What is printed of a run whose every round begins, takes three decisions and ends."""
    out = io.StringIO()
    console = Console(file=out, width=200)
    said = Lines(console, level, demo_changes(demo_nodes(5)))
    said.event(pb.RunEvent(kind="waiting", text="waiting for 5 nodes"))
    said.event(pb.RunEvent(kind="waiting", text="waiting for 4 nodes"))
    nodes = [pb.NodeInfo(node_id="node_0", state="idle", quality="good", score=81.0), pb.NodeInfo(node_id="node_1")]
    for number in range(1, rounds + 1):
        for kind in ("round_started", "decision", "decision", "decision", *kinds, "round_closed"):
            said.event(pb.RunEvent(seconds=number, round=number, kind=kind, text=f"{kind} [{number}]"))
        said.snapshot(Snapshot(pb.Status(round=number, rounds=rounds), nodes), History())
    return out.getvalue().splitlines()


def test_a_pipe_gets_a_line_per_few_rounds_and_the_changes_of_the_network() -> None:
    said = lines(Level.NORMAL)
    closed = [int(line.partition("[")[2].partition("]")[0]) for line in said if "round_closed" in line]
    assert closed == [1, 2, 3, 5, 10, 15, 20, 25]
    assert sum("links: node_0 good 81, node_1" in line for line in said) == 5
    assert [
        line.split("round ")[1].partition(":")[0] for line in said if ": latency" in line or "the link of" in line
    ] == [*("10", "15", "20")]
    assert sum("waiting" in line for line in said) == 1
    assert len(said) < 20


def test_what_single_updates_gain_is_told_by_verbose_only() -> None:
    for level, expected in ((Level.NORMAL, 0), (Level.VERBOSE, 8)):
        assert sum("gain_measured" in line for line in lines(level, 8, kinds=("gain_measured",))) == expected


def test_a_long_run_gets_no_more_lines_than_a_reader_takes() -> None:
    said = lines(Level.NORMAL, rounds=1000)
    assert sum("round_closed" in line for line in said) <= 3 + 21
    assert len(said) < 50


@pytest.mark.parametrize("kind", ["node_lost", "metric_failed", "round_abandoned", "something_new"])
def test_what_is_no_routine_is_always_told(kind: str) -> None:
    assert sum(kind in line for line in lines(Level.NORMAL, 8, kinds=(kind,))) == 8


def test_verbose_is_everything() -> None:
    said = lines(Level.VERBOSE)
    assert sum("decision" in line for line in said) == 75
    assert sum("round_started" in line for line in said) == 25
    assert sum("node_0: idle, good (81), –, loss –" in line for line in said) == 5


def test_quiet_says_nothing_and_a_pipe_gets_lines_without_codes() -> None:
    for level, expected in ((Level.QUIET, ""), (Level.NORMAL, "      1.0 s  oh\n")):
        out = io.StringIO()
        with progress_of_run(Console(file=out), level, []) as progress:
            progress.event(pb.RunEvent(seconds=1.0, kind="no_nodes", text="oh"))
        assert out.getvalue() == expected


def test_a_longer_task_tells_how_far_it_is_by_quarters() -> None:
    out = io.StringIO()
    with steps(Console(file=out, width=100), Level.NORMAL, "comparing") as tell:
        for done in range(101):
            tell(done, 100)
    assert out.getvalue().splitlines() == ["comparing …", "comparing: 25 %", "comparing: 50 %", "comparing: 75 %"]
    out = io.StringIO()
    with steps(Console(file=out), Level.QUIET, "comparing") as tell:
        tell(1, 2)
    assert out.getvalue() == ""


def test_a_run_that_is_cancelled_ends_as_interrupted(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(run_dir: Path, nodes: Any, rounds: int, seed: int, progress: Progress, **_: Any) -> dict[str, Any]:
        raise asyncio.CancelledError

    monkeypatch.setattr(command, "run_demo", run)
    result = cli("demo", "--out", "run")
    assert result.code == 130
    assert "interrupted: all processes have ended" in result.out


@pytest.mark.parametrize(
    ("options", "rounds", "stay"),
    [((), 25, False), (("--stay",), 0, True), (("--stay", "--rounds", "7"), 7, True), (("--rounds", "7"), 7, False)],
)
def test_a_cluster_that_stays_trains_without_an_end_unless_rounds_are_given(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], rounds: int, stay: bool
) -> None:
    asked: list[Any] = []

    async def run(run_dir: Path, *arguments: Any, **more: Any) -> dict[str, Any]:
        asked.append((arguments[1], more["stay"]))
        write_run(run_dir, 1.0)
        raise asyncio.CancelledError

    monkeypatch.setattr(command, "run_demo", run)
    result = cli("demo", "--out", "run", *options)
    assert asked == [(rounds, stay)]
    assert result.code == (0 if stay else 130), result.err
    assert ("the cluster trains until Ctrl-C" in result.out) is stay
    assert ("completed: test r2 -0.5" in result.out) is stay
    assert Path("run/report.html").exists() is stay


def test_what_a_cluster_that_stayed_has_done_is_given_as_json(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(run_dir: Path, *_: Any, **__: Any) -> dict[str, Any]:
        write_run(run_dir, 1.0)
        raise asyncio.CancelledError

    monkeypatch.setattr(command, "run_demo", run)
    told = json.loads(cli("demo", "--out", "run", "--stay", "--json").out)
    assert (told["rounds"], told["comparison"], told["report"]) == (2, None, "run/report.html")
