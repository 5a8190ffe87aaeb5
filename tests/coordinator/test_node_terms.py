"""Prices and priority classes of nodes, as they register them."""

import json
import math
from pathlib import Path

import grpc

from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario
from tests.coordinator.test_services import code_of, running


async def test_terms_are_checked_and_shown(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await run.node("a").register(terms=pb.NodeTerms(price_per_hour=2.5, priority="high"))
        await run.node("b").register()
        nodes = {node.node_id: node for node in (await run.control.ListNodes(pb.ListNodesRequest())).nodes}
        assert (nodes["a"].terms.price_per_hour, nodes["a"].terms.priority) == (2.5, "high")
        assert (nodes["b"].terms.price_per_hour, nodes["b"].terms.priority) == (0.0, "normal")
        for price, priority in ((-1.0, "low"), (math.nan, "low"), (math.inf, "low"), (1e7, "low"), (1.0, "urgent")):
            bad = pb.NodeTerms(price_per_hour=price, priority=priority)
            code, text = await code_of(run.node("c").register(terms=bad))
            assert code is grpc.StatusCode.ABORTED
            assert "expected" in text
        assert run.coordinator.engine.machine.members.get("c") is None


def test_a_run_records_what_it_has_spent(tmp_path: Path) -> None:
    nodes = [{"id": "paid", "price_per_hour": 36.0}, {"id": "free"}]
    tree = {"rounds": 5, "learning": "model", "policy": "none", "nodes": nodes}
    outcome = simulate(Scenario.model_validate(tree), tmp_path)
    rows = {row["node_id"]: row for row in json.loads((tmp_path / "nodes.json").read_text())}
    seconds = math.fsum(outcome.round_seconds)
    assert math.isclose(rows["paid"]["spent"], 0.01 * seconds, rel_tol=1e-3)
    assert "spent" not in rows["free"]
    assert json.loads((tmp_path / "summary.json").read_text())["spent"] == rows["paid"]["spent"]
