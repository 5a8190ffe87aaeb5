"""deploy/scale, with a `docker` and a `hypergpu` that answer what the test says: it tells how the run stands."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = """#!/bin/sh
echo "$*" >>"$CALLS"
case "$2" in
  ps) echo "$RUNNING" ;;
  exec) shift 5; exec "$PYTHON" "$@" ;;
esac
"""
HYPERGPU = """#!/bin/sh
echo "$STATUS"
"""


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    for name, text in (("docker", DOCKER), ("hypergpu", HYPERGPU)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path / "calls"


def scale(calls: Path, number: int, *, running: str = "6f1c", **status: object) -> "subprocess.CompletedProcess[str]":
    told = {"CALLS": str(calls), "RUNNING": running, "STATUS": json.dumps(status), "PYTHON": sys.executable}
    path = f"{calls.parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [ROOT / "deploy/scale", str(number)],
        env={**os.environ, **told, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("status", "line"),
    [
        ({"state": "training", "round": 31, "rounds": 0}, "training, round 31: 8 of 8 nodes are connected\n"),
        ({"state": "waiting", "round": 2, "rounds": 9}, "waiting, round 2 of 9: 8 of 8 nodes are connected\n"),
        (
            {"state": "completed", "round": 9, "rounds": 9},
            "the run is over (completed, round 9 of 9), and nodes wait for the next one: "
            "`hypergpu restart` begins it\n",
        ),
        (
            {"state": "stopped", "round": 4, "rounds": 0},
            "the run is over (stopped, round 4), and nodes wait for the next one: `hypergpu restart` begins it\n",
        ),
    ],
)
def test_it_says_how_the_run_stands(calls: Path, status: dict[str, Any], line: str) -> None:
    done = scale(calls, 8, nodes_connected=8, **status)
    assert (done.returncode, done.stdout, done.stderr) == (0, line, "")
    assert "compose up --detach --no-recreate --scale node=8" in calls.read_text().splitlines()


def test_a_run_that_is_over_is_not_waited_for(calls: Path) -> None:
    done = scale(calls, 8, nodes_connected=3, state="stopped", round=4, rounds=0)
    assert done.stdout.startswith("the run is over (stopped, round 4)")


def test_nothing_is_started_where_no_cluster_runs(calls: Path) -> None:
    done = scale(calls, 3, running="")
    assert done.returncode == 2
    assert done.stderr == "no cluster is running in containers here: start one with `make up N=3`\n"
    assert [line.split()[1] for line in calls.read_text().splitlines()] == ["ps"]
