"""Connections and codecs that a real cluster chooses by link, through the proxy."""

import json
from typing import Any

import pytest

from tests.e2e.local import Cluster
from tests.e2e.test_link_rates import wide

pytestmark = pytest.mark.e2e

NETWORK = """
loss_model: transport
profiles:
  lossy: {rtt_ms: [60, 60], loss: 0.01, up: {bandwidth_mbit: 30}, down: {bandwidth_mbit: 30}}
  slow: {rtt_ms: [20, 20], up: {bandwidth_mbit: 3}, down: {bandwidth_mbit: 4}}
nodes:
  - {id: lossy, profile: lossy}
  - {id: slow, profile: slow}
"""
ONE_CONNECTION_MBIT = 2.4
"""Rate of one connection over the lossy link: 1.22 · 1,448 bytes / (0.06 s · √0.01), see ADR 0013."""
SETTINGS = (
    "compression.strategy=adaptive",
    "selector.strategy=all_available",
    "batch.strategy=fixed",
    "training.batch_size=4",
    "training.local_steps=1",
)


def test_a_lossy_link_keeps_many_connections_and_a_slow_one_gets_smaller_payloads(cluster: Cluster) -> None:
    task = f"--task={wide.__module__}:{wide.__name__}"
    (cluster.path / "network.yaml").write_text(NETWORK)
    settings = [f"--set={each}" for each in SETTINGS]
    coordinator = cluster.coordinator("--rounds=6", "--min-nodes=2", task, *settings)
    plain = (f"--upstream={coordinator.address()}", "--listen=127.0.0.1:0", "--seed=1")
    proxy = cluster.start("proxy", "proxy", *plain, f"--scenario={cluster.path / 'network.yaml'}").address()
    for name in ("lossy", "slow"):
        cluster.start(name, "node", f"--coordinator={proxy}", f"--node-id={name}", "--insecure", task)
    assert coordinator.wait() == 0, coordinator.text
    rounds = cluster.rounds()
    first, last = rounds[0], rounds[-1]
    nodes = {row["node_id"]: row for row in json.loads((cluster.out / "nodes.json").read_text())}
    assert first["connections_down"] == first["connections_up"] == {"lossy": 16, "slow": 16}
    assert nodes["lossy"]["connections_down"] >= 6
    assert nodes["lossy"]["down_least_mbit"] > 1.5 * ONE_CONNECTION_MBIT
    for direction, mbit in (("down", 4.0), ("up", 3.0)):  # where many connections bring a chunk or two each
        known = nodes["slow"].get(f"{direction}_mbit") or nodes["slow"][f"{direction}_least_mbit"]
        assert known == pytest.approx(mbit, rel=0.2), nodes["slow"]
    assert first["parameters_codec"]["slow"] == "bf16"
    assert (last["codec"]["slow"], last["parameters_codec"]["slow"]) == ("int4", "int8")
    assert last["bytes_down"]["slow"] < 0.55 * first["bytes_down"]["slow"]
    (chosen,) = [row for row in decisions(cluster) if row["to"] == "int4/int8" and row["subject"] == "slow"]
    before = rounds[chosen["round"] - 2]  # another codec may have been tried in between
    saved = before["waiting_seconds"]["slow"] - last["waiting_seconds"]["slow"]
    assert saved > 0.25 * before["waiting_seconds"]["slow"]
    if chosen["reason"] == "transfers_lengthen_round":
        assert chosen["expected_saving_seconds"] == pytest.approx(saved, rel=0.25)
    else:  # its connections changed in the round before, so that nothing was promised
        assert chosen["reason"] == "rate_not_measured"
        assert "expected_saving_seconds" not in chosen


def decisions(cluster: Cluster) -> list[dict[str, Any]]:
    """Decisions that changed something, with their figures beside the reason."""
    rows = [json.loads(line) for line in (cluster.out / "events.jsonl").read_text().splitlines()]
    return [row | row["figures"] for row in rows if row["kind"] == "decision" and "to" in row["figures"]]
