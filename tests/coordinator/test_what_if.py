"""What-ifs of a run: the process that rehearses, what it leaves, and what its failures change."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from hypergpu.common.errors import HyperGPUError, InvalidInput, Unavailable
from hypergpu.coordinator.run_dir import WHAT_IF
from hypergpu.coordinator.what_if import WhatIfs
from hypergpu.simulation.fork.course import course_of
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("what_if") / "run"
    tree = {
        "name": "recorded",
        "learning": "model",
        "task": "digits",
        "nodes": [{"id": f"n{number}", "profile": "average", "gpu": "T4"} for number in range(3)],
        "policy": "reactive",
        "rounds": 12,
    }
    simulate(Scenario.model_validate(tree), out)
    return out


async def answer(what_ifs: WhatIfs, run_dir: Path) -> dict[str, Any]:
    await what_ifs.done()
    found: dict[str, Any] = json.loads((run_dir / WHAT_IF).read_text())
    (run_dir / WHAT_IF).unlink()
    return found


async def test_a_process_answers_as_this_one_would(recorded: Path) -> None:
    what_ifs = WhatIfs(recorded)
    what_ifs.begin("none", 8)
    with pytest.raises(Unavailable, match="another policy is being rehearsed"):
        what_ifs.begin("none", 0)
    assert await answer(what_ifs, recorded) == json.loads(json.dumps(course_of(recorded, "none", 8)))


def test_a_course_goes_on_from_its_round_on_the_clock_of_the_run(recorded: Path) -> None:
    rows = [json.loads(line) for line in (recorded / "rounds.jsonl").read_text().splitlines()]
    found = course_of(recorded, "none", 8)
    assert (found["policy"], found["round"], found["seconds"]) == ("none", 8, rows[7]["ended_seconds"])
    for name in ("now", "then"):
        course = found[name]
        assert [row["round"] for row in course] == list(range(9, 29))
        assert course[0]["ended_seconds"] - course[0]["seconds"] == pytest.approx(found["seconds"])
        assert all(row["loss"] > 0 and 0 < row["accuracy"] < 1 and row["bytes_up"]["all"] > 0 for row in course)
    # As it is, a round takes as long as the rounds before did.
    began = rows[0]["ended_seconds"] - rows[0]["seconds"]
    assert found["now"][-1]["ended_seconds"] - found["seconds"] == pytest.approx(
        20 * (found["seconds"] - began) / 8, rel=0.25
    )


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        ("raise SystemExit('no idea')", "the process ended with code 1: no idea"),
        ("print('[]')", "a list instead of an object"),
        ("import time; time.sleep(600)", "it took longer than 0.5 s"),
    ],
)
async def test_a_failure_is_the_answer(
    program: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "guessing.py").write_text(program + "\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    what_ifs = WhatIfs(tmp_path, "guessing", timeout_seconds=0.5 if "sleep" in program else 60.0)
    with capture_logs() as logs:
        what_ifs.begin("none", 0)
        assert await answer(what_ifs, tmp_path) == {"policy": "none", "fault": fault}
    assert [each["reason"] for each in logs] == [fault]


def test_a_run_without_rounds_cannot_be_forked(tmp_path: Path) -> None:
    for name in ("config.yaml", "rounds.jsonl"):
        (tmp_path / name).write_text("")
    with pytest.raises(HyperGPUError, match="no round was finished"):
        course_of(tmp_path, "none", 0)


async def test_the_process_ends_with_the_coordinator(recorded: Path) -> None:
    what_ifs = WhatIfs(recorded)
    what_ifs.begin("none", 0)
    while what_ifs._program.child is None:  # noqa: ASYNC110  (a short wait, once)
        await asyncio.sleep(0.01)
    child = what_ifs._program.child
    with capture_logs():
        await what_ifs.close()
    assert child is not None
    assert child.returncode == -signal.SIGKILL
    (recorded / WHAT_IF).unlink()


@pytest.mark.parametrize(
    "asked", [{"policy": "fastest"}, {"policy": None}, {"after_round": -1}, {"after_round": True}, {"after_round": "1"}]
)
async def test_what_is_not_valid_is_refused(asked: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        WhatIfs(tmp_path).begin(**({"policy": "none", "after_round": 0} | asked))
