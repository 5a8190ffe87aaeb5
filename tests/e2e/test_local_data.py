"""Nodes that train on samples which they alone hold."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.local import Cluster, Process

pytestmark = pytest.mark.e2e

SITES = """
import os, torch
from torch import nn
from hypergpu.tasks import Task
from hypergpu.tasks.digits import read_images
def samples_of(node_id):
    assert "COORDINATES" not in os.environ, "the coordinator has no training samples"
    (images, digits), _ = read_images()
    own = digits < 5 if node_id == "low" else digits >= 5 if node_id == "high" else digits > 9
    return images[own], digits[own]
def factory():
    def model():
        return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    return Task(model=model, local=samples_of, test=read_images()[1], name="sites")
"""
TASK = "--task=sites:factory"


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sites.py").write_text(SITES)


def coordinator(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, *arguments: str, name: str = "coordinator"
) -> Process:
    with monkeypatch.context() as here:
        here.setenv("COORDINATES", "yes")
        return cluster.coordinator(TASK, "--set=training.partition=local", *arguments, name=name)


def node(cluster: Cluster, name: str, address: str, *arguments: str) -> Process:
    options = (f"--coordinator={address}", f"--node-id={name}", "--insecure", TASK, *arguments)
    return cluster.start(f"{name}-{len(cluster.processes)}", "node", *options)


def rows(cluster: Cluster) -> dict[str, dict[str, Any]]:
    return {row["node_id"]: row for row in json.loads((cluster.out / "nodes.json").read_text())}


@pytest.mark.usefixtures("task")
def test_two_nodes_with_disjoint_classes_teach_the_model_both_and_one_that_returns_goes_on_in_its_data(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = coordinator(cluster, monkeypatch, "--rounds=60", "--min-nodes=2", "--set=training.evaluate_every=5")
    address = run.address()
    low = node(cluster, "low", address, "--set=node.report_data=classes")
    high = node(cluster, "high", address)
    cluster.reach(8)
    high.kill()
    cluster.reach(12)
    again = node(cluster, "high", address)
    assert run.wait() == 0, run.text
    assert [low.wait(), again.wait()] == [0, 0]
    found = rows(cluster)
    assert found["low"]["samples_held"] == sum(found["low"]["classes"].values()) > 700
    assert set(found["low"]["classes"]) == {"0", "1", "2", "3", "4"}
    assert found["high"]["samples_held"] is None, "its user did not permit it"
    done = cluster.rounds()
    with_high = [row["round"] for row in done if "high" in row["contributors"]]
    assert min(with_high) <= 8
    assert max(with_high) > 20, "its data is used again after it came back"
    assert found["high"]["samples_used"] > 0
    # Either half of the classes alone is about half of the held-out digits.
    assert cluster.summary()["final_accuracy"] > 0.9


@pytest.mark.usefixtures("task")
def test_what_is_missing_is_said_at_the_start(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = cluster.coordinator("--task=digits", "--set=training.partition=local", name="shipped")
    assert shipped.wait() == 2
    assert "task 'digits' does not say which samples a node holds" in " ".join(shipped.text.split())
    shared = cluster.coordinator(TASK, name="shared")
    assert shared.wait() == 2
    assert "choose training.partition=local" in " ".join(shared.text.split())
    run = coordinator(cluster, monkeypatch, "--rounds=2")
    empty = node(cluster, "elsewhere", run.address())
    assert empty.wait() not in (0, None)
    assert "node elsewhere holds no samples of task 'sites'" in " ".join(empty.text.split())


@pytest.mark.usefixtures("task")
def test_a_resumed_run_goes_on_in_the_data_of_each_node(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    for rounds in (4, 9):
        arguments = (f"--rounds={rounds}", "--min-nodes=2", "--set=orchestrator.policy=none", "--resume")
        run = coordinator(cluster, monkeypatch, *arguments, name=f"coordinator-{rounds}")
        nodes = [node(cluster, name, run.address()) for name in ("low", "high")]
        assert run.wait() == 0, run.text
        assert [each.wait() for each in nodes] == [0, 0]
        used.append({name: row["samples_used"] for name, row in rows(cluster).items()})
    assert used[0]["low"] == used[0]["high"] > 0
    assert used[1] == {name: samples * 9 // 4 for name, samples in used[0].items()}
