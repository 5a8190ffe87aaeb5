from pathlib import Path

import pytest

from hypergpu.common.errors import ConfigError
from hypergpu.netsim_proxy.config.profile_file import load_profiles, parse_profiles
from hypergpu.netsim_proxy.config.scenario import Network, NodeSection
from hypergpu.netsim_proxy.config.scenario_file import OF_MACHINES, OF_TRAINING, parse_scenario
from hypergpu.netsim_proxy.link import NetworkEvent
from hypergpu.netsim_proxy.link.distributions import Empirical, LogNormal, Normal, Pareto, Uniform
from hypergpu.netsim_proxy.link.profiles import LAST_MILES, Loss
from hypergpu.netsim_proxy.link.regions import between_regions
from hypergpu.simulation.scenario import Nodes, Scenario
from hypergpu.simulation.scenario_file import find_scenario, load_scenario, shipped_names

PROFILES = """
profiles:
  office:
    rtt_ms: [20, 40]
    loss: 0.002
    burst: 4
    jitter_correlation: 0.3
    bandwidth_mbit: 100
    up: {bandwidth_mbit: 20, loss: 0.01}
  phone: {based_on: 4g, queue_bytes: 50000}
  far: {based_on: office, down: {latency_ms: 80}}
  normal: {rtt_ms: {distribution: normal, mean: 40, std: 4, floor: 30}}
  lognormal: {rtt_ms: {distribution: lognormal, median: 40, sigma: 0.5, floor: 20}}
  pareto: {rtt_ms: {distribution: pareto, scale: 20, alpha: 2}}
  measured: {rtt_ms: {distribution: empirical, values: [30, 10, 20]}}
"""


def test_profiles_from_yaml() -> None:
    profiles = parse_profiles(PROFILES, "p.yaml")
    office = profiles["office"]
    assert office.up.latency == Uniform(0.01, 0.02)
    assert (office.up.bandwidth_mbit, office.down.bandwidth_mbit) == (20, 100)
    assert (office.up.loss, office.down.loss) == (Loss(0.01, 4), Loss(0.002, 4))
    assert office.jitter_correlation == 0.3
    assert profiles["phone"].up.latency == LAST_MILES["4g"].up.latency
    assert profiles["phone"].down.queue_limit == 50_000
    assert profiles["far"].down.latency == Uniform(0.08, 0.08)
    assert profiles["far"].up == office.up
    assert profiles["normal"].up.latency == Normal(0.02, 0.002, 0.015)
    assert profiles["lognormal"].up.latency == LogNormal(0.01, 0.5, 0.01)
    assert profiles["pareto"].up.latency == Pareto(0.01, 2)
    assert profiles["measured"].up.latency == Empirical((0.005, 0.01, 0.015))


def test_a_trace_is_a_profile(tmp_path: Path) -> None:
    text = "profiles:\n  lab:\n    trace: |\n      seconds,rtt_ms\n      0,30\n      5,60\n"
    assert parse_profiles(text, "p.yaml")["lab"].trace is not None
    (tmp_path / "lab.csv").write_text("seconds,rtt_ms\n0,30\n")
    assert load_profiles(tmp_path / "lab.csv")["lab"].trace is not None
    with pytest.raises(ConfigError, match=r"cannot read .*none\.yaml: No such file"):
        load_profiles(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("profiles:\n  a:\n    los: 1\n", "p.yaml:3: unknown key 'profiles.a.los'; did you mean 'loss'"),
        ("profiles:\n  a:\n    loss: 2\n", "p.yaml:3: profiles.a.loss: input should be less than or equal to 1"),
        ("profiles:\n  a: {rtt_ms: fast}\n", "p.yaml:2: profiles.a.rtt_ms: expected milliseconds"),
        ("profiles:\n  a: {rtt_ms: [9, 3]}\n", "p.yaml:2: profiles.a.rtt_ms.*lower bound 9 is above"),
        ("profiles:\n  a: {rtt_ms: {distribution: gamma}}\n", "p.yaml:2: profiles.a.rtt_ms: .*'uniform', 'normal'"),
        ("profiles:\n  a: {}\n  b: {based_on: goood}\n", "p.yaml:3: .*did you mean 'good'"),
        ("profiles:\n  a: {loss: 0.9, burst: 2}\n", "p.yaml:2: profiles.a: bursts of 2.0 cannot make up"),
        ("profiles:\n  a:\n    trace: |\n      seconds\n", "p.yaml:2: profiles.a: trace:1: expected the columns"),
        ("profiles: [\n", "p.yaml:2: not valid YAML"),
        ("- 3\n", "p.yaml:1: expected keys and values"),
        ("", "p.yaml:1: expected keys and values"),
    ],
)
def test_bad_profiles_are_named_with_file_line_and_key(text: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        parse_profiles(text, "p.yaml")


def test_a_scenario_from_yaml() -> None:
    scenario = parse_scenario(
        PROFILES
        + """
links: {node_1: good, node_2: office, "*": average}
events:
  - {at_seconds: 10, type: latency_spike, node: node_1, duration_seconds: 5, added_ms: 200}
  - {round: 15, type: profile_change, nodes: [node_1, node_2], profile: phone}
""",
        "s.yaml",
    )
    assert {node: link.profile.name for node, link in scenario.links.items()} == {
        "node_1": "good",
        "node_2": "office",
        "*": "average",
    }
    assert scenario.events == (
        NetworkEvent("latency_spike", nodes=("node_1",), scheduled_time=10, duration_seconds=5, added_ms=200),
        NetworkEvent("profile_change", nodes=("node_1", "node_2"), new_profile="phone", scheduled_round=15),
    )


def test_nodes_may_stand_somewhere_and_in_groups() -> None:
    text = """
region: us-east
loss_model: transport
nodes:
  far: {profile: fibre, region: eu-west}
  edge: {count: 2, profile: [poor, good]}
links: {edge_1: average}
events:
  - {type: flap, node: edge}
"""
    scenario = parse_scenario(text, "s.yaml", upstream_region="ap-east")
    assert list(scenario.links) == ["edge_1", "far", "edge_0"]
    assert scenario.links["far"].region == "eu-west"
    assert scenario.links["far"].profile == between_regions("eu-west", "us-east", LAST_MILES["fibre"])
    assert [scenario.links[f"edge_{index}"].profile.name for index in range(2)] == ["poor", "average"]
    assert scenario.loss_model == "transport"
    assert scenario.events[0].targets == ("edge_0", "edge_1")


@pytest.mark.parametrize("name", shipped_names())
def test_a_scenario_of_the_simulator_is_one_of_the_proxy(name: str) -> None:
    text, simulated = find_scenario(name).read_text(encoding="utf-8"), load_scenario(name)
    scenario = parse_scenario(text, name)
    assert {node: link.profile for node, link in scenario.links.items()} == simulated.profiles_of_links()
    assert list(scenario.events) == simulated.network_events()


def test_all_keys_that_the_proxy_passes_over_are_the_simulators() -> None:
    assert Scenario.model_fields.keys() - Network.model_fields.keys() == OF_TRAINING
    assert Nodes.model_fields.keys() - NodeSection.model_fields.keys() == OF_MACHINES


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("links:\n  a: gud\n", "s.yaml:2: links.a: unknown profile 'gud'; did you mean 'good'"),
        ("events:\n  - node: a\n    type: flp\n", "s.yaml:3: events.0.type: .*did you mean 'flap'"),
        ("events:\n  - node: a\n", "s.yaml:2: events.0.type: field required"),
        ("events:\n  - {type: flap}\n", "s.yaml:2: events.0: flap needs a target"),
        (
            "events:\n  - type: flap\n    node: a\n    at_second: 3\n",
            "s.yaml:4: unknown key .*did you mean 'at_seconds'",
        ),
        ("events:\n  - {type: flap, node: a, at_seconds: soon}\n", "s.yaml:2: events.0.at_seconds: input should be"),
        ("events:\n  - {type: flap, node: a, round: 1, at_seconds: 2}\n", "s.yaml:2: events.0: .*not by both"),
        ("events:\n  - {type: profile_change, node: a, profile: zz}\n", "s.yaml:2: events.0.profile: unknown profile"),
        ("nodes:\n  a: {profile: gud}\n", "s.yaml:2: nodes.a.profile: unknown profile 'gud'; did you mean 'good'"),
        ("nodes:\n  a: {}\n  b: {region: eu-wst}\n", "s.yaml:3: nodes.b.region: .*did you mean 'eu-west'"),
        ("nodes:\n  a: {profil: good}\n", "s.yaml:2: unknown key 'nodes.a.profil'; did you mean 'profile'"),
        ("nodes:\n  - {id: a}\n  - {id: a}\n", "s.yaml:3: nodes.1.id: node 'a' is there twice"),
        ("nodes:\n  a: good\n", "s.yaml:2: nodes.a: expected keys and values"),
        ("nodes: {a: {}}\nevents:\n  - {type: flap, node: b}\n", "s.yaml:3: events.0.node: unknown node 'b'"),
        ("nodes: {a: {}}\nevents:\n  - {type: flap, nodes: [a, b]}\n", "s.yaml:3: events.0.nodes: unknown node 'b'"),
        ("nodes:\n  a: {}\n  b: {}\n  a: {}\n", "s.yaml:4: not valid YAML: duplicate key 'a'"),
        ("loss_model: tcp\n", "s.yaml:1: loss_model: "),
        ("taks: digits\n", "s.yaml:1: unknown key 'taks'"),
        ("events:\n  - {type: disconnect, node: a, mode: rset}\n", "s.yaml:2: events.0.mode: .*did you mean 'reset'"),
    ],
)
def test_bad_scenarios_are_named_with_file_line_and_key(text: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        parse_scenario(text, "s.yaml")
