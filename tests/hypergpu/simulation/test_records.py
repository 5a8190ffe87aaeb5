import json
from pathlib import Path

from hypergpu.report import write_report
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
