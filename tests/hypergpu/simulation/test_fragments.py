"""Runs whose rounds synchronise one fragment each, in virtual time."""

from pathlib import Path
from typing import Any

import pytest

from hypergpu.common import strict_json
from hypergpu.common.errors import InvalidInput
from hypergpu.simulation.run import Outcome, simulate
from hypergpu.simulation.scenario import Scenario


def scenario(fragments: int, **changes: Any) -> Scenario:
    tree: dict[str, Any] = {
        "name": "fragments",
        "task": "digits",
        "rounds": 12,
        "policy": "none",
        "nodes": [{"id": "node", "count": 4, "gpu": "T4", "profile": "good"}],
    }
    config = changes.pop("config", {})
    training = {"local_steps": 10, "fragments": fragments, **changes.pop("training", {})}
    return Scenario.model_validate({**tree, **changes, "config": {**config, "training": training}})


def rows(found: Scenario, out: Path) -> tuple[Outcome, list[dict[str, Any]]]:
    outcome = simulate(found, out)
    assert outcome.state == "completed", outcome.reason
    return outcome, [strict_json.parse_object(line) for line in (out / "rounds.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("learning", ["real", "model"])
def test_a_round_moves_a_fragment_and_a_node_that_joins_the_whole_model(learning: str, tmp_path: Path) -> None:
    _, whole = rows(scenario(1, learning=learning), tmp_path / "whole")
    _, parts = rows(scenario(2, learning=learning), tmp_path / "parts")

    def moved(found: list[dict[str, Any]], direction: str) -> list[int]:
        return [row[direction]["node_0"] for row in found]

    assert moved(parts, "bytes_down")[0] == pytest.approx(moved(whole, "bytes_down")[0], rel=0.05), "the first download"
    two = sum(moved(parts, "bytes_down")[2:4]), sum(moved(parts, "bytes_up")[2:4])
    one = moved(whole, "bytes_down")[2], moved(whole, "bytes_up")[2]
    assert two == pytest.approx(one, rel=0.05), "two rounds of halves are as much as one of the whole"


def test_a_run_of_fragments_learns_as_much_as_one_of_the_whole_model(tmp_path: Path) -> None:
    whole, _ = rows(scenario(1), tmp_path / "whole")
    parts, _ = rows(scenario(2), tmp_path / "parts")
    assert whole.final_loss is not None
    assert parts.final_loss is not None
    assert parts.final_loss <= 1.1 * whole.final_loss
    assert parts.bytes < 0.6 * whole.bytes


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("policy", ["none", "reactive"])
@pytest.mark.parametrize("codecs", [("int8", "int8"), ("topk", "bf16")])
def test_fragments_work_with_codecs_connections_and_nodes_that_come_and_go(
    policy: str, codecs: tuple[str, str], overlap: bool, tmp_path: Path
) -> None:
    update, parameters = codecs
    compression = {"strategy": "fixed", "update_codec": update, "parameters_codec": parameters}
    nodes = [
        {"id": "steady", "count": 3, "gpu": "T4", "profile": "good"},
        {"id": "churn", "gpu": "T4", "profile": "poor", "churn": {"up_seconds": 4.0, "down_seconds": 2.0}},
    ]
    config = {"compression": compression, "transfers": {"connections": 4}}
    found = scenario(2, policy=policy, nodes=nodes, rounds=25, config=config, training={"overlap": overlap})
    outcome, written = rows(found, tmp_path)
    assert outcome.final_metric is not None
    assert outcome.final_metric > 0.93
    assert [row["round"] for row in written] == list(range(1, 26))
    assert simulate(found).course == outcome.course, "the same scenario gives the same run"


def test_more_fragments_than_the_model_has_tensors_are_refused() -> None:
    with pytest.raises(InvalidInput, match="fragments is 16, and the model has 4 trainable tensors"):
        simulate(scenario(16))
