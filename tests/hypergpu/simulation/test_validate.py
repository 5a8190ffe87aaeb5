"""The simulator held against another run, here one of its own on a machine that it does not know."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from hypergpu.cli import validate as command
from hypergpu.cli.app import app
from hypergpu.common.errors import InvalidInput
from hypergpu.common.metric import ACCURACY
from hypergpu.simulation.calibration import calibrate, compute_times
from hypergpu.simulation.compute import base_seconds, read_rounds
from hypergpu.simulation.node import Start
from hypergpu.simulation.real_run import _settings, _written, require_local
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import ComputeTimes, Scenario
from hypergpu.simulation.validate import (
    Agreement,
    Limits,
    RoundTimes,
    Trivial,
    compare_with_real,
    round_times,
    trivial_scores,
)

CARDS = ["A100", "T4", "laptop-cpu"]
STARTS = {"n_0": Start(1.0, 3.1), "n_1": Start(0.2, 4.9), "n_2": Start(1.4, 2.0)}


def scenario(**changes: Any) -> Scenario:
    nodes = [{"id": "n", "count": 3, "gpu": CARDS, "profile": ["good", "average", "poor"]}]
    return Scenario.model_validate(
        {
            "name": "small",
            "nodes": nodes,
            "rounds": 10,
            "learning": "model",
            "policy": "none",
            "seed": 3,
            "loss_model": "rpc",
        }
        | changes
    )


def elsewhere(tested: Scenario, out: Path) -> None:
    """A run on a machine with times of its own, which validation has to find out."""
    times = ComputeTimes(seconds_per_step=0.004, seconds_per_sample=0.00002, spread=0.0)
    there = tested.changed(compute=times, handling_seconds=0.03, evaluation_seconds=0.1)
    simulate(there, out / "real", starts=STARTS)


@pytest.mark.parametrize("policy", ["none", "reactive", "conservative"])
def test_what_differs_is_the_machine_alone_and_that_is_found_out(policy: str, tmp_path: Path) -> None:
    tested = scenario(policy=policy)
    elsewhere(tested, tmp_path)
    found = compare_with_real(tested, tmp_path)
    assert found.handling_seconds == pytest.approx(0.03, abs=0.003)
    assert found.replayed.rounds == 10
    assert found.replayed.median_error < 0.01
    assert found.simulated.error_of_median < 0.15  # its own decisions take other local steps, and no rollback ends them
    assert found.selection_agreement > 0.9
    assert not found.failures(Limits())
    assert found.trivial.least_time_error > 0.01 > found.replayed.median_error
    (failure,) = found.failures(Limits(agreement=1.01))
    assert failure.endswith("at least 101% must")


def test_a_network_that_is_not_the_real_one_does_not_pass(tmp_path: Path) -> None:
    nodes = [{"id": "n", "count": 3, "gpu": "A100", "profile": "average"}]
    elsewhere(scenario(nodes=nodes), tmp_path)
    nodes[0]["profile"] = "poor"
    found = compare_with_real(scenario(nodes=nodes), tmp_path)
    assert found.replayed.median_error > 0.1
    assert any(each.startswith("replayed rounds are") for each in found.failures(Limits(agreement=0.0)))


def rows_of(*rounds: tuple[float, str]) -> list[dict[str, Any]]:
    return [{"seconds": seconds, "batch_sizes": dict.fromkeys(nodes, 64)} for seconds, nodes in rounds]


def test_predictors_that_know_nothing_are_scored_alike() -> None:
    found = trivial_scores(rows_of((1.0, "abcd"), (2.0, "ab"), (4.0, "abc"), (1.0, "abcd")), nodes=4)
    assert found.mean_time_error == pytest.approx(0.75)  # the mean is 2: 100, 0, 50 and 100 % apart
    assert found.previous_time_error == pytest.approx(0.5)  # 50, 50 and 300 % apart
    assert found.least_time_error == pytest.approx(0.5)
    assert found.everybody_agreement == pytest.approx((4 + 2 + 3 + 4) / 16)
    assert trivial_scores(rows_of((2.0, "a")), nodes=1) == Trivial(0.0, math.inf, 1.0)


def agreement(**figures: Any) -> Agreement:
    replayed = RoundTimes(9, 1.0, 1.0, 0.0, figures.pop("error", 0.04), 0.2)
    own = RoundTimes(9, 1.0, 1.1, figures.pop("own_error", 0.1), 0.1, 0.3)
    trivial = Trivial(figures.pop("mean", 0.3), figures.pop("previous", 0.05), figures.pop("everybody", 0.8))
    return Agreement(
        "s", "reactive", replayed, own, figures.pop("agreement", 0.9), 1.0, trivial, ACCURACY, 0.9, 0.9, 0.005
    )


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        ({}, None),
        ({"error": 0.11, "previous": 0.2}, "replayed rounds are 11.0% apart; at most 10% may be"),
        ({"error": 0.05}, "replayed rounds are 5.0% apart; a constant or the round before is 30.0% and 5.0% apart"),
        ({"mean": 0.04}, "replayed rounds are 4.0% apart; a constant or the round before is 4.0% and 5.0% apart"),
        ({"error": 0.0, "mean": 0.0, "previous": 0.0}, None),
        ({"own_error": 0.21}, "its own decisions make a median round 21.0% apart; at most 20% may be"),
        ({"agreement": 0.74, "everybody": 0.5}, "selections agree in 74%; at least 75% must"),
        ({"agreement": 0.96, "everybody": 0.96}, "selections agree in 96.0%; taking everybody agrees in 96.0%"),
        ({"agreement": 1.0, "everybody": 1.0}, None),
    ],
)
def test_a_simulator_has_to_beat_what_knows_nothing(figures: dict[str, float], told: str | None) -> None:
    assert agreement(**figures).failures(Limits()) == ([] if told is None else [told])


@pytest.mark.parametrize(("everybody", "code"), [(0.8, 0), (0.95, 1)])
def test_the_command_prints_the_scores_and_fails_with_them(
    monkeypatch: pytest.MonkeyPatch, everybody: float, code: int
) -> None:
    monkeypatch.setattr(command, "run_both", lambda *_: agreement(everybody=everybody))
    done = CliRunner().invoke(app, ["validate", "mixed"])
    assert done.exit_code == code
    assert "30.0% if every round took the mean time, 5.0% if each took as long as the one before" in done.output
    assert f"90.0% agreement; {everybody:.1%} if everybody were selected" in done.output
    assert ("FAIL  selections agree in 90.0%; taking everybody agrees in 95.0%" in done.output) == bool(code)
    record = json.loads(CliRunner().invoke(app, ["validate", "mixed", "--json"]).output)
    assert (record["passed"], len(record["failures"])) == (not code, code)
    assert record["trivial"]["everybody_agreement"] == everybody
    assert record["limits"] == {"error": 0.1, "own_error": 0.2, "agreement": 0.75}


def test_starts_and_evaluation_are_read_from_the_run(tmp_path: Path) -> None:
    tested = scenario()
    elsewhere(tested, tmp_path)
    found = calibrate(tmp_path / "real", tested)
    assert found.evaluation_seconds == pytest.approx(0.1, abs=0.002)
    for node, start in STARTS.items():
        assert found.starts[node].join_delay_seconds == pytest.approx(start.join_delay_seconds, abs=0.1)
        assert found.starts[node].setup_seconds == pytest.approx(start.setup_seconds, abs=0.4)


def row(node: str, batch: int, seconds: float, steps: int = 10) -> dict[str, Any]:
    return {
        "samples": steps * batch,
        "local_steps": steps,
        "contributors": [node],
        "batch_sizes": {node: batch},
        "compute_seconds": {node: seconds},
    }


def test_compute_times_are_a_line_through_the_batches_that_a_node_had() -> None:
    usual = ComputeTimes(seconds_per_step=0.001, seconds_per_sample=0.0001)
    rows = [row("a", batch, 10 * (0.02 + 0.0005 * batch)) for batch in (16, 64, 70, 256)]
    rows += [row("a", 128, 99.0), row("b", 64, 10 * 3 * base_seconds(usual, 64))]
    found = compute_times(rows, usual, {"a": 1.0, "b": 2.0, "c": 8.0})
    assert found["a"].seconds_per_step == pytest.approx(0.02, rel=0.01)
    assert found["a"].seconds_per_sample == pytest.approx(0.0005, rel=0.01)
    assert base_seconds(found["b"], 256) == pytest.approx(3 * base_seconds(usual, 256)), "one size: the task's shape"
    assert base_seconds(found["c"], 64) == pytest.approx(12 * base_seconds(usual, 64)), "b's, on a slower card"
    fewer = {**row("a", 16, 5 * 0.028), "node_steps": {"a": 5}}
    assert compute_times([fewer, *rows[1:4]], usual, {"a": 1.0}) == {"a": found["a"]}, "a node with steps of its own"
    with pytest.raises(InvalidInput, match="no round"):
        compute_times([], usual, {"a": 1.0})


def test_the_speed_of_a_node_that_was_always_late_is_that_of_its_late_updates(tmp_path: Path) -> None:
    """Two fast nodes close each round at once; the third one needs ten times as long as its card would."""
    groups = [
        {"id": "fast", "count": 2, "gpu": "A100", "profile": "good"},
        {"id": "slow", "gpu": "A100", "profile": "good", "speed": 0.1},
    ]
    config = {"training": {"close_share": 0.6}}
    tested = scenario(nodes=groups, rounds=30, config=config, compute={"seconds_per_step": 0.01, "spread": 0.0})
    outcome = simulate(tested, tmp_path / "real")
    assert {each.node_id: each.rounds_contributed for each in outcome.nodes}["slow"] == 0
    found = calibrate(tmp_path / "real", scenario(nodes=[*groups[:1], {"id": "slow", "gpu": "A100"}])).compute.times
    fast, slow = (base_seconds(found[name], 64) for name in ("fast_0", "slow"))
    assert slow == pytest.approx(10 * fast, rel=0.05)


def test_errors_are_relative_to_the_real_round() -> None:
    found = round_times([{"seconds": s} for s in (1.0, 2.0, 4.0)], [{"seconds": s} for s in (1.1, 2.0, 3.0)])
    assert found.error_of_median == 0.0
    assert found.median_error == pytest.approx(0.1)
    assert found.worst_error == pytest.approx(0.25)
    with pytest.raises(InvalidInput, match="no round"):
        round_times([], [{"seconds": 1.0}])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"nodes": [{"id": "n", "churn": {"up_seconds": 9, "down_seconds": 9}}]}, "churn"),
        ({"learning": "model"}, "real gradients"),
        ({"events": [{"at_seconds": 3, "type": "latency_spike", "node": "n_0"}]}, "by round"),
    ],
)
def test_what_a_local_cluster_cannot_do_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        require_local(scenario(**({"learning": "real"} | changes)))


def test_regions_profiles_and_the_transport_model_are_not() -> None:
    nodes = [{"id": "n", "profile": "mine", "region": "eu-west"}]
    profiles = {"mine": {"based_on": "dsl", "loss": 0.01}}
    require_local(scenario(nodes=nodes, profiles=profiles, loss_model="transport", learning="real"))


@pytest.mark.parametrize("given", [{}, {"loss_model": "rpc"}])
def test_the_proxy_gets_the_loss_model_of_the_scenario_even_if_it_is_the_default(
    given: dict[str, str], tmp_path: Path
) -> None:
    tested = Scenario.model_validate({"nodes": [{"id": "n"}]} | given)
    network = yaml.safe_load(_written(tested, tmp_path).read_text())
    assert network["loss_model"] == tested.loss_model == given.get("loss_model", "transport")


def test_real_processes_get_every_setting_that_is_not_the_default() -> None:
    config = {"transfers": {"connections": 4}, "compression": {"strategy": "adaptive", "max_noise": 0.5}}
    settings = _settings(scenario(config=config))
    assert settings["transfers.connections"] == 4
    assert (settings["compression.strategy"], settings["compression.max_noise"]) == ("adaptive", 0.5)


def test_a_replay_has_the_connections_and_codecs_of_the_real_run(tmp_path: Path) -> None:
    tested = scenario(
        nodes=[{"id": "n", "count": 3, "gpu": "A100", "profile": ["average", "dsl", "4g"]}],
        policy="reactive",
        loss_model="transport",
        convergence={"model_bytes": 44_000_000},
        rounds=20,
        config={"compression": {"strategy": "adaptive"}},
    )
    elsewhere(tested, tmp_path)
    found = compare_with_real(tested, tmp_path)
    real, replayed = (read_rounds(tmp_path / name) for name in ("real", "replayed"))
    ordered = ("codec", "parameters_codec", "connections_down", "connections_up")
    assert [{key: row[key] for key in ordered} for row in replayed] == [
        {key: row[key] for key in ordered} for row in real
    ]
    assert max(max(row["connections_up"].values()) for row in real) > 1
    assert {codec for row in real for codec in row["parameters_codec"].values()} > {"bf16"}
    assert found.replayed.median_error < 0.02


def test_a_time_limit_is_one_of_virtual_time() -> None:
    with pytest.raises(InvalidInput, match="leave time_limit_seconds out"):
        require_local(scenario(learning="real", time_limit_seconds=9.0))


def test_nodes_of_a_run_tell_when_they_are_ready(tmp_path: Path) -> None:
    simulate(scenario(rounds=1), tmp_path, starts=STARTS)
    rows = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    ready = {r["node"]: r["seconds"] for r in rows if r["kind"] == "node_ready"}
    assert ready.keys() == STARTS.keys()
    begun = next(r["seconds"] for r in rows if r["kind"] == "round_started")
    assert begun == max(ready.values()) > 5.1, "no round waits for a node that still prepares"
    (first,) = read_rounds(tmp_path)
    assert first["seconds"] < 1.5
