"""What a measurement says about a link, and what it says about something else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.clock import ManualClock
from hypergpu.coordinator.core.links import AlertKind, ConnectionQuality, NetworkQualityMonitor
from hypergpu.coordinator.core.links.history import MOST_CHANGE
from hypergpu.coordinator.core.links.monitor import MOST_GROWTH
from tests.examples import examples


class Link:
    """A monitor with one link, and its clock."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.monitor = NetworkQualityMonitor(clock=self.clock)
        self.monitor.register_node("a")
        self.rows = self.monitor.rows(["a"])

    def heartbeats(self, *round_trips_ms: float, loaded: bool = False) -> None:
        for latency_ms in round_trips_ms:
            self.clock.advance(2.0)
            self.monitor.record_communication("a", latency_ms, True, loaded=loaded)

    def failures(self, count: int) -> None:
        for _ in range(count):
            self.clock.advance(2.0)
            self.monitor.record_communication("a", 0.0, False)

    def rounds(self, *seconds: float, heard: bool = True) -> None:
        for each in seconds:
            for _ in range(10):
                self.clock.advance(each / 10)
                if heard:
                    self.monitor.record_contact("a")
            self.monitor.record_round_communication("a", each)

    @property
    def expected_seconds(self) -> float:
        return float(self.monitor.round_communication_samples(self.rows, 4).mean())


# ---------------------------------------------------------------- nothing measured


def test_a_link_of_which_nothing_was_measured_has_no_class_and_no_score() -> None:
    link = Link()
    profile, health = link.monitor.get_node_profile("a"), link.monitor.get_cluster_health_summary()
    assert link.monitor.get_node_quality("a") is ConnectionQuality.UNKNOWN
    assert (profile.quality, profile.measured) == (ConnectionQuality.UNKNOWN, False)
    shown = profile.to_dict()
    assert {shown[name] for name in ("score", "latency_score", "loss_score", "reliability_score", "freshness")} == {
        None
    }
    assert (health["health_score"], health["quality"]["unknown"], health["problematic_nodes"]) == (None, 1, [])
    assert link.monitor.get_alerts() == []
    link.monitor.register_node("b")
    link.heartbeats(5.0)
    assert link.monitor.get_cluster_health_summary()["health_score"] == 100.0
    assert link.monitor.get_problematic_nodes() == []


def test_a_round_tells_that_a_link_works_and_not_how_fast_it_answers() -> None:
    link = Link()
    link.monitor.record_rounds(link.rows, np.array([0.5]), np.array([True]), np.array([True]))
    profile = link.monitor.get_node_profile("a")
    assert (profile.quality, profile.communications) == (ConnectionQuality.UNKNOWN, 2)
    assert profile.to_dict()["latency_ms"] is None
    assert link.expected_seconds == 0.5


def test_a_failed_round_is_no_lost_communication() -> None:
    link = Link()
    link.monitor.record_rounds(link.rows, np.array([0.5]), np.array([False]), np.array([False]))
    assert link.monitor.get_node_profile("a").communications == 0
    assert link.monitor.loss_rates(link.rows).tolist() == [0.0]


# ---------------------------------------------------------------- our own transfers


def test_a_round_trip_behind_our_own_transfer_is_shown_and_judges_nothing() -> None:
    link = Link()
    link.heartbeats(*[15.0] * 10)
    link.monitor.update()
    before = link.monitor.get_node_profile("a")
    for latency_ms in (400.0, 771.0, 900.0, 1200.0, 1500.0):
        link.heartbeats(latency_ms, loaded=True)
        assert link.monitor.update() == {}
    profile = link.monitor.get_node_profile("a")
    assert (profile.quality, profile.score, profile.latency_ms) == (before.quality, before.score, 15.0)
    assert (profile.latency_p95_ms, profile.jitter_ms) == (15.0, 0.0)
    assert (profile.loaded_latency_ms, before.to_dict()["loaded_latency_ms"]) == (900.0, None)
    assert link.monitor.get_alerts() == []
    assert link.monitor.get_node_profile("a").communications == 15


def test_a_loaded_round_trip_that_did_not_wait_counts() -> None:
    link = Link()
    link.heartbeats(*[100.0] * 4)
    link.monitor.update()
    link.heartbeats(*[20.0] * 9, loaded=True)
    assert link.monitor.get_node_profile("a").latency_ms == 20.0


def test_a_link_that_was_always_loaded_is_unknown() -> None:
    link = Link()
    link.heartbeats(*[300.0, 40.0, 700.0] * 5, loaded=True)
    profile = link.monitor.get_node_profile("a")
    assert (profile.quality, profile.loaded_latency_ms) == (ConnectionQuality.UNKNOWN, 300.0)
    assert profile.to_dict()["latency_ms"] is None
    link.heartbeats(12.0)
    assert link.monitor.get_node_profile("a").latency_ms == 12.0
    assert link.monitor.get_node_quality("a") is ConnectionQuality.EXCELLENT


def test_a_link_is_not_silent_while_an_upload_arrives() -> None:
    link = Link()
    link.heartbeats(10.0)
    for _ in range(40):
        link.clock.advance(1.0)
        link.monitor.record_contact("a")
    profile = link.monitor.get_node_profile("a")
    assert (profile.freshness, profile.quality) == (1.0, ConnectionQuality.EXCELLENT)
    link.clock.advance(31.0)
    assert link.monitor.get_node_quality("a") is ConnectionQuality.OFFLINE


# ---------------------------------------------------------------- jitter and change


@examples(200)
@given(st.floats(1.0, 100.0), st.floats(1.0, 1000.0), st.lists(st.floats(0.0, 1.0), max_size=40))
def test_jitter_that_was_seen_before_changes_no_forecast(least_ms: float, range_ms: float, draws: list[float]) -> None:
    link = Link()
    link.heartbeats(*[least_ms, least_ms + range_ms] * 8)
    link.rounds(*[0.2] * 4)
    for draw in draws:
        link.heartbeats(least_ms + draw * range_ms)
        assert link.expected_seconds == pytest.approx(0.2)


@examples(200)
@given(st.lists(st.floats(0.01, 1e5), min_size=1, max_size=60), st.floats(0.0, 10.0))
def test_round_trips_never_change_a_forecast_beyond_its_bound(round_trips_ms: list[float], horizon: float) -> None:
    link = Link()
    link.heartbeats(*[20.0] * 10)
    link.rounds(*[0.2] * 4)
    for latency_ms in round_trips_ms:
        link.heartbeats(latency_ms)
        link.monitor.refresh()
        expected = link.monitor.round_communication_samples(link.rows, 4, horizon)
        assert 0.2 / MOST_CHANGE <= expected.min() <= expected.max() <= 0.2 * MOST_CHANGE
        assert 1 / MOST_GROWTH <= link.monitor.forecast_scale(link.rows, horizon)[0] <= MOST_GROWTH


def test_three_round_trips_beyond_all_before_change_a_forecast_by_their_distance() -> None:
    link = Link()
    link.heartbeats(*[18.0, 20.0, 22.0] * 4)
    link.rounds(*[0.2] * 4)
    link.heartbeats(60.0, 55.0)
    assert link.expected_seconds == pytest.approx(0.2)
    link.heartbeats(36.0)
    assert link.expected_seconds == pytest.approx(0.2 * 36.0 / 22.0)
    link.heartbeats(40.0)
    assert link.expected_seconds == pytest.approx(0.2 * 36.0 / 22.0)
    link.heartbeats(500.0, 500.0)
    assert link.expected_seconds == pytest.approx(0.2 * 40.0 / 22.0)
    link.heartbeats(21.0)
    assert link.expected_seconds == pytest.approx(0.2)
    link.heartbeats(12.0, 6.0, 3.0)
    assert link.expected_seconds == pytest.approx(0.2 * 12.0 / 18.0)


def test_a_change_is_judged_by_eight_round_trips_at_least() -> None:
    link = Link()
    link.heartbeats(*[20.0] * 7)
    link.rounds(*[0.2] * 4)
    link.heartbeats(*[60.0] * 3)
    assert link.expected_seconds == pytest.approx(0.2)
    link.rounds(0.2)
    link.heartbeats(*[90.0] * 3)
    assert link.expected_seconds == pytest.approx(0.2 * 90.0 / 60.0)


# ---------------------------------------------------------------- outages and recovery


def test_a_slow_round_is_forgotten_once_the_link_has_answered_twice() -> None:
    link = Link()
    link.heartbeats(*[20.0] * 10)
    link.rounds(*[0.2] * 5)
    link.rounds(8.0)
    assert link.expected_seconds == pytest.approx(8.0)
    link.heartbeats(20.0)
    assert link.expected_seconds == pytest.approx(8.0)
    link.heartbeats(21.0)
    assert link.expected_seconds == pytest.approx(0.2)


def test_a_link_that_is_slow_again_after_it_seemed_to_have_recovered_is_slow() -> None:
    link = Link()
    link.heartbeats(*[20.0] * 10)
    link.rounds(*[0.2] * 5)
    link.rounds(2.0)
    link.heartbeats(20.0, 21.0)
    link.rounds(3.0)
    assert link.expected_seconds == pytest.approx((2.0 + 3.0) / 2)
    link.heartbeats(20.0, 21.0)
    assert link.expected_seconds == pytest.approx((2.0 + 3.0) / 2)
    link.rounds(*[2.5] * 2)
    assert link.expected_seconds == pytest.approx(2.5)
    link.rounds(0.2)
    assert link.expected_seconds == pytest.approx(0.2), "it is fast again, and that is seen at once"


def test_round_trips_that_have_grown_are_no_recovery() -> None:
    link = Link()
    link.heartbeats(*[20.0] * 10)
    link.rounds(*[0.2] * 5)
    link.rounds(2.0)
    link.heartbeats(200.0, 200.0, 200.0)
    assert link.expected_seconds == pytest.approx(2.0)
    link.heartbeats(20.0)
    assert link.expected_seconds == pytest.approx(0.2)


def test_slow_rounds_without_an_answer_between_them_do_not_replace_what_is_usual() -> None:
    link = Link()
    link.heartbeats(*[20.0] * 10)
    link.rounds(*[0.2] * 5)
    link.rounds(2.0, 3.0, 4.0)
    assert link.expected_seconds == pytest.approx(4.0)
    link.heartbeats(20.0, 20.0)
    assert link.expected_seconds == pytest.approx(0.2)


def test_a_round_that_nothing_else_got_through_in_measured_an_outage() -> None:
    link = Link()
    link.heartbeats(*[20.0] * 10)
    link.rounds(*[0.2] * 5)
    link.rounds(9.0, heard=False)
    assert link.expected_seconds == pytest.approx(0.2)
    link.rounds(9.0)
    assert link.expected_seconds == pytest.approx(9.0), "this time, the link was not cut"


def test_failures_in_a_row_that_packet_loss_cannot_explain_are_an_outage_and_no_loss() -> None:
    link = Link()
    link.heartbeats(*[20.0] * 20)
    link.failures(7)
    assert link.monitor.loss_rates(link.rows)[0] > 0.25
    link.heartbeats(20.0)
    assert link.monitor.loss_rates(link.rows)[0] == 0.0
    link.failures(3)
    link.heartbeats(20.0)
    assert link.monitor.loss_rates(link.rows)[0] > 0.08, "three may well be lost"


def test_a_lossy_link_stays_lossy() -> None:
    link = Link()
    for _ in range(20):
        link.heartbeats(20.0)
        link.failures(1)
    link.failures(5)
    link.heartbeats(20.0)
    assert link.monitor.loss_rates(link.rows)[0] > 0.4


def test_counters_whose_order_is_unknown_are_no_outage() -> None:
    link = Link()
    link.heartbeats(20.0)
    link.monitor.observe_counters("a", attempts=50, failures=10)
    assert link.monitor.loss_rates(link.rows)[0] == pytest.approx(0.2, abs=0.06)
    assert link.monitor.failures_in_a_row(link.rows).tolist() == [0]
    assert link.monitor.get_node_profile("a").communications == 51
    link.monitor.observe_counters("a", attempts=60, failures=20)
    assert link.monitor.failures_in_a_row(link.rows).tolist() == [10]
    assert [alert.kind for alert in link.monitor.get_alerts()] == [AlertKind.OFFLINE]


def test_a_latency_spike_and_its_end_show_at_once() -> None:
    link = Link()
    link.heartbeats(*[20.0, 21.0] * 20)
    link.monitor.update()
    link.heartbeats(420.0, 421.0)
    link.monitor.update()
    assert link.monitor.get_node_profile("a").latency_ms < 22.0
    assert link.monitor.get_alerts() == []
    link.heartbeats(422.0)
    link.monitor.update()
    profile = link.monitor.get_node_profile("a")
    assert (profile.latency_ms, profile.quality) == (421.0, ConnectionQuality.FAIR)
    (alert,) = link.monitor.get_alerts()
    assert (alert.kind, alert.figures) == (AlertKind.DEGRADING, {"latency_ms": 422.0, "highest_ms_before": 21.0})
    link.heartbeats(20.0, 21.0)
    link.monitor.update()
    profile = link.monitor.get_node_profile("a")
    assert (profile.latency_ms, profile.quality) == (20.5, ConnectionQuality.GOOD)
    assert link.monitor.get_alerts() == []


def test_a_link_that_has_been_slow_for_a_while_no_longer_degrades() -> None:
    link = Link()
    link.heartbeats(*[20.0] * 10)
    link.monitor.update()
    link.heartbeats(*[400.0] * 3)
    for open_alerts in [1] * 16 + [0]:
        link.monitor.update()
        assert len(link.monitor.get_alerts()) == open_alerts
        link.heartbeats(400.0)


def test_an_outage_counts_as_one_failure() -> None:
    link = Link()
    link.heartbeats(*[20.0] * 20)
    link.failures(7)
    assert link.monitor.get_node_profile("a").reliability == pytest.approx(20 / 27)
    link.heartbeats(20.0)
    profile = link.monitor.get_node_profile("a")
    assert (profile.reliability, profile.communications) == (21 / 22, 28)


@pytest.mark.parametrize(("cut_seconds", "lost", "loss"), [(6.0, 12, False), (2.9, 12, True), (6.0, 3, True)])
def test_counters_that_are_read_after_an_outage_show_it_and_no_packet_loss(
    cut_seconds: float, lost: int, loss: bool
) -> None:
    """Of 40 attempts in 20 seconds; 12 in a row take 6 seconds."""
    link = Link()
    link.monitor.observe_counters("a", attempts=10, failures=0)
    for seconds in (*[1.0] * 7, cut_seconds, *[1.0] * round(13.0 - cut_seconds)):
        link.clock.advance(seconds)
        link.monitor.record_contact("a")
    link.monitor.observe_counters("a", attempts=50, failures=lost)
    assert (link.monitor.loss_rates(link.rows)[0] > 0.0) == loss
    if not loss:
        assert link.monitor.get_node_profile("a").reliability == 38 / 39
