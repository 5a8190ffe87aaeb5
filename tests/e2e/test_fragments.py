"""Rounds that synchronise one fragment each, in real processes."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario
from tests.e2e.local import Cluster, Process

pytestmark = pytest.mark.e2e

ROUNDS = 8
TRAINING: dict[str, Any] = {"fragments": 2, "local_steps": 5, "batch_size": 16, "min_nodes": 2, "rounds": ROUNDS}


def start(cluster: Cluster, *more: str, rounds: int = ROUNDS) -> Process:
    settings = [f"--set=training.{name}={value}" for name, value in (TRAINING | {"rounds": rounds}).items()]
    return cluster.coordinator("--policy=none", *settings, *more)


def virtual_rows(out: Path, **training: Any) -> list[dict[str, Any]]:
    tree = {
        "name": "fragments",
        "policy": "none",
        "task": "digits",
        "nodes": [{"id": "n", "count": 2, "profile": "perfect"}],
        "config": {"training": TRAINING | training},
    }
    simulate(Scenario.model_validate(tree), out)
    return [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("overlap", [False, True])
def test_real_processes_train_as_the_simulation_does(cluster: Cluster, overlap: bool, tmp_path: Path) -> None:
    coordinator = start(cluster, f"--set=training.overlap={str(overlap).lower()}")
    address = coordinator.address()
    for name in ("n-0", "n-1"):
        cluster.node(name, address)
    assert coordinator.wait() == 0, coordinator.text
    real, virtual = cluster.rounds(), virtual_rows(tmp_path / "virtual", overlap=overlap)
    assert [row["loss"] for row in real] == pytest.approx([row["loss"] for row in virtual], rel=1e-4)
    sent = [row["bytes_up"]["n-0"] for row in real]
    assert sent[0] == sent[2] == sent[4]
    assert sent[1] == sent[3] == sent[5] != sent[0]


@pytest.mark.parametrize("overlap", [pytest.param("false", marks=pytest.mark.soak), "true"])
def test_a_killed_coordinator_and_a_killed_node_lose_no_fragment(cluster: Cluster, overlap: str) -> None:
    more = [f"--set=training.{each}" for each in ("server_momentum=0.5", f"overlap={overlap}")]
    first = start(cluster, *more, rounds=14)
    address = first.address()
    cluster.node("a", address)
    doomed = cluster.node("b", address)
    cluster.reach(3)
    doomed.kill()
    cluster.node("c", address)
    cluster.reach(5)
    os.kill(first.pid, signal.SIGKILL)
    settings = [f"--set=training.{name}={value}" for name, value in (TRAINING | {"rounds": 14}).items()]
    second = cluster.coordinator("--policy=none", "--resume", *settings, *more, listen=address, name="second")
    assert second.wait() == 0, second.text
    rows = cluster.rounds()
    assert [row["round"] for row in rows] == list(range(1, 15))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]


def test_what_breaks_beside_the_training_is_made_good(cluster: Cluster, tmp_path: Path) -> None:
    coordinator = start(cluster, "--set=training.overlap=true", "--set=training.deadline_mads=10000", rounds=12)
    address = coordinator.address()
    plain = (f"--upstream={address}", "--listen=127.0.0.1:0", "--seed=3")
    proxy = cluster.start("proxy", "proxy", *plain, "--profile=unstable", "--loss-model=rpc").address()
    cluster.node("n-0", address)
    cluster.node("n-1", proxy)
    assert coordinator.wait() == 0, coordinator.text
    rows = cluster.rounds()
    assert len(rows) == 12
    (lossy,) = [each for each in json.loads((cluster.out / "nodes.json").read_text()) if each["node_id"] == "n-1"]
    assert lossy["rounds_contributed"] >= 9
    together = all(len(row["contributors"]) == 2 for row in rows)
    virtual = virtual_rows(tmp_path / "virtual", overlap=True, rounds=12)
    if together:  # else the mean was another one
        assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in virtual], rel=1e-4)
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]
