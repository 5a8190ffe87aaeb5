"""Nodes that hold their own samples, in virtual time."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from hypergpu.common.config import TrainingConfig
from hypergpu.simulation.node_samples import NodeSamples, with_dealt_samples
from hypergpu.simulation.run import Outcome, simulate
from hypergpu.simulation.scenario import Scenario
from hypergpu.tasks import load_task
from hypergpu.tasks.samples import count, labels

NODES = ("node_0", "node_1", "node_2", "node_3", "node_4")


def run(out: Path, **training: Any) -> tuple[Outcome, list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Simulate five nodes of two classes each, of which one has a far slower card and link."""
    slow = {"id": "node_4", "profile": "poor", "gpu": "laptop-cpu"}
    tree = {
        "task": "examples.local_data:digits",
        "rounds": 20,
        "policy": "reactive",
        "nodes": [{"id": "node", "count": 4, "profile": "good", "gpu": "A100"}, slow],
        "config": {"training": {"partition": "local", **training}, "node": {"report_data": "count"}},
    }
    outcome = simulate(Scenario.model_validate(tree), out)
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    nodes = {row["node_id"]: row for row in json.loads((out / "nodes.json").read_text())}
    return outcome, events, nodes


def test_what_only_a_slow_node_knows_is_learnt_too(tmp_path: Path) -> None:
    outcome, events, nodes = run(tmp_path)
    assert sum(row["samples_held"] for row in nodes.values()) == count(load_task("digits").train)
    turns = [event for event in events if event.get("reason") == "data_turn"]
    assert turns, "the node that was left out has its turn"
    for event in turns:
        assert event["figures"]["seen_share"] < 0.5 * event["figures"]["held_share"]
    assert all(node.rounds_contributed >= 5 for node in outcome.nodes)
    assert not outcome.quarantined
    assert not any(event.get("reason") == "taken_over" for event in events)
    # Without the two classes of the slow node, no more than eight of ten digits can be told.
    assert outcome.best_metric is not None
    assert outcome.best_metric > 0.85


def test_the_data_of_a_task_is_dealt_once_to_the_nodes_of_a_scenario() -> None:
    config = TrainingConfig(partition="local", dirichlet_alpha=0.2, seed=4)
    task = with_dealt_samples(load_task("digits"), NODES, config)
    own = NodeSamples(task, config.seed, "classes")
    reports = [own.report(node) for node in NODES]
    assert sum(report.samples for report in reports if report) == count(task.train)
    assert len({tuple(report.classes.items()) for report in reports if report}) == len(NODES)
    data, indices = own.take("node_1", 5, 8)
    assert reports[1] is not None
    assert len(indices) == 8
    assert indices.max() < count(data) == reports[1].samples
    again, same = NodeSamples(task, config.seed, "none").take("node_1", 5, 8)
    assert np.array_equal(indices, same)
    assert np.array_equal(labels(again), labels(data))
    assert with_dealt_samples(task, NODES, config) is task, "a task that deals itself stays as it is"
