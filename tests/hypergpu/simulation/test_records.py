import json
from pathlib import Path

import pytest

from hypergpu.coordinator.core.rounds.node_time import total_time
from hypergpu.report import write_report
from hypergpu.report.node_time import times, traffic
from hypergpu.report.run import read_run
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario


def test_the_files_tell_what_happened_to_the_network_and_what_was_moved(tmp_path: Path) -> None:
    tree = {"name": "test", "learning": "model", "rounds": 6, "nodes": [{"id": "n", "count": 3, "gpu": "T4"}]}
    events = [{"round": 3, "type": "latency_spike", "node": "n_1", "duration_seconds": 1, "added_ms": 50}]
    outcome = simulate(Scenario.model_validate(tree | {"events": events}), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    happened = [(row["round"], row["text"]) for row in rows if row["kind"] == "network"]
    assert happened == [(3, "latency_spike on n_1 for 1 s: +50 ms")]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["bytes_sent"] + summary["bytes_received"] == outcome.bytes
    report = write_report(tmp_path)
    assert report.run.notes == ()
    assert "latency_spike on n_1" in report.path.read_text()


def test_the_parts_of_a_simulated_round_are_those_of_its_link_and_card(tmp_path: Path) -> None:
    """4 Mbit down and 1 Mbit up with 200,000 bytes each: 0.4 s and 1.6 s."""
    tree = {
        "learning": "model",
        "loss_model": "rpc",
        "rounds": 5,
        "policy": "none",
        "profiles": {
            "slow": {"rtt_ms": [20, 20], "down": {"bandwidth_mbit": 4}, "up": {"bandwidth_mbit": 1}},
            "fast": {"rtt_ms": [2, 2], "down": {"bandwidth_mbit": 400}, "up": {"bandwidth_mbit": 100}},
        },
        "convergence": {"model_bytes": 200_000},
        "compute": {"seconds_per_step": 0.05, "seconds_per_sample": 0.0, "spread": 0.0},
        "nodes": [{"id": "a", "gpu": "H100", "profile": "slow"}, {"id": "b", "gpu": "H100", "profile": "fast"}],
        "handling_seconds": 0.0,
    }
    simulate(Scenario.model_validate(tree), tmp_path)
    run = read_run(tmp_path)
    spent, moved = times(run), traffic(run)
    assert total_time(spent.values()).total == pytest.approx(2 * sum(closed.seconds for closed in run.rounds))
    assert spent["a"].download == pytest.approx(5 * 0.43, rel=0.02)
    assert spent["a"].upload == pytest.approx(5 * 1.60, rel=0.005)
    assert spent["a"].compute == spent["b"].compute == pytest.approx(5 * 10 * 0.0617, rel=0.01)
    assert spent["a"].wait == pytest.approx(0.0, abs=0.05)
    assert spent["b"].wait == pytest.approx(5 * 1.98, rel=0.05)
    for node in ("a", "b"):
        assert moved[node].down == pytest.approx(5 * 200_000, rel=0.01)
        assert moved[node].up == pytest.approx(5 * 200_000, rel=0.01)
    rows = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    computing = [row["compute_seconds"]["a"] / row["seconds"] for row in rows]
    assert [row["compute_utilisation"] for row in rows] == pytest.approx(computing, rel=1e-4)
