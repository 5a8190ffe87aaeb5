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
    assert outcome.best_metric is not None
    assert outcome.best_metric > 0.93
    assert [row["round"] for row in written] == list(range(1, 26))
    assert simulate(found).course == outcome.course, "the same scenario gives the same run"


def test_more_fragments_than_the_model_has_tensors_are_refused() -> None:
    with pytest.raises(InvalidInput, match="fragments is 16, and the model has 4 trainable tensors"):
        simulate(scenario(16))


# ---------------------------------------------------------------- overlap

THIN = {"thin": {"based_on": "perfect", "up": {"bandwidth_mbit": 1}, "down": {"bandwidth_mbit": 2}}}
"""Links on which the larger of two fragments of `digits` takes 0.5 s up and 0.3 s down."""


def overlapped(*, overlap: bool, **changes: Any) -> Scenario:
    nodes = [{"id": "node", "count": 4, "gpu": "A100", "profile": "thin"}]
    compute = {"seconds_per_step": 0.05, "seconds_per_sample": 0.0, "spread": 0.0}
    tree = {"nodes": nodes, "profiles": THIN, "compute": compute} | changes
    return scenario(2, training={"overlap": overlap}, **tree)


def test_with_overlap_nodes_wait_for_no_transfer_and_move_as_many_bytes(tmp_path: Path) -> None:
    _, plain = rows(overlapped(overlap=False), tmp_path / "plain")
    _, beside = rows(overlapped(overlap=True), tmp_path / "beside")
    assert beside[0]["seconds"] == pytest.approx(plain[0]["seconds"], rel=0.01), "the first work waits for the model"
    for before, after in zip(plain[3:], beside[3:], strict=True):
        trained = max(after["compute_seconds"].values())
        assert before["seconds"] > trained + 0.3
        assert after["seconds"] < trained + 0.02, "what it takes to say so"
        assert after["compute_utilisation"] > 0.99
        assert before["compute_utilisation"] < 0.86
    for key in ("bytes_up", "bytes_down"):
        moved = [sum(sum(row[key].values()) for row in found[2:]) for found in (plain, beside)]
        assert moved[1] == pytest.approx(moved[0], rel=0.05)


def test_with_overlap_a_run_learns_the_same_however_long_its_transfers_take() -> None:
    def losses(outcome: Outcome) -> list[float]:
        return [loss for _, loss in outcome.losses]

    thin, plain = simulate(overlapped(overlap=True)), simulate(overlapped(overlap=False))
    assert losses(plain) != pytest.approx(losses(thin), rel=1e-3)
    for up, down in ((0.1, 2.0), (1.0, 0.1)):  # the larger fragment takes 5 s, and the training 2 s
        profiles = {"thin": {**THIN["thin"], "up": {"bandwidth_mbit": up}, "down": {"bandwidth_mbit": down}}}
        slower = simulate(overlapped(overlap=True, profiles=profiles))
        assert losses(slower) == pytest.approx(losses(thin), rel=1e-5), "but for the order of a sum"
        assert slower.bytes == pytest.approx(thin.bytes, rel=0.05), "nothing is sent twice"
        assert slower.seconds > thin.seconds + 10.0


@pytest.mark.parametrize("connections", [1, 4])
def test_transfers_that_break_beside_the_training_are_made_good(connections: int, tmp_path: Path) -> None:
    nodes = [
        {"id": "steady", "count": 3, "gpu": "A100", "profile": "thin"},
        {"id": "lossy", "gpu": "A100", "profile": "lossy"},
    ]
    profiles = THIN | {"lossy": {"based_on": "thin", "loss": 0.3}}
    found = overlapped(
        overlap=True,
        nodes=nodes,
        profiles=profiles,
        loss_model="rpc",
        rounds=20,
        config={"transfers": {"connections": connections}},
    )
    outcome, written = rows(found, tmp_path)
    assert [row["round"] for row in written] == list(range(1, 21))
    (lossy,) = [node for node in outcome.nodes if node.node_id == "lossy"]
    assert lossy.rpcs_lost > 10
    assert lossy.rounds_contributed > 5
    assert outcome.final_metric is not None
    assert outcome.final_metric > 0.95
