"""Scenario files: what holds, and what each fault is told as."""

import json
from pathlib import Path
from typing import Any

import pytest

from hypergpu.common.errors import ConfigError
from hypergpu.simulation.convergence import FITTED
from hypergpu.simulation.counterfactual import scenario_of_run
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.scenario_file import load_scenario, parse_scenario, shipped

BENCHMARKED = Path(__file__).parents[3] / "benchmarks" / "scenarios"
NODES = "nodes:\n  - {id: edge, count: 2, profile: [good, poor], gpu: T4}\n"


def test_a_group_spells_out_its_nodes_and_takes_profiles_in_turn() -> None:
    scenario = parse_scenario(NODES, "f.yaml")
    assert {name: profile.name for name, profile in scenario.profiles_of_links().items()} == {
        "edge_0": "good",
        "edge_1": "poor",
    }
    assert scenario.config.training.min_nodes == 2


def test_the_first_round_waits_for_no_more_of_those_that_come_and_go_than_are_there() -> None:
    text = (
        "nodes:\n  - {id: steady, count: 4}\n  - {id: late, count: 50, join_delay_seconds: 9}\n"
        "  - {id: guest, count: 100, churn: {up_seconds: 10, down_seconds: 30}}\n"
    )
    assert parse_scenario(text, "f.yaml").config.training.min_nodes == 4 + 100 // 8


def test_the_keys_at_the_top_stand_for_the_configuration() -> None:
    text = f"{NODES}rounds: 7\npolicy: none\nseed: 3\nconfig: {{training: {{batch_size: 32}}}}\n"
    config = parse_scenario(text, "f.yaml").config
    assert (config.training.rounds, config.training.batch_size, config.training.seed) == (7, 32, 3)
    assert config.orchestrator.policy == "none"


def test_a_changed_scenario_keeps_what_is_not_changed() -> None:
    scenario = parse_scenario(f"{NODES}rounds: 7\npolicy: none\n", "f.yaml").changed(policy="reactive", seed=9)
    assert (scenario.config.training.rounds, scenario.config.training.seed) == (7, 9)
    assert scenario.config.orchestrator.policy == "reactive"


@pytest.mark.parametrize("text", [f"{NODES}config: {{training: {{rounds: 0}}}}\n"])
def test_a_run_without_an_end_cannot_be_simulated(text: str) -> None:
    with pytest.raises(ConfigError, match="a simulated run needs an end: rounds is 0; expected 1 or more"):
        parse_scenario(text, "f.yaml")
    assert parse_scenario(f"{text}rounds: 1\n", "f.yaml").config.training.rounds == 1


def test_a_change_that_cannot_be_is_told() -> None:
    with pytest.raises(ConfigError, match="policy: input should be 'none'"):
        parse_scenario(NODES, "f.yaml").changed(policy="wild")


def test_an_event_for_a_group_happens_to_all_of_it() -> None:
    scenario = parse_scenario(f"{NODES}events:\n  - {{round: 3, type: partition, nodes: [edge]}}\n", "f.yaml")
    (event,) = scenario.network_events()
    assert event.targets == ("edge_0", "edge_1")
    assert event.scheduled_round == 3


def test_regions_put_their_distance_on_top() -> None:
    text = "nodes:\n  - {id: a, profile: perfect, region: eu-west}\n  - {id: b, profile: perfect, region: us-east}\n"
    far, near = parse_scenario(text, "f.yaml").profiles_of_links().values()
    assert far.up.latency.at(0.5) > near.up.latency.at(0.5) + 0.03


def test_profiles_of_its_own() -> None:
    text = "profiles:\n  phone: {based_on: poor, loss: 0.02}\nnodes:\n  - {id: a, profile: phone}\n"
    assert parse_scenario(text, "f.yaml").profiles_of_links()["a"].loss == pytest.approx(0.02)


def test_a_model_of_another_size_learns_like_the_task() -> None:
    text = f"{NODES}learning: model\nconvergence: {{model_bytes: 100_000_000}}\n"
    curve = parse_scenario(text, "f.yaml").learning_curve()
    assert curve == FITTED["digits"].model_copy(update={"model_bytes": 100_000_000})


def test_all_constants_make_a_model_of_any_task() -> None:
    constants = FITTED["digits"].model_dump() | {"noise_scale": 500.0}
    scenario = Scenario.model_validate(
        {"nodes": [{"id": "a"}], "task": "m:resnet", "learning": "model", "convergence": constants}
    )
    assert scenario.learning_curve().noise_scale == 500.0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nodes:\n  - {id: a}\ntask: m:f\nlearning: model\n", ["f.yaml:4", "no model of convergence", "'m:f'"]),
        ("nodes:\n  - {id: a}\nconvergence:\n  nois_scale: 3\n", ["f.yaml:4", "did you mean 'noise_scale'"]),
        ("nodes:\n  - {id: a}\nconvergence:\n  noise_scale: -3\n", ["f.yaml:4", "noise_scale", "greater than 0"]),
        ("nodes:\n  - {id: a}\ntask: m:f\nconvergence: {model_bytes: 9}\n", ["f.yaml:4", "required"]),
        ("nodes:\n  - {id: a, profil: good}\n", ["f.yaml:2", "nodes.0.profil", "did you mean 'profile'"]),
        ("nodes:\n  - {id: a}\nround: 3\n", ["f.yaml:3", "'round'", "did you mean 'rounds'"]),
        ("nodes:\n  - {id: a}\n  - {id: a}\n", ["f.yaml:3", "'a' is there twice"]),
        ("nodes:\n  - {id: a}\n  - {id: upstream}\n", ["f.yaml:3", "'upstream' is no name for a node"]),
        ("nodes:\n  a: {}\n  b: good\n", ["f.yaml:3", "nodes.b: expected keys and values"]),
        ("nodes: [{id: a}]\nconfig:\n  training:\n    min_nodes: 2\n", ["f.yaml:4", "2 nodes for ever: there are 1"]),
        ("profiles:\n  p: {based_on: q}\n  q: {}\nnodes: [{id: a}]\n", ["f.yaml:2", "'q' does not stand before it"]),
        (
            "profiles:\n  p: {rtt_ms: {distribution: pareto, scal: 4}}\nnodes: [{id: a}]\n",
            ["f.yaml:2", "did you mean 'scale'"],
        ),
        ("nodes:\n  - {id: a_1}\n  - {id: a, count: 3}\n", ["f.yaml:3", "'a_1' is there twice"]),
        ("nodes:\n  - {id: a, profile: goof}\n", ["f.yaml:2", "'goof'", "did you mean 'good'"]),
        ("nodes:\n  - {id: a, gpu: T44}\n", ["f.yaml:2", "'T44'", "did you mean 'T4'"]),
        ("nodes:\n  - {id: a, region: eu-wset}\n", ["f.yaml:2", "'eu-wset'", "did you mean 'eu-west'"]),
        ("nodes:\n  - {id: a}\nupstream_bandwidth: {down_mbits: 3}\n", ["f.yaml:3", "did you mean 'down_mbit'"]),
        ("nodes:\n  - {id: a}\nupstream_bandwidth:\n  up_mbit: 0\n", ["f.yaml:4", "up_mbit", "greater than 0"]),
        ("nodes:\n  - {id: a}\nupstream_bandwidth: {up_mbit: 1e-9}\n", ["f.yaml:3", "1 bit/s at least"]),
        ("nodes:\n  - {id: a}\nupstream_bandwidth: 500\n", ["f.yaml:3", "upstream_bandwidth"]),
        ("nodes:\n  - {id: a}\npolicy: reactiv\n", ["f.yaml:3", "policy"]),
        ("nodes:\n  - {id: a}\nevents:\n  - {type: flap, node: b}\n", ["f.yaml:4", "unknown node 'b'"]),
        ("nodes:\n  - {id: a}\nevents:\n  - {type: flop, node: a}\n", ["f.yaml:4", "did you mean 'flap'"]),
        (
            "nodes:\n  - {id: a}\nevents:\n  - {type: flap, node: a}\n"
            "  - {type: slow_close, node: a, close_after_seconds: 2}\n",
            ["f.yaml:5", "events.1.type: slow_close has no effect in virtual time"],
        ),
        ("nodes:\n  - {id: rack 1}\n", ["f.yaml:2", "nodes.0.id: node id 'rack 1': take 1 to 64 letters"]),
        ("nodes:\n  - {id: " + "a" * 62 + ", count: 11}\n", ["f.yaml:2", "aaa_10': take 1 to 64 letters"]),
        ("nodes: []\n", ["f.yaml:1", "nodes"]),
        ("nodes: [\n", ["f.yaml", "not valid YAML"]),
        ("- 1\n", ["f.yaml:1", "expected keys and values"]),
    ],
)
def test_a_fault_is_told_with_its_line(text: str, told: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_scenario(text, "f.yaml")
    for part in told:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("partition: dirichlet", "config.training.partition: the model of convergence knows no skewed shards"),
        ("server_momentum: 0.9", "config.training.server_momentum: the model of convergence is one of plain SGD"),
        ("local_optimizer: adamw", "config.training.local_optimizer: the model of convergence is one of plain SGD"),
    ],
)
def test_the_model_of_convergence_ignores_no_setting(setting: str, told: str) -> None:
    text = f"{NODES}config:\n  training:\n    {setting}\n"
    with pytest.raises(ConfigError, match=f"f.yaml:5: {told}"):
        parse_scenario(f"{text}learning: model\n", "f.yaml")
    assert parse_scenario(text, "f.yaml").learning == "real"


def test_losses_take_time_unless_calls_are_to_fail() -> None:
    assert parse_scenario(NODES, "f.yaml").loss_model == "transport"
    assert parse_scenario(f"{NODES}loss_model: rpc\n", "f.yaml").loss_model == "rpc"


def test_a_scenario_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mixed'"):
        load_scenario("mixd")


@pytest.mark.parametrize("file", sorted(BENCHMARKED.glob("*.yaml")), ids=lambda file: file.stem)
def test_scenarios_of_the_benchmarks_hold_and_end_at_a_target(file: Path) -> None:
    found = load_scenario(str(file))
    assert found.description.endswith(".")
    assert found.target_accuracy is not None


def test_shipped_scenarios_hold_and_say_what_they_show() -> None:
    found = shipped()
    assert {"calm", "mixed", "thousand-nodes"} <= found.keys()
    assert len(found) >= 16
    by_rpc = {name for name in found if load_scenario(name).loss_model == "rpc"}
    assert by_rpc == {"lossy-rpcs", "mixed"}
    assert {load_scenario(name).config.training.task for name in found} == {"digit_sums", "digits", "mnist5k", "chars"}
    for name, description in found.items():
        assert load_scenario(name).name == name
        assert description.endswith(".")


@pytest.mark.parametrize(("planned", "done", "simulated"), [(0, 3, 3), (0, 0, 1), (9, 3, 9)])
def test_a_real_run_without_an_end_is_simulated_as_far_as_it_went(
    tmp_path: Path, planned: int, done: int, simulated: int
) -> None:
    (tmp_path / "config.yaml").write_text(f"training: {{rounds: {planned}}}\n")
    row: dict[str, Any] = {"ended_seconds": 1.0, "seconds": 1.0, "loss": None, "samples": 0, "local_steps": 10}
    row |= {"contributors": [], "missing": []}
    by_node = "batch_sizes compute_seconds waiting_seconds upload_seconds codec noise parameters_codec"
    row |= {name: {} for name in f"{by_node} connections_down connections_up bytes_down bytes_up".split()}
    rows = [{"round": number, **row} for number in range(1, done + 1)]
    (tmp_path / "rounds.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = scenario_of_run(tmp_path, {"a": "good"})
    assert found.config.training.rounds == simulated
    assert found.loss_model == "rpc", "the default of the proxy that the run went through"
