"""What the adaptation makes of late updates, and of buffered rounds."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hypergpu.common.config import SystemConfig
from hypergpu.common.strategies import AdaptationPolicy
from hypergpu.coordinator.core.adaptation import build_orchestrator
from hypergpu.coordinator.core.adaptation.orchestrator import AdaptiveOrchestrator
from hypergpu.coordinator.core.adaptation.progress_control import ProgressControl
from hypergpu.coordinator.core.adaptation.results import record_noise
from hypergpu.coordinator.core.rounds.adaptation import Activity, LateWork, RoundReport
from hypergpu.coordinator.core.rounds.events import Contribution, LateUpdate
from hypergpu.simulation.run import Outcome, simulate
from hypergpu.simulation.scenario import Scenario

LATE = Contribution("slow", success=False, batch_size=8, waiting_seconds=3.0, late=True)
IN_TIME = [Contribution(node, success=True, samples=80, batch_size=8, compute_seconds=1.0) for node in ("a", "b")]


def orchestrator_after(rounds: int, *, merged: bool) -> AdaptiveOrchestrator:
    """Return an orchestrator after rounds in which one node was late, and its update merged or refused."""
    orchestrator = build_orchestrator(SystemConfig.model_validate({"training": {"mode": "late", "rounds": 0}}))
    for node in ("a", "b", "slow"):
        orchestrator.register_node(node)
    for number in range(1, rounds + 1):
        orchestrator.plan_round(["a", "b", "slow"], number)
        orchestrator.finish_round(RoundReport(number, 1.0 / number, 2.0, 160, contributions=[*IN_TIME, LATE]))
        orchestrator.record_late(LateWork("slow", 3.0, Activity.DONE, 2.0, 8, 10, merged=merged))
    return orchestrator


@pytest.mark.parametrize("merged", [True, False])
def test_a_node_whose_late_updates_count_is_reliable_and_not_quarantined(merged: bool) -> None:
    details = orchestrator_after(8, merged=merged).selector.get_node_details("slow")
    assert (details["state"] == "active") is merged
    assert details["successes"] == (details["attempts"] if merged else 0)


def test_a_late_update_counts_in_the_noise_scale_by_its_weight() -> None:
    seen: list[Any] = []
    batches: Any = SimpleNamespace(
        updates=SimpleNamespace(observe=lambda *figures: seen.append(figures)), local_steps=2
    )
    record_noise((2.0, 1.0), IN_TIME[:1], (), batches)
    assert not seen, "one update says nothing of the noise"
    record_noise((2.0, 1.0), IN_TIME[:1], [LateUpdate("slow", 1, 3, 80, 40.0, 1.0, 1.0)], batches)
    assert seen == [((2.0, 1.0), 2, 60.0, 2)]


def buffered(tmp_path: Path, **changes: Any) -> tuple[Outcome, list[dict[str, Any]]]:
    """Return a run of buffered rounds, with a node of a third of the speed of the others, and its rows."""
    tree = {
        "name": "buffered",
        "task": "digits",
        "learning": "model",
        "policy": "reactive",
        "rounds": 25,
        "nodes": [{"id": "node", "count": 4, "gpu": "T4"}, {"id": "slow", "gpu": "T4", "speed": 0.3}],
        "compute": {"seconds_per_step": 0.02, "seconds_per_sample": 0.001},
        "config": {"training": {"mode": "buffered"}},
        **changes,
    }
    outcome = simulate(Scenario.model_validate(tree), tmp_path)
    return outcome, [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]


def test_a_slow_node_gets_fewer_steps_in_buffered_rounds_and_is_told_why(tmp_path: Path) -> None:
    _, rows = buffered(tmp_path)
    assert "node_steps" not in rows[0], "nothing was measured yet"
    assert {name for row in rows for name in row.get("node_steps", ())} == {"slow"}
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    told = [each for each in events if each.get("reason") == "matches_speed"]
    assert {each["subject"] for each in told} == {"slow"}
    figures = told[0]["figures"]
    steps = [row["node_steps"]["slow"] for row in rows if "node_steps" in row][-1]
    assert (figures["from"], told[-1]["figures"]["to"]) == (10, steps)
    expected = figures["communication_seconds"] + steps * figures["step_seconds"]
    assert expected == pytest.approx(figures["fastest_seconds"], rel=0.15)
    late = [each for row in rows for each in row.get("late", ()) if each["node"] == "slow"]
    assert late[-1]["samples"] == steps * 64


@pytest.mark.parametrize(
    "changes",
    [{"policy": "none"}, {"config": {"training": {"mode": "late"}}}],
)
def test_other_rounds_give_all_nodes_the_same_steps(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert not any("node_steps" in row for row in buffered(tmp_path, **changes)[1])


def test_buffered_rounds_take_all_nodes_on_the_configured_work(tmp_path: Path) -> None:
    outcome, rows = buffered(tmp_path)
    assert {size for row in rows for size in row["batch_sizes"].values()} == {64}
    assert {row["local_steps"] for row in rows} == {10}
    assert all(len(row["contributors"]) + len(row.get("late", ())) == 3 for row in rows), "half of five nodes"
    contributed = {node.node_id: node.rounds_contributed for node in outcome.nodes}
    assert 0 < contributed["slow"] < min(count for node, count in contributed.items() if node != "slow")


@pytest.mark.parametrize(("mode", "adds"), [("sync", True), ("late", True), ("buffered", False)])
def test_no_momentum_is_added_to_buffered_rounds(mode: str, adds: bool) -> None:
    config = SystemConfig.model_validate({"training": {"mode": mode}})
    assert bool(ProgressControl(config, AdaptationPolicy.REACTIVE).momentum) is adds
