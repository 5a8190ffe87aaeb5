"""The monitor against links whose nature is known."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.clock import ManualClock
from hypergpu.common.config import MonitorConfig
from hypergpu.common.config.loading import parse
from hypergpu.common.errors import ConfigError, InvalidInput, UnknownName
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.common.transfer_meter import Transfer
from hypergpu.coordinator.core.links import AlertKind, ConnectionQuality, NetworkQualityMonitor, Severity, Trend
from hypergpu.netsim_proxy.link.profiles import find_profile
from tests.examples import examples


def monitor_of(*nodes: str) -> tuple[NetworkQualityMonitor, ManualClock]:
    clock = ManualClock()
    monitor = NetworkQualityMonitor(clock=clock)
    for node in nodes:
        monitor.register_node(node)
    return monitor, clock


def communicate(monitor: NetworkQualityMonitor, clock: ManualClock, node: str, profile: str, count: int = 100) -> None:
    path, draws = find_profile(profile), KeyedRandom(1, node)
    for at in range(count):
        latency = 2e3 * path.up.latency.at(draws.uniform(2 * at))
        monitor.record_communication(node, latency, draws.uniform(2 * at + 1) >= path.loss)
        clock.advance(0.05)


def test_the_class_of_a_link_is_told_once_it_was_measured() -> None:
    monitor, _ = monitor_of("a", "b")
    assert monitor.update() == {}
    monitor.observe_counters("a", attempts=20, failures=0)
    assert monitor.update() == {}
    monitor.record_communication("a", 30.0, True)
    monitor.observe_counters("b", attempts=2, failures=2)
    assert monitor.update() == {"a": ConnectionQuality.GOOD, "b": ConnectionQuality.CRITICAL}
    assert monitor.update() == {}


@pytest.mark.parametrize(
    ("profile", "quality"),
    [
        ("perfect", {ConnectionQuality.EXCELLENT}),
        ("good", {ConnectionQuality.GOOD}),
        ("average", {ConnectionQuality.FAIR}),
        ("poor", {ConnectionQuality.POOR}),
        ("unstable", {ConnectionQuality.CRITICAL, ConnectionQuality.POOR}),
    ],
)
def test_each_shipped_profile_falls_into_its_class(profile: str, quality: set[ConnectionQuality]) -> None:
    monitor, clock = monitor_of("a")
    communicate(monitor, clock, "a", profile)
    assert monitor.get_node_quality("a") in quality


def test_the_score_is_the_sum_of_its_bounded_parts() -> None:
    monitor, clock = monitor_of("a", "b", "c")
    for node, profile in (("a", "perfect"), ("b", "average"), ("c", "unstable")):
        communicate(monitor, clock, node, profile, 60)
        each = monitor.get_node_profile(node)
        assert 0 <= each.latency_score <= 40
        assert 0 <= each.loss_score <= 30
        assert 0 <= each.reliability_score <= 30
        whole = each.latency_score + each.loss_score + each.reliability_score
        assert each.score == pytest.approx(whole * each.freshness)


def test_a_score_at_a_boundary_does_not_make_the_class_flap() -> None:
    monitor, _ = monitor_of("a")
    classes = []
    for at in range(200):  # a latency that hovers around the boundary of excellent
        monitor.record_communication("a", 15.0 + (3.0 if at // 3 % 2 else -3.0), True)
        classes.append(monitor.get_node_quality("a"))
    assert sum(a is not b for a, b in pairwise(classes[20:])) <= 1


@pytest.mark.parametrize("loss", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("latency_ms", [8.0, 35.0, 95.0, 260.0])
def test_chance_losses_make_neither_the_class_nor_the_alerts_flap(latency_ms: float, loss: float) -> None:
    monitor, clock = monitor_of("a")
    draws, classes = KeyedRandom(3, "noise"), []
    for at in range(1000):
        monitor.record_communication(
            "a", latency_ms * (0.7 + 0.6 * draws.uniform(2 * at)), draws.uniform(2 * at + 1) > loss
        )
        clock.advance(0.1)
        monitor.update()
        classes.append(monitor.get_node_quality("a"))
    assert sum(a is not b for a, b in pairwise(classes[100:])) <= 4
    losses = [each for each in monitor.get_alerts(include_closed=True) if each.kind is AlertKind.HIGH_LOSS]
    assert len(losses) <= 5


def test_a_link_that_only_ever_failed_is_worse_than_one_that_nobody_knows() -> None:
    monitor, _ = monitor_of("unknown", "failing")
    for _ in range(4):
        monitor.record_communication("failing", 500.0, False)
    assert monitor.get_node_profile("failing").score == 0.0
    assert monitor.scores(monitor.rows(["failing", "unknown"])).tolist() == [0.0, 50.0], "a prior for decisions"


def test_successes_whose_latency_nobody_told_still_count() -> None:
    monitor, _ = monitor_of("a")
    monitor.observe_counters("a", attempts=50, failures=1)
    assert monitor.get_node_profile("a").loss_rate == pytest.approx(1 / 50, abs=0.02)


def test_an_offline_alert_tells_failures_from_silence() -> None:
    monitor, clock = monitor_of("failing", "silent")
    for _ in range(10):
        monitor.record_communication("failing", 100.0, False)
    clock.advance(40.0)
    monitor.record_communication("failing", 100.0, False)
    figures = {each.node_id: each.figures for each in monitor.get_alerts("high") if each.kind is AlertKind.OFFLINE}
    assert figures["failing"]["failures_in_a_row"] == 11
    assert figures["silent"] == {"silence_seconds": 40.0, "failures_in_a_row": 0}


def test_asking_twice_changes_nothing() -> None:
    monitor, clock = monitor_of("a", "b")
    communicate(monitor, clock, "a", "average")
    assert monitor.get_node_profile("a").to_dict() == monitor.get_node_profile("a").to_dict()
    assert monitor.get_cluster_health_summary() == monitor.get_cluster_health_summary()


def test_silence_decays_to_offline_and_contact_brings_back() -> None:
    monitor, clock = monitor_of("a")
    communicate(monitor, clock, "a", "good")
    fresh = monitor.get_node_profile("a").score
    clock.advance(20.0)
    assert monitor.get_node_profile("a").score < fresh
    clock.advance(15.0)
    assert monitor.get_node_quality("a") is ConnectionQuality.OFFLINE
    assert [alert.kind for alert in monitor.get_alerts("high")] == [AlertKind.OFFLINE]
    monitor.refresh()
    monitor.record_communication("a", 20.0, True)
    assert monitor.get_node_quality("a") is not ConnectionQuality.OFFLINE
    assert monitor.get_alerts() == []
    closed = monitor.get_alerts(include_closed=True)
    assert [alert.kind for alert in closed] == [AlertKind.OFFLINE]
    assert closed[0].closed_at is not None


def test_failures_in_a_row_mean_offline_before_the_silence_does() -> None:
    monitor, _ = monitor_of("a")
    for _ in range(20):
        monitor.record_communication("a", 20.0, True)
    for _ in range(8):
        monitor.record_communication("a", 200.0, False)
    assert monitor.get_node_quality("a") is ConnectionQuality.OFFLINE


def test_a_failure_is_a_loss_and_no_latency() -> None:
    monitor, _ = monitor_of("a")
    for _ in range(20):
        monitor.record_communication("a", 20.0, True)
    monitor.record_communication("a", 5_000.0, False)
    profile = monitor.get_node_profile("a")
    assert profile.latency_p95_ms == pytest.approx(20.0)
    assert profile.loss_rate > 0


def test_one_outlier_hardly_moves_the_latency_score() -> None:
    monitor, _ = monitor_of("a")
    for _ in range(30):
        monitor.record_communication("a", 20.0, True)
    before = monitor.get_node_profile("a").score
    monitor.record_communication("a", 60_000.0, True)
    assert monitor.get_node_profile("a").score == pytest.approx(before, abs=0.5)


def test_a_rising_latency_is_a_trend_an_alert_and_a_forecast() -> None:
    monitor, clock = monitor_of("a", "b")
    for round_num in range(12):
        for _ in range(3):
            monitor.record_communication("a", 40.0 + 15.0 * round_num, True)
            monitor.record_communication("b", 40.0 + (round_num % 3), True)
        monitor.update()
        clock.advance(1.0)
    assert monitor.get_node_profile("a").trend is Trend.DEGRADING
    assert monitor.get_node_profile("b").trend is Trend.STABLE
    assert [(alert.node_id, alert.kind) for alert in monitor.get_alerts()] == [("a", AlertKind.DEGRADING)]
    rows = monitor.rows(["a", "b"])
    ahead = monitor.forecast_scale(rows, 3.0)
    assert ahead[0] > 1.1
    assert ahead[1] == pytest.approx(1.0, abs=0.05)


def test_alerts_are_filtered_by_severity() -> None:
    monitor, clock = monitor_of("lossy", "dead", "fine")
    for at in range(60):
        monitor.record_communication("lossy", 20.0, at % 9 != 0)
        monitor.record_communication("fine", 20.0, True)
    for _ in range(9):
        monitor.record_communication("dead", 20.0, False)
    clock.advance(1.0)
    assert {alert.node_id for alert in monitor.get_alerts(severity="high")} == {"dead"}
    assert {alert.node_id for alert in monitor.get_alerts(severity=Severity.LOW)} == {"lossy", "dead"}
    with pytest.raises(UnknownName, match="high"):
        monitor.get_alerts("hihg")


def test_the_cluster_in_one_look() -> None:
    monitor, clock = monitor_of("a", "b", "c")
    for node, profile in (("a", "perfect"), ("b", "good"), ("c", "unstable")):
        communicate(monitor, clock, node, profile)
    summary = monitor.get_cluster_health_summary()
    assert summary["total_nodes"] == 3
    assert sum(summary["quality"].values()) == 3
    assert monitor.get_problematic_nodes() == ["c"] == summary["problematic_nodes"]
    assert monitor.get_reliable_nodes() == ["a", "b"]


def test_an_empty_cluster_has_a_summary() -> None:
    monitor, _ = monitor_of()
    assert monitor.get_cluster_health_summary()["total_nodes"] == 0
    assert monitor.get_alerts() == []
    assert monitor.update() == {}


def test_counters_are_taken_in_once_and_survive_a_restart() -> None:
    monitor, _ = monitor_of("a")
    for _ in range(3):
        monitor.observe_counters("a", attempts=10, failures=2, latency_ms=30.0)
    assert monitor.get_node_profile("a").communications == 10
    monitor.observe_counters("a", attempts=4, failures=0, latency_ms=30.0)  # the node began anew
    assert monitor.get_node_profile("a").communications == 14
    with pytest.raises(InvalidInput):
        monitor.observe_counters("a", attempts=1, failures=2)


@pytest.mark.parametrize("latency", [-1.0, math.nan, math.inf])
def test_a_latency_that_cannot_be_is_refused_and_leaves_no_trace(latency: float) -> None:
    monitor, _ = monitor_of("a")
    with pytest.raises(InvalidInput, match="latency_ms"):
        monitor.record_communication("a", latency, True)
    assert monitor.get_node_profile("a").communications == 0


def test_an_unknown_node_is_named_with_the_nearest() -> None:
    monitor, _ = monitor_of("node_1", "other")
    for ask in (monitor.get_node_quality, monitor.get_node_profile):
        with pytest.raises(UnknownName, match="did you mean 'node_1'"):
            ask("node_l")


def test_a_change_is_told_by_update_though_somebody_looked_before() -> None:
    monitor, _ = monitor_of("a", "b")
    monitor.update()
    for _ in range(50):
        monitor.record_communication("a", 2.0, True)
    assert monitor.get_node_quality("a") is ConnectionQuality.EXCELLENT
    assert monitor.update() == {"a": ConnectionQuality.EXCELLENT}
    assert monitor.update() == {}


def test_a_clock_that_stands_still_does_no_harm() -> None:
    monitor, _ = monitor_of("a")
    for _ in range(50):
        monitor.record_communication("a", 20.0, True)
        monitor.update()
    assert monitor.get_node_quality("a") is ConnectionQuality.GOOD


def test_a_settings_mistake_is_explained() -> None:
    with pytest.raises(ConfigError, match="best_latency_ms"):
        parse(MonitorConfig, {"best_latency_ms": 900}, "monitor")
    with pytest.raises(InvalidInput):
        NetworkQualityMonitor(update_interval_seconds=0.0)


def test_a_link_that_changed_is_judged_by_what_it_is_now() -> None:
    monitor, _ = monitor_of("a")
    for _ in range(10):
        monitor.record_round_communication("a", 0.06)
    monitor.record_round_communication("a", 0.9)
    samples = monitor.round_communication_samples(monitor.rows(["a"]), 5)
    assert samples.min() == pytest.approx(0.9)


@examples(40)
@given(st.lists(st.tuples(st.floats(0, 1e5), st.booleans()), min_size=1, max_size=80))
def test_whatever_happens_the_score_stays_in_its_bounds(events: list[tuple[float, bool]]) -> None:
    monitor, clock = monitor_of("a")
    for latency, success in events:
        monitor.record_communication("a", latency, success)
        clock.advance(0.1)
    profile = monitor.get_node_profile("a")
    assert 0.0 <= profile.score <= 100.0
    assert 0.0 <= profile.loss_rate <= 1.0
    assert math.isfinite(profile.score)


def questions(monitor: NetworkQualityMonitor) -> list[object]:
    """Return the answers to every question."""
    rows = monitor.rows(["a", "b"])
    return [
        [monitor.get_node_quality(node) for node in ("a", "b")],
        [str(profile) for profile in monitor.get_node_profiles(["a", "b"])],
        monitor.get_cluster_health_summary(),
        monitor.get_alerts(include_closed=True),
        monitor.get_problematic_nodes(),
        monitor.get_reliable_nodes(),
        monitor.class_counts(),
        monitor.classes(rows).tolist(),
        monitor.scores(rows, 2.0).tolist(),
    ]


def test_a_question_changes_no_later_answer() -> None:
    asked, asked_clock = monitor_of("a", "b")
    silent, silent_clock = monitor_of("a", "b")
    for step in range(120):
        for monitor, clock in ((asked, asked_clock), (silent, silent_clock)):
            latency = 15.0 + (3.0 if step // 3 % 2 else -3.0)  # hovers around the boundary of excellent
            monitor.record_communication("a", latency, True)
            monitor.record_communication("b", 80.0 + step, step % 5 > 0)
            clock.advance(0.5)
        for _ in range(step % 3):
            questions(asked)
        if step % 20 == 19:
            assert asked.update() == silent.update()
        assert questions(asked) == questions(asked)
    assert questions(asked) == questions(silent)


def test_the_rates_of_a_link_are_those_of_its_transfers_in_each_direction() -> None:
    now = [100.0]
    monitor = NetworkQualityMonitor(clock=lambda: now[0])
    monitor.register_node("a")
    before = monitor.get_node_profile("a").to_dict()
    assert {name: before[name] for name in before if "_mbit" in name} == dict.fromkeys(
        [f"{way}_{figure}mbit" for way in ("down", "up") for figure in ("", "spread_", "least_")]
    )
    assert (before["down_age_seconds"], before["up_age_seconds"]) == (None, None)
    monitor.record_communication("a", 50.0, success=True)
    monitor.record_download("a", Transfer(4_000_000, 4.0, 1_000_000))
    now[0] = 102.0
    for nbytes in (4_100_000, 4_000_000, 4_200_000):
        monitor.record_upload("a", Transfer(nbytes, 16.0, 1_000_000))
    now[0] = 105.0
    profile = monitor.get_node_profile("a")
    assert (profile.down_mbit, profile.down_spread_mbit, profile.down_age_seconds) == (8.0, 0.0, 5.0)
    assert profile.up_mbit == pytest.approx(2.05)
    assert profile.up_age_seconds == 3.0
    assert profile.up_spread_mbit == pytest.approx(0.025)
    assert profile.down_least_mbit == pytest.approx(8.0)
    assert profile.up_least_mbit == pytest.approx(2.1)


@pytest.mark.parametrize(
    "transfer", [Transfer(0, 1.0), Transfer(-5, 1.0), Transfer(10, -1.0), Transfer(10, math.nan), Transfer(10, 1.0, -1)]
)
def test_an_impossible_transfer_is_refused(transfer: Transfer) -> None:
    monitor = NetworkQualityMonitor()
    monitor.register_node("a")
    for record in (monitor.record_upload, monitor.record_download):
        with pytest.raises(InvalidInput):
            record("a", transfer)
    assert math.isnan(monitor.get_node_profile("a").up_least_mbit)


def test_transfers_take_latency_and_bytes_by_rate_in_each_direction() -> None:
    monitor = NetworkQualityMonitor(model_bytes=10_000_000, clock=ManualClock())
    for node in ("both", "down", "short", "none"):
        monitor.register_node(node)
    monitor.record_communication("both", 100.0, success=True)
    monitor.record_download("both", Transfer(4_000_000, 2.0, 1_000_000, 0.5))  # 2 MB/s
    monitor.record_upload("both", Transfer(4_000_000, 8.0, 1_000_000, 2.0))  # 0.5 MB/s
    monitor.record_download("down", Transfer(4_000_000, 2.0, 1_000_000, 0.5))
    monitor.record_upload("short", Transfer(10_000, 0.1))
    seconds = monitor.transfer_seconds(monitor.rows(["both", "down", "short", "none"]))
    assert seconds.tolist() == pytest.approx([5.0 + 20.0 + 0.1, 10.0, 200.0, math.nan], nan_ok=True)
    samples = monitor.round_communication_samples(monitor.rows(["both", "down"]), 2)
    assert samples.tolist() == [[pytest.approx(25.1)] * 2, [pytest.approx(10.0)] * 2]
    unsized = NetworkQualityMonitor()
    unsized.register_node("a")
    unsized.record_upload("a", Transfer(10_000, 0.1))
    assert math.isnan(unsized.transfer_seconds(unsized.rows(["a"]))[0])
