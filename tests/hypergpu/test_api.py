"""The Python API: what it takes, what it gives, and how it ends."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hypergpu
from hypergpu import LocalNode, RunResult
from hypergpu.api import scenario_of
from hypergpu.common.errors import ConfigError, InvalidInput, UnknownName
from hypergpu.run_apart import run_apart
from tests.documents import ROOT
from tests.hypergpu.conftest import Cli
from tests.patience import patience

SMALL: dict[str, Any] = {
    "nodes": [{"id": "near", "profile": "good"}, {"id": "far", "profile": "average"}],
    "learning": "model",
    "rounds": 4,
    "target_accuracy": 0.5,
}


def require_flat(rows: list[dict[str, Any]]) -> None:
    """Fail unless rows are what a data frame takes without further work."""
    assert rows
    assert {type(value) for row in rows for value in row.values()} <= {int, float, str, bool, type(None)}


def test_a_simulation_gives_what_the_command_prints(cli: Cli) -> None:
    Path("small.yaml").write_text(json.dumps(SMALL))
    told = json.loads(cli("simulate", "small.yaml", "--rounds", "3", "--seed", "3", "--json").out)
    seen: list[tuple[int, int]] = []
    result = hypergpu.simulate("small.yaml", rounds=3, seed=3, progress=lambda *step: seen.append(step))
    assert (result.state, result.rounds, result.policy) == (told["state"], told["rounds"], told["policy"])
    assert result.final_metric == told["final_accuracy"]
    assert result.final_loss == told["final_loss"]
    assert result.time_to_target_seconds == pytest.approx(told["time_to_target_seconds"], abs=1e-5)
    assert result.seconds == pytest.approx(told["trained_seconds"])
    assert seen == [(0, 3), (1, 3), (2, 3)]


def test_the_records_of_a_run_are_flat_rows() -> None:
    result = hypergpu.simulate(SMALL)
    for rows in (result.round_rows(), result.node_round_rows(), result.node_rows(), result.event_rows()):
        require_flat(rows)
    assert [row["round"] for row in result.round_rows()] == [1, 2, 3, 4]
    assert result.round_rows()[-1]["accuracy"] == result.final_metric
    assert {row["node_id"] for row in result.node_round_rows()} == {"near", "far"}
    assert {row["node_id"] for row in result.node_rows()} == {"near", "far"}
    uploaded = sum(int(row["bytes_up"] or 0) for row in result.node_round_rows())
    assert uploaded == sum(int(row["bytes_up"] or 0) for row in result.round_rows()) > 0
    joined = next(row for row in result.event_rows() if row["kind"] == "node_joined")
    assert joined["figures.node"] in ("near", "far")


def test_a_simulation_is_kept_where_it_is_told_to_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    passing = hypergpu.simulate(SMALL)
    assert (passing.run_dir, list(tmp_path.iterdir())) == (None, [])
    kept = hypergpu.simulate(SMALL, out="runs/first")
    assert kept.run_dir == Path("runs/first")
    assert kept.round_rows() == passing.round_rows() == RunResult.of("runs/latest").round_rows()
    assert kept.model_file is None, "a simulation leaves no model"
    assert "rounds=4" in repr(kept)


def test_a_comparison_has_a_row_for_each_policy_and_for_each_run() -> None:
    found = hypergpu.compare(SMALL, ["reactive"], baselines="none", seeds=2, jobs=1)
    require_flat(found.rows())
    require_flat(found.run_rows())
    baseline, candidate = found.rows()
    assert (baseline["policy"], baseline["is_baseline"]) == ("none", True)
    assert (candidate["policy"], candidate["is_baseline"]) == ("reactive", False)
    assert candidate["speedup"] == found.candidates[0].match.speedup.mean
    assert candidate["verdict"] == found.candidates[0].match.verdict.text
    assert [(row["policy"], row["seed"]) for row in found.run_rows()] == [
        ("none", 0), ("none", 1), ("reactive", 0), ("reactive", 1),
    ]  # fmt: skip
    assert candidate["final_accuracy"] == pytest.approx(sum(row["final_accuracy"] for row in found.run_rows()[2:]) / 2)


def test_a_comparison_by_default_is_of_the_scenarios_policy_or_of_reactive() -> None:
    for policy, expected in (("conservative", "conservative"), ("none", "reactive")):
        found = hypergpu.compare({**SMALL, "policy": policy}, seeds=1, rounds=1, jobs=1)
        assert [row["policy"] for row in found.rows()] == ["none", "first-80", expected]


@pytest.mark.parametrize(
    ("scenario", "told"),
    [
        ("mixd", "did you mean 'mixed'"),
        ({**SMALL, "roundss": 3}, "scenario: unknown key 'roundss'; did you mean 'rounds'"),
        ({**SMALL, "nodes": [{"id": "a", "profile": "goood"}]}, "goood"),
        ({**SMALL, "config": {"training": {"min_nodes": 3}}}, "config.training.min_nodes: the first round would wait"),
    ],
)
def test_a_scenario_that_does_not_hold_is_an_error_that_names_the_fault(scenario: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told.replace("[", r"\[")):
        hypergpu.simulate(scenario)


def test_a_scenario_may_be_given_ready_made() -> None:
    ready = scenario_of(SMALL, seed=7)
    assert ready.seed == 7
    assert scenario_of(ready) is ready
    assert scenario_of(ready, rounds=2).config.training.rounds == 2


def a_task() -> Any:
    raise AssertionError("nobody calls it")


@pytest.mark.parametrize(
    ("arguments", "kind", "told"),
    [
        ({"task": "digit"}, UnknownName, "unknown task 'digit'; did you mean 'digits'"),
        ({"task": "digits", "nodes": 0}, InvalidInput, "nodes is 0; expected one or more"),
        ({"task": "digits", "nodes": [LocalNode("a", "good", "T4")] * 2}, InvalidInput, "a name of its own"),
        ({"task": "digits", "rounds": 0}, InvalidInput, "rounds is 0; expected 1"),
        ({"task": "digits", "policy": "reactve"}, ConfigError, "orchestrator.policy"),
        ({"task": "digits", "settings": {"training.roundz": 3}}, ConfigError, "training.roundz"),
        ({"task": lambda: None}, InvalidInput, "is no function at the top of a module"),
    ],
)
def test_what_can_never_run_is_refused_before_anything_starts(
    tmp_path: Path, arguments: dict[str, Any], kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind, match=told):
        hypergpu.run(**arguments, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_factory_of_the_script_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(a_task, "__module__", "__main__")
    with pytest.raises(InvalidInput, match=r"put it in a file, as in my_task.py, and give 'my_task:a_task'"):
        hypergpu.run(a_task)


async def test_a_coroutine_runs_apart_from_a_running_loop() -> None:
    async def value() -> int:
        await asyncio.sleep(0)
        return 7

    async def error() -> int:
        raise InvalidInput("no")

    assert run_apart(value) == 7
    with pytest.raises(InvalidInput, match="no"):
        run_apart(error)


def test_ctrl_c_cancels_the_coroutine_and_waits_until_it_has_cleaned_up() -> None:
    done: list[str] = []

    async def endless() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            done.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        run_apart(endless)
    assert done == ["cleaned up"]


def test_a_comparison_in_processes_needs_no_guard_in_a_script_and_ends_them_at_ctrl_c(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, hypergpu\n"
        "print('begins')\n"
        "workers = set()\n"
        "def progress(done, total):\n"
        "    workers.update(multiprocessing.active_children())\n"
        "    if done:\n"
        "        raise KeyboardInterrupt\n"
        "try:\n"
        f"    hypergpu.compare({SMALL | {'rounds': 40}!r}, ['reactive'], seeds=4, jobs=2, progress=progress)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', [worker.exitcode for worker in workers])\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=patience(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"begins\ninterrupted {[-signal.SIGTERM] * 2}\n".replace("-15", str(-int(signal.SIGTERM)))


def test_importing_hypergpu_loads_nothing_that_takes_long() -> None:
    heavy = ("torch", "numpy", "grpc", "pydantic", "rich", "typer", "structlog", "yaml")
    program = f"import hypergpu, sys; dir(hypergpu); print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
