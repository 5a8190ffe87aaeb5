"""Control of the codecs, round by round, over links whose rates are known."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from hypergpu.common.clock import ManualClock
from hypergpu.common.codecs import find_codec
from hypergpu.common.config import CompressionConfig
from hypergpu.common.connections import ONE_EACH, ConnectionPlan, Connections
from hypergpu.common.transfer_codecs import TransferCodecs
from hypergpu.common.transfer_meter import Transfer
from hypergpu.coordinator.core.adaptation.codecs.control import CodecControl, Outlook
from hypergpu.coordinator.core.adaptation.codecs.decisions import CodecDecision, CompressionReason
from hypergpu.coordinator.core.adaptation.codecs.direction_times import Direction
from hypergpu.coordinator.core.adaptation.codecs.noise import PRIOR_NOISE
from hypergpu.coordinator.core.links import NetworkQualityMonitor
from hypergpu.coordinator.core.model.outgoing import SendingPlanner
from hypergpu.coordinator.core.rounds.events import Contribution

MODEL_BYTES = 40_000_000
SMALL_BYTES = 400_000
NODES = ["near", "middle", "far"]
MBIT = 125_000.0


@dataclass
class Cluster:
    """Nodes that take the time of their bytes at the rate of their link, up and down in Mbit/s."""

    rates: dict[str, tuple[float, float]]
    model_bytes: int = MODEL_BYTES
    compute_seconds: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    noise: Callable[[str], float] = PRIOR_NOISE.__getitem__
    extra_seconds: Callable[[str, TransferCodecs], tuple[float, float]] = lambda node, codecs: (0.0, 0.0)
    """Seconds that the update and the parameters take more than by the rate."""
    connections: Connections = ONE_EACH
    trials: Mapping[str, Collection[Direction]] = field(default_factory=dict)
    close_share: float | None = 1.0
    rounds: int = 0

    def __post_init__(self) -> None:
        self.monitor = NetworkQualityMonitor(clock=ManualClock(), model_bytes=self.model_bytes)
        for node in self.rates:
            self.monitor.register_node(node)
        config = CompressionConfig.model_validate({"strategy": "adaptive", **self.settings})
        self.control = CodecControl(config, self.monitor, self.model_bytes)
        self.decisions: list[CodecDecision] = []
        self.planner, self.held = SendingPlanner(), dict[str, int]()
        self.usual: dict[str, float] = {}
        """Expected communication of a usual round, by which nodes are selected."""

    def bytes_of(self, codec: str) -> int:
        return find_codec(codec).encoded_bytes(self.model_bytes // 4)

    def outlook(self) -> Outlook:
        compute = np.full(len(self.rates), self.compute_seconds)
        return Outlook(
            self.rounds,
            compute,
            0.0,
            float(len(self.rates)),
            self.close_share,
            100.0,
            self.trials,
            ConnectionPlan(self.connections),
        )

    def plan(self) -> list[CodecDecision]:
        self.rounds += 1
        self.planner.begin_round()
        decided = self.control.plan(list(self.rates), self.outlook())
        self.usual = {node: self.expected_seconds(node) for node in self.rates}
        self.control.begin_round(list(self.rates))
        self.decisions += decided
        return decided

    def codecs(self) -> Mapping[str, TransferCodecs]:
        return self.control.codecs_of(list(self.rates))

    def run(self, count: int = 1, only: Sequence[str] | None = None) -> list[CodecDecision]:
        """Run rounds of all nodes, or of some; return what was decided in them."""
        before = len(self.decisions)
        for _ in range(count):
            self.plan()
            contributions = []
            for node, codecs in self.codecs().items():
                if only is None or node in only:
                    contributions.append(self.contribution(node, codecs))
            self.decisions += self.control.observe(contributions, self.rounds)
        return self.decisions[before:]

    def contribution(self, node: str, codecs: TransferCodecs) -> Contribution:
        up_rate, down_rate = self.rates[node]
        sending = self.planner.plan(codecs.parameters, self.held.get(node, 0))
        up, down = self.bytes_of(codecs.update), self.bytes_of(sending.codec)
        self.held[node] = sending.version
        up_seconds, down_seconds = up / (up_rate * MBIT), down / (down_rate * MBIT)
        self.monitor.record_upload(node, Transfer(up, up_seconds))
        self.monitor.record_download(node, Transfer(down, down_seconds))
        self.monitor.record_communication(node, 0.0, True)
        extra_up, extra_down = self.extra_seconds(node, codecs)
        seconds = up_seconds + down_seconds + extra_up + extra_down
        self.monitor.record_round_communication(node, seconds)
        return Contribution(
            node,
            success=True,
            compute_seconds=self.compute_seconds,
            waiting_seconds=seconds,
            codec=codecs.update,
            noise=self.noise(codecs.update),
            parameters_codec=codecs.parameters,
            connections=self.connections,
            upload_seconds=up_seconds + extra_up,
        )

    def expected_seconds(self, node: str) -> float:
        return float(self.monitor.round_communication_samples(self.monitor.rows([node]), 4).mean())


def slow_uploads(**fields: Any) -> Cluster:
    return Cluster({"near": (10_000.0, 10_000.0), "middle": (10_000.0, 10_000.0), "far": (5.0, 10_000.0)}, **fields)


FLOAT32 = TransferCodecs()


def reasons(decisions: Sequence[CodecDecision]) -> list[tuple[str, str]]:
    return [(each.node, str(each.reason)) for each in decisions]


# ---------------------------------------------------------------- before anything is measured


def test_a_large_model_begins_with_small_payloads_and_says_why() -> None:
    cluster = slow_uploads()
    decided = cluster.plan()
    assert set(cluster.codecs().values()) == {TransferCodecs("int4", "bf16")}
    assert reasons(decided) == [(node, "rate_not_measured") for node in NODES]
    assert decided[0].figures == {
        "from": "none/none",
        "to": "int4/bf16",
        "up_bytes_before": MODEL_BYTES,
        "up_bytes": cluster.bytes_of("int4"),
        "down_bytes_before": MODEL_BYTES,
        "down_bytes": MODEL_BYTES // 2,
    }


@pytest.mark.parametrize(("max_noise", "codec"), [(0.2, "int4"), (0.01, "int8"), (1e-5, "bf16"), (0.0, "none")])
def test_first_updates_obey_the_bound_of_the_noise(max_noise: float, codec: str) -> None:
    cluster = slow_uploads(settings={"max_noise": max_noise})
    cluster.plan()
    assert set(cluster.codecs().values()) == {TransferCodecs(codec, "bf16")}


def test_a_small_model_begins_with_float32() -> None:
    cluster = slow_uploads(model_bytes=SMALL_BYTES)
    assert cluster.plan() == []
    assert set(cluster.codecs().values()) == {FLOAT32}


# ---------------------------------------------------------------- chosen by link


def test_the_slow_upload_is_encoded_and_the_others_return_to_float32() -> None:
    cluster = slow_uploads()
    cluster.rates["far"] = cluster.rates["near"]
    cluster.run(8)
    assert set(cluster.codecs().values()) == {FLOAT32}
    cluster.rates["far"] = (5.0, 10_000.0)
    cluster.run(8)
    assert cluster.codecs() == {"near": FLOAT32, "middle": FLOAT32, "far": TransferCodecs("int4", "none")}
    strongest = next(each for each in cluster.decisions if each.node == "far" and each.figures["to"] == "int4/none")
    assert strongest.reason is CompressionReason.TRANSFERS_LENGTHEN_ROUND
    saved = MODEL_BYTES - cluster.bytes_of("int4")
    assert strongest.figures["expected_saving_seconds"] == pytest.approx(saved / (5 * MBIT), rel=0.02)
    assert strongest.figures["noise"] == PRIOR_NOISE["int4"]
    assert strongest.figures["noise_is"] == "measured"
    assert strongest.figures["up_mbit"] == pytest.approx(5.0, rel=0.01)


def test_good_links_return_to_float32_because_their_transfers_fit() -> None:
    cluster = Cluster(dict.fromkeys(NODES, (10_000.0, 10_000.0)))
    cluster.run(8)
    assert set(cluster.codecs().values()) == {FLOAT32}
    assert {each.reason for each in cluster.decisions[3:]} == {CompressionReason.TRANSFERS_FIT_ROUND}


def test_codecs_do_not_flap_on_steady_links() -> None:
    cluster = slow_uploads()
    cluster.run(8)
    settled = cluster.codecs()
    assert cluster.run(20) == []
    assert cluster.codecs() == settled


def test_a_collapse_of_the_bandwidth_is_answered_within_three_rounds() -> None:
    """Two transfers show it to the rate, and the round after them is encoded."""
    cluster = Cluster(dict.fromkeys(NODES, (10_000.0, 10_000.0)))
    cluster.run(10)
    cluster.rates["far"] = (5.0, 10_000.0)
    cluster.run(3)
    assert cluster.codecs()["far"].update == "int4"
    assert cluster.codecs()["near"] == FLOAT32


def test_a_link_without_a_measured_rate_keeps_its_codecs() -> None:
    cluster = slow_uploads()
    for _ in range(4):
        cluster.plan()
    assert set(cluster.codecs().values()) == {TransferCodecs("int4", "bf16")}


def test_a_change_of_the_payload_changes_what_is_expected_and_the_deadline() -> None:
    cluster = slow_uploads(model_bytes=SMALL_BYTES)
    cluster.run(1)
    before = cluster.expected_seconds("far")
    cluster.plan()
    saved = (SMALL_BYTES - cluster.bytes_of(cluster.codecs()["far"].update)) / (5 * MBIT)
    assert saved > 0.0
    assert cluster.expected_seconds("far") == pytest.approx(before - saved, abs=0.01)
    assert cluster.control.changed_seconds == {"far": pytest.approx(-saved, rel=0.01)}
    cluster.plan()
    assert cluster.control.changed_seconds == {}


def test_a_node_that_is_left_out_would_be_sent_whole_parameters_in_bf16() -> None:
    cluster = Cluster({"near": (10_000.0, 10_000.0), "far": (10_000.0, 5.0)})
    cluster.run(4)
    assert cluster.codecs()["far"].parameters == "int8"
    decided = cluster.run(3, only=["near"])
    assert ("far", "transfers_keep_out") in reasons(decided)
    assert cluster.codecs()["far"].parameters == "bf16", "int8 would begin with float32"


def test_the_first_difference_of_parameters_is_expected_whole_for_one_round() -> None:
    cluster = Cluster({"near": (10_000.0, 10_000.0), "far": (10_000.0, 5.0)}, model_bytes=SMALL_BYTES)
    cluster.run(1)
    float32 = cluster.expected_seconds("far")
    cluster.plan()
    assert cluster.codecs()["far"].parameters == "int8"
    difference = float32 - (SMALL_BYTES - cluster.bytes_of("int8")) / (5 * MBIT)
    whole = float32 - (SMALL_BYTES - cluster.bytes_of("bf16")) / (5 * MBIT)
    assert cluster.usual["far"] == pytest.approx(difference, rel=0.05), "it is not left out for its first transfer"
    assert cluster.expected_seconds("far") == pytest.approx(whole, rel=0.05)
    assert cluster.control.changed_seconds["far"] == pytest.approx(whole - float32, rel=0.05), "for the deadline"
    cluster.control.observe([cluster.contribution("far", cluster.codecs()["far"])], cluster.rounds)
    cluster.plan()
    assert cluster.expected_seconds("far") == pytest.approx(difference, rel=0.05)
    cluster.control.abandoned()
    cluster.plan()
    assert cluster.expected_seconds("far") == pytest.approx(whole, rel=0.05)


def test_a_node_that_comes_later_than_others_is_expected_to_be_sent_float32() -> None:
    cluster = Cluster({"near": (10_000.0, 5.0), "far": (10_000.0, 5.0)}, model_bytes=SMALL_BYTES)
    cluster.run(3)
    assert {each.parameters for each in cluster.codecs().values()} == {"int8"}
    cluster.run(1, only=["near"])
    cluster.plan()
    assert cluster.expected_seconds("far") == pytest.approx(SMALL_BYTES / (5 * MBIT), rel=0.05)
    assert cluster.expected_seconds("near") == pytest.approx(cluster.bytes_of("int8") / (5 * MBIT), rel=0.05)


# ---------------------------------------------------------------- noise


def test_the_bound_of_the_noise_is_obeyed_before_and_after_it_was_measured() -> None:
    cluster = slow_uploads(settings={"max_noise": 0.01})
    cluster.run(8)
    assert cluster.codecs()["far"].update == "int8"
    noisier = slow_uploads(noise=lambda codec: 0.3 if codec == "int4" else 0.0005)
    noisier.run(6)
    used = [each for each in noisier.decisions if each.node == "far"]
    assert [(each.figures["to"], str(each.reason)) for each in used[:2]] == [
        ("int4/bf16", "rate_not_measured"),
        ("int8/none", "noise_above_bound"),
    ]
    noisier.run(10)
    assert noisier.codecs()["far"].update == "int8"


def test_max_noise_zero_sends_float32() -> None:
    cluster = slow_uploads(settings={"max_noise": 0.0}, model_bytes=SMALL_BYTES)
    cluster.run(6)
    assert {each.update for each in cluster.codecs().values()} == {"none"}


def test_a_measured_noise_is_said_to_be_measured() -> None:
    cluster = slow_uploads()
    cluster.run(8)
    cluster.rates["far"] = (10_000.0, 10_000.0)
    cluster.run(8)
    cluster.rates["far"] = (5.0, 10_000.0)
    cluster.run(4)
    last = [each for each in cluster.decisions if each.figures.get("to") == "int4/none"][-1]
    assert (last.node, last.figures["noise_is"]) == ("far", "measured")


# ---------------------------------------------------------------- taken back


def test_a_change_that_saves_what_was_expected_is_kept_and_says_so() -> None:
    cluster = slow_uploads(model_bytes=SMALL_BYTES)
    decided = cluster.run(4)
    kept = next(each for each in decided if each.reason is CompressionReason.SAVED_AS_EXPECTED)
    assert kept.node == "far"
    saved = (SMALL_BYTES - cluster.bytes_of("int4")) / (5 * MBIT)
    assert kept.figures["expected_saving_seconds"] == pytest.approx(saved, rel=0.02)
    assert kept.figures["measured_saving_seconds"] == pytest.approx(saved, rel=0.02)


def test_a_change_that_saves_nothing_is_taken_back_for_a_while() -> None:
    """The node takes as long however few bytes it sends: its card holds the link's time."""

    def as_long(node: str, codecs: TransferCodecs) -> tuple[float, float]:
        saved = SMALL_BYTES - find_codec(codecs.update).encoded_bytes(SMALL_BYTES // 4)
        return (saved / (5 * MBIT) if node == "far" else 0.0), 0.0

    cluster = slow_uploads(model_bytes=SMALL_BYTES, extra_seconds=as_long)
    decided = cluster.run(3)
    assert reasons(decided) == [("far", "transfers_lengthen_round"), ("far", "saved_less_than_expected")]
    assert decided[-1].figures["from"] == "int4/none"
    assert decided[-1].figures["to"] == "none/none"
    assert decided[-1].figures["measured_saving_seconds"] == pytest.approx(0.0, abs=1e-6)
    assert set(cluster.codecs().values()) == {FLOAT32}
    assert cluster.run(8) == []
    assert reasons(cluster.run(3))[0] == ("far", "transfers_lengthen_round")
    assert cluster.run(15) == []


def test_after_a_divergence_codecs_with_much_noise_are_left() -> None:
    cluster = slow_uploads()
    cluster.run(8)
    decided = cluster.control.diverged(NODES, cluster.rounds)
    assert reasons(decided) == [("far", "training_diverged")]
    assert decided[0].figures["to"] == "int8/none"
    cluster.run(8)
    assert cluster.codecs()["far"].update == "int8"
    cluster.run(6)
    assert cluster.codecs()["far"].update == "int4"
    assert cluster.control.diverged(["near"], cluster.rounds) == []


def test_policy_none_sends_float32() -> None:
    cluster = slow_uploads()
    cluster.run(8)
    decided = cluster.control.send_float32(NODES)
    assert reasons(decided) == [("far", "policy_none")]
    assert set(cluster.codecs().values()) == {FLOAT32}
    assert cluster.control.send_float32(NODES) == []


# ---------------------------------------------------------------- other strategies


def test_fixed_codecs_are_left_to_the_configuration_and_their_payloads_expected() -> None:
    settings = {"strategy": "fixed", "update_codec": "int8", "parameters_codec": "bf16"}
    cluster = slow_uploads(settings=settings)
    assert cluster.plan() == []
    assert cluster.codecs() == {}
    payloads = cluster.monitor.expected_payloads(cluster.monitor.rows(NODES))
    assert payloads[0].tolist() == [cluster.bytes_of("int8")] * 3
    assert payloads[1].tolist() == [MODEL_BYTES / 2] * 3


@pytest.mark.parametrize("settings", [{"strategy": "none"}, {"strategy": "adaptive"}])
def test_without_a_strategy_or_the_size_of_the_model_nothing_is_chosen(settings: Mapping[str, Any]) -> None:
    monitor = NetworkQualityMonitor(clock=ManualClock())
    monitor.register_node("near")
    control = CodecControl(CompressionConfig.model_validate(settings), monitor, None)
    assert control.plan(["near"], Outlook(1, np.ones(1), 0.0, 1.0, 1.0, 10.0)) == []
    assert control.codecs_of(["near"]) == {}
    assert control.observe([Contribution("near", success=True)], 1) == []


def test_nodes_that_seldom_take_part_are_said_to_be_kept_out() -> None:
    cluster = slow_uploads(model_bytes=SMALL_BYTES, settings={"max_noise": 0.01})
    cluster.rates = {"near": (20.0, 20.0), "middle": (1.0, 20.0), "far": (0.1, 20.0)}
    cluster.run(1)
    for _ in range(3):
        cluster.control.send_float32(NODES)
        cluster.control.observe([cluster.contribution(node, FLOAT32) for node in ("near", "middle")], cluster.rounds)
    decided = cluster.run(1, only=["near", "middle"])
    assert ("far", "transfers_keep_out") in reasons(decided)
    assert ("middle", "transfers_lengthen_round") in reasons(decided)


# ---------------------------------------------------------------- what makes a prediction true


def test_what_is_chosen_by_first_transfers_promises_no_saving() -> None:
    """On a lossy link a first transfer is faster than those after it."""
    cluster = Cluster({"near": (10_000.0, 10_000.0), "far": (10_000.0, 50.0)})
    cluster.run(1)
    cluster.rates["far"] = (10_000.0, 25.0)
    changed = [each for each in cluster.run(1) if each.node == "far"]
    assert [str(each.reason) for each in changed] == ["rate_not_measured"]
    assert changed[0].figures["to"] == "none/int8"
    assert "expected_saving_seconds" not in changed[0].figures


def test_a_large_model_changes_its_updates_only_by_a_rate_that_lasts() -> None:
    cluster = slow_uploads(settings={"max_noise": 0.9})
    cluster.run(1)
    assert ("far", "transfers_lengthen_round") not in reasons(cluster.plan())
    cluster.run(4)
    assert ("far", "transfers_lengthen_round") in reasons(cluster.decisions)


def test_an_expected_saving_is_that_of_a_round_in_which_the_node_is_sent_a_difference() -> None:
    """A round that it has missed lately makes a difference seldomer, and no larger."""
    cluster = Cluster({"near": (10_000.0, 10_000.0), "far": (10_000.0, 60.0)}, compute_seconds=3.0)
    cluster.control.send_float32(list(cluster.rates))
    cluster.control._nodes.is_known[:] = True  # begins with float32
    cluster.control._nodes.presence[:] = 0.9
    cluster.run(4)
    moves = [each for each in cluster.decisions if each.figures.get("to", "").endswith("/int8")]  # type: ignore[union-attr]
    saved = MODEL_BYTES - cluster.bytes_of("int8")
    assert moves
    assert moves[0].figures["expected_saving_seconds"] == pytest.approx(saved / (60 * MBIT), rel=0.05)


def test_codecs_stay_while_connections_are_tried_unless_much_is_gained() -> None:
    small = Cluster({"near": (40.0, 1_000.0), "far": (12.0, 1_000.0)}, model_bytes=SMALL_BYTES, compute_seconds=1.3)
    small.trials = {"far": ["up"]}
    small.run(4)
    assert small.codecs()["far"].update == "none"
    small.trials = {}
    small.run(4)
    assert small.codecs()["far"].update != "none"
    large = slow_uploads(model_bytes=SMALL_BYTES)
    large.trials = {"far": ["up"]}
    large.run(3)
    assert large.codecs()["far"].update == "int4"


def test_a_node_does_not_begin_with_differences_if_the_first_one_would_be_late() -> None:
    """It is sent float32 first, as others hold something else. If that misses the round, it holds nothing again."""
    cluster = Cluster(dict.fromkeys(NODES, (1_000.0, 50.0)), compute_seconds=0.1)
    cluster.close_share = None
    cluster.run(4)
    assert {each.parameters for each in cluster.codecs().values()} == {"int8"}
    cluster.run(3, only=["near", "middle"])
    assert cluster.codecs()["far"].parameters == "bf16"
    cluster.held["far"] = 0
    cluster.run(12)
    assert cluster.codecs()["far"].parameters == "bf16"
    cluster.close_share = 1.0
    cluster.run(2)
    assert cluster.codecs()["far"].parameters == "int8", "a round that waits for all waits for it"


def test_codecs_wait_for_a_round_to_compare_with_unless_much_is_gained() -> None:
    cluster = Cluster({"near": (40.0, 1_000.0), "far": (12.0, 1_000.0)}, model_bytes=SMALL_BYTES, compute_seconds=1.3)
    cluster.run(3)
    assert cluster.codecs()["far"].update != "none"
    again = replace(cluster, connections=Connections(4, 4))
    again.run(1)
    again.connections = Connections(2, 2)
    again.run(1)
    again.connections = Connections(8, 8)
    again.run(1)
    assert again.codecs()["far"].update == "none", "each round has other connections"
    again.run(3)
    assert again.codecs()["far"].update != "none"
