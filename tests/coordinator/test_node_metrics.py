from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry

from hypergpu.common.clock import ManualClock
from hypergpu.common.config import SystemConfig
from hypergpu.common.connections import Connections
from hypergpu.common.transfer_codecs import TransferCodecs
from hypergpu.common.transfer_meter import Transfer
from hypergpu.coordinator.core.adaptation import build_orchestrator
from hypergpu.coordinator.core.links.profile import LinkProfile
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.coordinator.node_metrics import MOST_NODES, NodeMetricsCollector


class Cluster:
    def __init__(self, *nodes: str) -> None:
        config = SystemConfig()
        self.clock = ManualClock()
        self.orchestrator = build_orchestrator(config, clock=self.clock)
        self.machine = RoundMachine(config.training, self.orchestrator, lost_after_seconds=10.0)
        self.registry = CollectorRegistry()
        self.series = NodeMetricsCollector(self.registry, self.machine, self.orchestrator)
        for node in nodes:
            self.orchestrator.register_node(node)
            self.machine.handle(ev.NodeJoined(node), 0.0)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"hypergpu_{name}", labels)


async def test_links_and_members_are_told_by_node() -> None:
    cluster = Cluster("a", "b")
    cluster.machine.handle(ev.WorkRequested("a"), 0.0)
    for _ in range(40):
        cluster.orchestrator.monitor.record_communication("a", 2.0, True)
    await cluster.series.refresh()
    assert cluster.value("link_quality", node_id="a") == 5
    assert cluster.value("link_latency_seconds", node_id="a") == 0.002
    assert cluster.value("link_score_points", node_id="a", part="latency") == 40
    assert cluster.value("link_latency_seconds", node_id="b") is None  # not measured is not zero
    assert cluster.value("member_connected", node_id="b") == 1
    assert cluster.value("member_selected", node_id="a") == 1
    assert cluster.value("member_standing", node_id="a") == 0
    assert cluster.value("run_state", state="training") == 1
    assert cluster.value("policy", policy="reactive") == 1


async def test_what_was_not_measured_has_no_series() -> None:
    cluster = Cluster("a")
    await cluster.series.refresh()
    for name in ("link_quality", "link_score", "link_latency_seconds", "link_loss_ratio", "member_batch_size"):
        assert cluster.value(name, node_id="a") is None, name
    assert cluster.value("link_score_points", node_id="a", part="loss") is None
    assert cluster.value("member_contribution_ratio", node_id="a") is None
    assert cluster.value("adaptation_overhead_ratio") is None
    cluster.orchestrator.monitor.observe_counters("a", attempts=20, failures=0)  # calls, and no round trip
    await cluster.series.refresh()
    assert cluster.value("link_quality", node_id="a") is None
    cluster.orchestrator.monitor.record_communication("a", 2.0, True)
    await cluster.series.refresh()
    assert cluster.value("link_quality", node_id="a") == 5
    assert cluster.value("link_loss_ratio", node_id="a") == 0.0


async def test_rates_are_told_by_node_and_direction() -> None:
    cluster = Cluster("a")
    await cluster.series.refresh()
    monitor = cluster.orchestrator.monitor
    names = ("link_rate", "link_rate_spread", "link_rate_least")
    assert {cluster.value(f"{name}_bytes_per_second", node_id="a", direction="up") for name in names} == {None}
    monitor.record_download("a", Transfer(2_000_000, 2.0, 1_000_000, 1.0))
    monitor.record_upload("a", Transfer(50_000, 1.0))
    cluster.clock.advance(3.0)
    await cluster.series.refresh()
    figures = [cluster.value(f"{name}_bytes_per_second", node_id="a", direction="down") for name in names]
    assert figures == [pytest.approx(1e6), 0.0, pytest.approx(1e6)]
    assert cluster.value("link_rate_age_seconds", node_id="a", direction="down") == 3.0
    figures = [cluster.value(f"{name}_bytes_per_second", node_id="a", direction="up") for name in names]
    assert figures == [None, None, pytest.approx(5e4)], "its round trip is not known"
    assert cluster.value("link_rate_age_seconds", node_id="a", direction="up") == 3.0


async def test_a_lost_node_is_offline_and_one_that_left_is_gone() -> None:
    cluster = Cluster("a", "b")
    cluster.machine.handle(ev.NodeLost("a"), 1.0)
    cluster.machine.handle(ev.NodeLeft("b"), 1.0)
    await cluster.series.refresh()
    assert cluster.value("member_connected", node_id="a") == 0
    assert cluster.value("link_quality", node_id="a") == 0
    assert cluster.value("member_connected", node_id="b") is None


async def test_a_node_of_a_resumed_run_that_is_not_back_yet_does_no_harm() -> None:
    cluster = Cluster("a")
    before = {"rounds_contributed": 1, "rounds_selected": 1, "retries": 0, "late": 0, "rule": "automatic"}
    cluster.machine.members.restore([{"node_id": "stranger", **before}])
    assert cluster.machine.members.get("stranger") is not None
    await cluster.series.refresh()
    assert cluster.value("member_connected", node_id="a") == 1


async def test_series_of_nodes_are_bounded() -> None:
    cluster = Cluster(*(f"n{number}" for number in range(MOST_NODES + 5)))
    await cluster.series.refresh()
    assert cluster.value("member_connected", node_id="n0") == 1
    assert cluster.value("member_connected", node_id=f"n{MOST_NODES + 4}") is None


async def test_the_codecs_of_a_node_are_known_from_its_first_update() -> None:
    cluster = Cluster("a")
    await cluster.series.refresh()
    assert cluster.value("member_codec_noise_ratio", node_id="a") is None
    member = cluster.machine.members.require("a")
    member.codecs, member.noise = TransferCodecs("int4", "bf16"), 0.125
    await cluster.series.refresh()
    assert cluster.value("member_codec", node_id="a", update="int4", parameters="bf16") == 1.0
    assert cluster.value("member_codec_noise_ratio", node_id="a") == 0.125


async def test_connections_and_utilisation_of_a_node_are_series() -> None:
    cluster = Cluster("a", "b")
    member = cluster.machine.members.require("a")
    member.connections, member.computed_seconds, member.selected_seconds = Connections(4, 16), 1.0, 8.0
    await cluster.series.refresh()
    assert cluster.value("member_connections", node_id="a", direction="down") == 4
    assert cluster.value("member_connections", node_id="a", direction="up") == 16
    assert cluster.value("member_compute_utilisation", node_id="a") == 0.125
    assert cluster.value("member_connections", node_id="b", direction="up") is None
    assert cluster.value("member_compute_utilisation", node_id="b") is None


async def test_figures_of_many_nodes_are_taken_together(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"node_{number}" for number in range(120)]
    cluster = Cluster(*names)
    asked: list[int] = []
    monitor = cluster.orchestrator.monitor
    profiles = monitor.get_node_profiles

    def counted(nodes: Sequence[str]) -> list[LinkProfile]:
        asked.append(len(nodes))
        return profiles(nodes)

    monkeypatch.setattr(monitor, "get_node_profiles", counted)
    await cluster.series.refresh()
    assert asked == [50, 50, 20], "one by one they took two seconds of the event loop with a thousand nodes"
    assert cluster.value("member_connected", node_id="node_119") == 1


async def test_members_that_are_not_back_yet_have_no_series() -> None:
    cluster = Cluster("a")
    cluster.machine.members.restore([{"node_id": "absent", "state": "idle"}])
    await cluster.series.refresh()
    assert cluster.value("member_connected", node_id="a") == 1
    assert cluster.value("member_connected", node_id="absent") is None
