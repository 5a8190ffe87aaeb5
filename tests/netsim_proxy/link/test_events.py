import math

import pytest

from hypergpu.common.errors import InvalidInput, UnknownName
from hypergpu.netsim_proxy.link import PROFILES, Blocked, Deliver, Direction, EventQueue, Fail, Link, NetworkEvent
from hypergpu.netsim_proxy.link.distributions import Uniform
from hypergpu.netsim_proxy.link.outcomes import Cause
from hypergpu.netsim_proxy.link.profiles import Path, Profile

UP = Direction.UP
LINE = Profile("line", up=Path(Uniform(0.01, 0.01)), down=Path(Uniform(0.01, 0.01)))


def send(link: Link, now: float, connection: int = 0) -> Deliver | Fail | Blocked:
    return link.offer(now, UP, 1, link.begin(now, connection))


def delay(link: Link, now: float) -> float:
    outcome = send(link, now)
    assert isinstance(outcome, Deliver)
    return outcome.at - now


def test_a_spike_lasts_as_long_as_it_says_and_adds_up_with_another() -> None:
    link = Link("n", LINE, 0)
    link.apply(NetworkEvent("latency_spike", "n", duration_seconds=5, added_ms=100), 1.0)
    link.apply(NetworkEvent("latency_spike", "n", duration_seconds=2, factor=3), 1.0)
    assert delay(link, 1.0) == pytest.approx(0.03 + 0.05)
    assert link.state(1.0) == "degraded"
    assert delay(link, 3.0) == pytest.approx(0.01 + 0.05)
    assert delay(link, 6.0) == pytest.approx(0.01)
    assert link.state(6.0) == "up"


def test_a_spike_without_figures_still_spikes() -> None:
    link = Link("n", LINE, 0)
    link.apply(NetworkEvent("latency_spike", "n", duration_seconds=5), 0.0)
    assert delay(link, 0.0) == pytest.approx(0.05)


def test_a_profile_change_is_for_good_or_for_a_while() -> None:
    link = Link("n", LINE, 0)
    link.apply(NetworkEvent("profile_change", "n", new_profile="poor", duration_seconds=10), 0.0)
    assert link.profile is PROFILES["poor"]
    assert delay(link, 5.0) >= 0.075
    assert delay(link, 10.0) == pytest.approx(0.01)
    link.apply(NetworkEvent("profile_change", "n", new_profile="good"), 20.0)
    send(link, 1e6)
    assert link.profile is PROFILES["good"]
    with pytest.raises(UnknownName, match="did you mean 'poor'"):
        link.apply(NetworkEvent("profile_change", "n", new_profile="por"), 0.0)


def test_a_reset_fails_at_once_and_a_black_hole_holds() -> None:
    link = Link("n", LINE, 0)
    link.apply(NetworkEvent("disconnect", "n", duration_seconds=2), 0.0)
    assert send(link, 1.0) == Fail(1.0, Cause.DISCONNECTED)
    assert link.state(1.0) == "down"
    assert isinstance(send(link, 2.0), Deliver)
    link.apply(NetworkEvent("disconnect", "n", mode="black_hole", duration_seconds=3), 4.0)
    assert send(link, 5.0) == Blocked(7.0, Cause.DISCONNECTED)
    assert isinstance(send(link, 7.0), Deliver)


def test_a_half_open_link_stays_silent_on_old_connections_only() -> None:
    link = Link("n", LINE, 0)
    assert isinstance(send(link, 0.0, connection=1), Deliver)
    link.apply(NetworkEvent("disconnect", "n", mode="half_open"), 1.0)
    assert send(link, 1e6, connection=1) == Blocked(math.inf, Cause.HALF_OPEN)
    assert isinstance(send(link, 2e6, connection=2), Deliver)
    link.disconnect(1)
    assert isinstance(send(link, 3e6, connection=1), Deliver)


def test_a_partition_holds_until_a_recovery() -> None:
    link = Link("n", LINE, 0)
    link.apply(NetworkEvent("partition", nodes=("n",)), 0.0)
    assert send(link, 1.0) == Blocked(math.inf, Cause.PARTITIONED)
    assert link.state(1.0) == "partitioned"
    link.apply(NetworkEvent("recovery", "n"), 2.0)
    assert isinstance(send(link, 2.0), Deliver)


def test_a_flap_is_down_and_up_half_of_each_period() -> None:
    link = Link("n", LINE, 0)
    link.apply(NetworkEvent("flap", "n", period_seconds=2, duration_seconds=6), 10.0)
    for second in range(6):
        for at in (10.0 + second, 10.5 + second):
            outcome = send(link, at)
            assert isinstance(outcome, Blocked if second % 2 == 0 else Deliver), at
            if isinstance(outcome, Blocked):
                assert outcome.until == pytest.approx(11.0 + second)
    assert isinstance(send(link, 16.0), Deliver)
    assert link.next_change == math.inf


def test_clear_ends_what_runs() -> None:
    link = Link("n", LINE, 0)
    link.apply(NetworkEvent("latency_spike", "n", factor=10), 0.0)
    link.apply(NetworkEvent("bandwidth_collapse", "n"), 0.0)
    assert len(link.active_events(0.0)) == 2
    assert link.clear(1.0) == 2
    assert delay(link, 1.0) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"event_type": "latency_spik", "target_node": "n"}, "did you mean 'latency_spike'"),
        ({"event_type": "disconnect", "target_node": "n", "mode": "rest"}, "did you mean 'reset'"),
        ({"event_type": "flap"}, "needs a target"),
        ({"event_type": "profile_change", "target_node": "n"}, "needs the new profile"),
        ({"event_type": "flap", "target_node": "n", "duration_seconds": -1}, "duration_seconds is 0 to"),
        ({"event_type": "flap", "target_node": "n", "scheduled_time": 1, "scheduled_round": 1}, "not by both"),
    ],
)
def test_events_that_make_no_sense(fields: dict[str, object], what: str) -> None:
    with pytest.raises(InvalidInput, match=what):
        NetworkEvent(**fields)  # type: ignore[arg-type]  # wrong on purpose


def test_who_is_concerned() -> None:
    def concerned(event: NetworkEvent) -> list[str]:
        return [node for node in ("a", "b", "c") if event.concerns(node)]

    assert concerned(NetworkEvent("flap", "a")) == ["a"]
    assert concerned(NetworkEvent("flap", "a", nodes=("c",))) == ["a", "c"]
    assert concerned(NetworkEvent("flap", "*")) == ["a", "b", "c"]
    assert concerned(NetworkEvent("recovery")) == ["a", "b", "c"]
    assert concerned(NetworkEvent("partition", nodes=("a", "b"), group_b=("c",))) == ["a", "b"]
    assert concerned(NetworkEvent("partition", nodes=("upstream", "b"), group_b=("c",))) == ["c"]
    assert concerned(NetworkEvent("partition", nodes=("upstream", "b"))) == ["a", "c"]


def test_a_timeline_hands_out_each_event_once() -> None:
    spike = NetworkEvent("latency_spike", "a", scheduled_time=5.0)
    change = NetworkEvent("profile_change", "a", new_profile="poor", scheduled_round=3)
    early = NetworkEvent("flap", "a", scheduled_time=1.0)
    timeline = EventQueue([spike, change, early], start=100.0)
    assert timeline.next_at == 101.0
    assert timeline.due(100.5) == []
    assert timeline.due(200.0) == [(101.0, early), (105.0, spike)]
    assert timeline.due(300.0) == []
    assert timeline.due_in_round(2) == []
    assert timeline.due_in_round(4) == [change]
    assert timeline.due_in_round(9) == []
    assert len(timeline) == 0
