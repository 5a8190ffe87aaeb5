"""Hostile nodes in virtual time: what they send, and what rules make of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypergpu.common.config.loading import parse
from hypergpu.common.errors import ConfigError
from hypergpu.common.tensors import Flat
from hypergpu.coordinator.core.rounds.suspicion import SuspicionReason
from hypergpu.rewards.scores import Basis, read_epoch
from hypergpu.simulation.attacks import Situation, attack
from hypergpu.simulation.run import Outcome, simulate
from hypergpu.simulation.scenario import Scenario

HONEST = np.array([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0], [5.0, 2.0, 0.0]], np.float32)


def plain_mean(updates: Flat) -> Flat:
    """Mean of the updates whose norm is at most 100."""
    kept = updates[np.linalg.norm(updates, axis=1) <= 100]
    return np.asarray(kept.mean(axis=0), np.float32)


def sent(name: Any, strength: float | None = None, seed: int = 0) -> list[float]:
    found = attack(name, strength, Situation(HONEST, 1, plain_mean, seed))
    assert found.dtype == np.float32
    return [float(value) for value in found]


def test_attacks_send_what_their_papers_say() -> None:
    assert sent("sign_flip") == [-3.0, -2.0, 0.0]
    assert sent("ipm") == [-6.0, -4.0, 0.0]
    assert sent("ipm", 0.1) == pytest.approx([-0.3, -0.2, 0.0])
    assert sent("alie") == pytest.approx([3 + 1.5 * 2.0, 2.0, 0.0])
    assert sent("mimic") == [1.0, 2.0, 0.0]
    assert sent("inf") == [np.inf] * 3
    assert sent("gaussian", seed=1) != sent("gaussian", seed=2)
    assert np.linalg.norm(sent("noise", 5.0)) == pytest.approx(5.0 * np.sqrt(13.0))


def test_optimal_attacks_go_as_far_as_the_coordinator_accepts() -> None:
    assert 80 < np.linalg.norm(sent("optimal_ipm")) <= 100
    assert 80 < np.linalg.norm(sent("optimal_alie")) <= 100


def scenario(attack: Any, *, hostile: int = 1, honest: int = 4, **tree: Any) -> Scenario:
    nodes = [
        {"id": "honest", "count": honest, "gpu": "T4"},
        {"id": "hostile", "count": hostile, "gpu": "T4", "byzantine": attack},
    ]
    whole = {"name": "byzantine", "task": "digits", "rounds": 8, "policy": "none", "nodes": nodes} | tree
    return parse(Scenario, whole, where="here")


ROBUST = {"aggregation": {"rule": "trimmed_mean", "byzantine": 1, "buckets": 5}}


@pytest.mark.parametrize("attack", [{"attack": "sign_flip", "strength": 15}, "optimal_ipm"])
def test_an_attack_that_ruins_the_mean_is_borne_by_a_robust_rule(attack: Any) -> None:
    borne = simulate(scenario(attack, config=ROBUST)).final_metric
    assert borne is not None
    assert borne > 0.85


def test_a_node_is_honest_until_its_attack_begins_and_a_label_flip_learns_the_wrong_labels() -> None:
    honest, later, flipped, copied = (
        simulate(scenario(attack, config=ROBUST, rounds=2)).losses
        for attack in (
            {"attack": "inf", "from_round": 9},
            {"attack": "sign_flip", "from_round": 2},
            "label_flip",
            "mimic",
        )
    )
    assert later[0][1] == honest[0][1]
    assert later[1][1] != honest[1][1]
    assert flipped != honest != copied


@pytest.mark.parametrize("more", [{"config": {"training": {"fragments": 2}}}, {"learning": "model"}])
def test_attacks_that_cannot_be_made_are_refused(more: Any) -> None:
    with pytest.raises(ConfigError, match="byzantine nodes need"):
        scenario("alie", **more)


def test_an_unknown_attack_is_refused() -> None:
    with pytest.raises(ConfigError, match="attack"):
        scenario("nonsense")


@pytest.mark.parametrize(
    "training",
    [{"mode": "late"}, {"mode": "buffered", "buffer_size": 3}, {"fragments": 2}],
    ids=str,
)
def test_robust_rules_work_with_late_buffered_and_fragmented_rounds_and_codecs(training: dict[str, Any]) -> None:
    config = ROBUST | {"training": training, "compression": {"strategy": "fixed", "update_codec": "int8"}}
    tree = {"name": "modes", "task": "digits", "rounds": 8, "policy": "none", "config": config}
    nodes = {f"node_{n}": {"speed": 1.0 / (1 + n), "gpu": "T4"} for n in range(5)}
    outcome = simulate(parse(Scenario, tree | {"nodes": nodes}, where="here"))
    assert outcome.reason == "rounds_done"
    assert outcome.final_metric is not None
    assert outcome.final_metric > 0.6


def suspects(outcome: Outcome) -> set[str]:
    """Return the nodes that were suspected."""
    return {node for node, reasons in outcome.quarantined.items() if set(reasons) & set(SuspicionReason)}


def test_with_default_settings_a_node_that_sends_noise_is_named_and_the_run_goes_on_without_it() -> None:
    outcome = simulate(scenario({"attack": "noise", "strength": 1000}, honest=3, rounds=12))
    assert suspects(outcome) == {"hostile_0"}
    assert outcome.final_metric is not None
    assert outcome.final_metric > 0.9


@pytest.mark.parametrize("suspicion", [False, True])
def test_an_attack_within_the_bound_of_norms_ruins_a_run_only_without_suspicion(suspicion: bool) -> None:
    config = {"aggregation": {"suspicion": suspicion}}
    outcome = simulate(scenario("optimal_ipm", honest=3, rounds=12, config=config))
    assert suspects(outcome) == ({"hostile_0"} if suspicion else set())
    assert outcome.final_metric is not None
    assert (outcome.final_metric > 0.85) == suspicion


@pytest.mark.parametrize(
    "training", [{"partition": "local"}, {"partition": "dirichlet", "dirichlet_alpha": 0.1, "mode": "late"}], ids=str
)
def test_honest_nodes_with_skewed_data_unlike_speeds_and_a_strong_codec_are_not_suspected(
    training: dict[str, Any],
) -> None:
    config = {"training": training, "compression": {"strategy": "fixed", "update_codec": "topk"}}
    nodes = {f"node_{n}": {"speed": 1.0 / (1 + n % 4), "gpu": "T4"} for n in range(6)}
    tree = {"name": "honest", "task": "digits", "rounds": 15, "policy": "none", "config": config, "nodes": nodes}
    assert suspects(simulate(parse(Scenario, tree, where="here"))) == set()


def test_whoever_sends_noise_or_what_was_known_earns_nothing(tmp_path: Path) -> None:
    hostile = [{"id": name, "count": 1, "gpu": "T4", "byzantine": name} for name in ("noise", "replay", "echo")]
    nodes = [{"id": "honest", "count": 6, "gpu": "T4"}, *hostile]
    config = {"aggregation": {"suspicion": False}, "training": {"local_steps": 4}}
    simulate(scenario("noise", nodes=nodes, rounds=15, config=config), tmp_path)
    scores = read_epoch(tmp_path, Basis.USEFULNESS).scores
    honest = [score for node, score in scores.items() if node.startswith("honest")]
    usual = sum(honest) / len(honest)
    assert min(honest) > 0.5 * usual
    assert scores["noise_0"] < 0.1 * usual
    assert (scores["replay_0"], scores["echo_0"]) == (0.0, 0.0)
    rows = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [sorted(row["repeated"]) for row in rows] == [[], *[["echo_0", "replay_0"]] * 14]
    for row in rows:
        assert sum(row["share"].values()) == pytest.approx(1.0, abs=1e-4)
    (noise,) = [row for row in json.loads((tmp_path / "nodes.json").read_text()) if row["node_id"] == "noise_0"]
    assert noise["usefulness"] == pytest.approx(scores["noise_0"] / sum(scores.values()), abs=1e-3)
    assert noise["usefulness_error"] > 0
    gains = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    gains = [each["loss_before"] - each["loss_after"] for each in gains if each["kind"] == "gain_measured"]
    assert 5 <= len(gains) <= 2 * 15
    assert max(gains) > 0.01
