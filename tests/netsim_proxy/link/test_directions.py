"""Events that act on one path of a link, and events that end connections."""

import math

import pytest

from hypergpu.common.errors import InvalidInput, UnknownName
from hypergpu.netsim_proxy.link import Blocked, Deliver, Direction, Fail, Link, NetworkEvent, NetworkSimulator
from hypergpu.netsim_proxy.link.distributions import Uniform
from hypergpu.netsim_proxy.link.outcomes import Cause
from hypergpu.netsim_proxy.link.profiles import Loss, Path, Profile
from hypergpu.netsim_proxy.link.traces import parse_trace

UP, DOWN = Direction.UP, Direction.DOWN
LINE = Profile("line", up=Path(Uniform(0.01, 0.01), 8.0), down=Path(Uniform(0.01, 0.01), 8.0))
TRACE = parse_trace("seconds,rtt_ms,loss,up_mbit,down_mbit\n0,20,0,8,8\n", "t").profile("recorded")


def link_with(*events: NetworkEvent, profile: Profile = LINE) -> Link:
    link = Link("n", profile, 0)
    for event in events:
        link.apply(event, 0.0)
    return link


def event(kind: str, **fields: object) -> NetworkEvent:
    return NetworkEvent(kind, "n", **fields)  # type: ignore[arg-type]


def offer(
    link: Link, way: Direction, now: float = 1.0, nbytes: int = 0, connection: int = 0
) -> Deliver | Fail | Blocked:
    return link.offer(now, way, nbytes, link.begin(now, connection))


def delay(link: Link, way: Direction, nbytes: int = 0, now: float = 1.0) -> float:
    outcome = offer(link, way, now, nbytes)
    assert isinstance(outcome, Deliver)
    return outcome.at - now


@pytest.mark.parametrize(("direction", "up", "down"), [("up", 0.21, 0.01), ("down", 0.01, 0.21), ("both", 0.11, 0.11)])
def test_a_spike_lengthens_a_round_trip_by_the_same_whatever_its_direction(
    direction: str, up: float, down: float
) -> None:
    link = link_with(event("latency_spike", added_ms=200, direction=direction))
    assert [delay(link, UP), delay(link, DOWN)] == [pytest.approx(up), pytest.approx(down)]
    assert [*link.latency_bounds_ms(UP)] == [pytest.approx(up * 1000)] * 2
    rpc = link.begin(1.0)
    assert link._round_trip(rpc) == pytest.approx(0.22)


def test_a_factor_and_a_collapse_act_on_their_path_alone() -> None:
    link = link_with(
        event("latency_spike", factor=3, direction="down"), event("bandwidth_collapse", factor=0.5, direction="up")
    )
    assert [delay(link, UP, 1_000_000), delay(link, DOWN, 1_000_000)] == [pytest.approx(2.01), pytest.approx(1.03)]
    assert (link.bandwidth_mbit(UP), link.bandwidth_mbit(DOWN)) == (4.0, 8.0)


@pytest.mark.parametrize("kind", ["disconnect", "partition", "flap", "timeout"])
@pytest.mark.parametrize(("direction", "blocked"), [("up", UP), ("down", DOWN)])
def test_a_path_that_is_blocked_leaves_the_other_open(kind: str, direction: str, blocked: Direction) -> None:
    figures = {"flap": {"period_seconds": 40.0}, "timeout": {"close_after_seconds": 60.0}}.get(kind, {})
    link = link_with(event(kind, direction=direction, duration_seconds=20, **figures))
    assert offer(link, blocked) == Blocked(
        20.0, Cause({"disconnect": "disconnected", "partition": "partitioned", "flap": "flapping"}.get(kind, kind))
    )
    assert isinstance(offer(link, blocked.opposite), Deliver)
    assert link.state(1.0) == "degraded" and link.blocked(1.0) is None and link.is_disturbed(1.0)
    assert link.blocked(1.0, blocked) is not None and link.blocked(1.0, blocked.opposite) is None
    assert isinstance(offer(link, blocked, 20.0), Deliver)
    assert not link.is_disturbed(20.0)


def test_a_reset_in_one_direction_ends_what_is_sent_there() -> None:
    link = link_with(event("disconnect", mode="reset", direction="up"))
    assert offer(link, UP) == Fail(1.0, Cause.DISCONNECTED)
    assert isinstance(offer(link, DOWN), Deliver)
    assert link.resets_one_way(UP) and not link.resets_one_way(DOWN)
    both = link_with(event("disconnect"))
    assert not both.resets_one_way(UP) and offer(both, UP) == Fail(1.0, Cause.DISCONNECTED)
    pair = link_with(*(event("disconnect", mode="reset", direction=way) for way in ("up", "down")))
    blocked = pair.blocked(1.0)
    assert blocked is not None and blocked.reset and not pair.resets_one_way(UP)


def test_blocks_of_two_paths_block_the_link_until_the_first_ends() -> None:
    link = link_with(
        event("partition", direction="up", duration_seconds=5),
        event("disconnect", direction="down", duration_seconds=9),
    )
    blocked = link.blocked(1.0)
    assert blocked is not None and (blocked.cause, blocked.until, blocked.reset) == ("partitioned", 5.0, False)
    assert link.state(1.0) == "partitioned"
    assert link.state(5.0) == "degraded" and link.state(9.0) == "up"


def test_connections_may_be_forgotten_in_one_direction() -> None:
    link = Link("n", LINE, 0)
    rpc = link.begin(0.0, 7)
    link.apply(event("disconnect", mode="half_open", direction="down"), 1.0)
    assert link.offer(2.0, DOWN, 1, rpc) == Blocked(math.inf, Cause.HALF_OPEN)
    assert isinstance(link.offer(2.0, UP, 1, rpc), Deliver)
    assert isinstance(offer(link, DOWN, 2.0, connection=8), Deliver)
    link.disconnect(7)
    assert not link.is_disturbed(3.0) or isinstance(offer(link, DOWN, 3.0, connection=7), Deliver)


def test_a_profile_changes_in_one_direction_for_good_or_for_a_while() -> None:
    slow = Profile("slow", Path(Uniform(0.5, 0.5), 1.0, Loss(0.2)), Path(Uniform(0.7, 0.7), 1.0, Loss(0.2)))
    link = Link("n", LINE, 0, profiles={"slow": slow, "line": LINE}.__getitem__)
    link.apply(event("profile_change", new_profile="slow", direction="up"), 0.0)
    assert link.profile.name == "line with slow up" and link.profile.loss == pytest.approx(0.1)
    assert [delay(link, UP), delay(link, DOWN)] == [pytest.approx(0.5), pytest.approx(0.01)]
    link.apply(event("profile_change", new_profile="slow", direction="down", duration_seconds=3), 2.0)
    assert link.profile.name == "line with slow up with slow down"
    changed = link.profile
    link.apply(event("latency_spike", added_ms=1), 2.0)
    assert link.profile is changed  # the chain of losses goes on
    link.apply(event("profile_change", new_profile="line", direction="up"), 3.0)
    assert link.profile.name == "line with line up with slow down"
    link.apply(event("profile_change", new_profile="line"), 4.0)
    assert link.profile is LINE


@pytest.mark.parametrize("duration", [0.0, 5.0])
def test_a_recorded_path_has_both_directions(duration: float) -> None:
    change = event("profile_change", new_profile="x", direction="up", duration_seconds=duration)
    for before, after in ((LINE, TRACE), (TRACE, LINE)):
        link = Link("n", before, 0, profiles=lambda _, after=after: after)  # type: ignore[misc]
        with pytest.raises(InvalidInput, match="recorded is a recorded path"):
            link.apply(change, 0.0)


def test_a_recovery_of_one_direction_leaves_the_other_as_it_was() -> None:
    link = link_with(
        event("partition"),
        event("latency_spike", added_ms=200, direction="down"),
        event("latency_spike", added_ms=600, direction="up"),
    )
    link.apply(event("recovery", direction="up"), 1.0)
    assert delay(link, UP) == pytest.approx(0.01) and isinstance(offer(link, DOWN), Blocked)
    assert link.event_summaries(1.0) == ["partition on n: down", "latency_spike on n: down, +200 ms"]
    link.apply(event("recovery", direction="down"), 1.0)
    assert delay(link, DOWN) == pytest.approx(0.01) and link.state(1.0) == "up"


def test_a_connection_is_over_when_it_has_carried_its_bytes() -> None:
    link = Link("n", LINE, 0)
    first, second = link.begin(0.0, 1), link.begin(0.0, 2)
    assert isinstance(link.offer(0.0, UP, 5000, first), Deliver)  # before: does not count
    link.apply(event("limit_data", limit_bytes=1000, direction="up", duration_seconds=10), 1.0)
    assert isinstance(link.offer(1.0, UP, 600, first), Deliver)
    assert (link.allowance(1, UP), link.allowance(1, DOWN), link.allowance(2, UP)) == (400, math.inf, 1000)
    assert link.offer(1.0, UP, 401, first) == Fail(1.0, Cause.LIMIT_DATA)
    assert isinstance(link.offer(1.0, UP, 400, first), Deliver)
    assert link.offer(1.0, UP, 1, first) == Fail(1.0, Cause.LIMIT_DATA)
    assert isinstance(link.offer(1.0, UP, 1000, second), Deliver)
    assert isinstance(link.offer(1.0, DOWN, 9000, first), Deliver)
    assert link.losses[Cause.LIMIT_DATA] == 2 and link.limits_connections
    link.disconnect(1)
    assert isinstance(link.offer(1.0, UP, 1000, link.begin(1.0, 1)), Deliver)  # a new one of that number
    assert isinstance(link.offer(11.0, UP, 1000, second), Deliver) and not link.limits_connections
    link.apply(event("limit_data", limit_bytes=10), 12.0)
    assert isinstance(link.offer(12.0, UP, 10, second), Deliver)  # another limit, counted anew


@pytest.mark.parametrize(("kind", "passes"), [("limit_time", True), ("timeout", False)])
def test_a_connection_lasts_so_long_from_the_event_or_from_its_beginning(kind: str, passes: bool) -> None:
    link = Link("n", LINE, 0)
    old = link.begin(0.0, 1)
    link.apply(event(kind, close_after_seconds=5), 10.0)
    new = link.begin(12.0, 2)
    assert (link.closes_at(1, 12.0), link.closes_at(2, 12.0)) == (15.0, 17.0)
    assert isinstance(link.offer(12.0, UP, 1, old), Deliver if passes else Blocked)
    assert link.state(12.0) == ("degraded" if passes else "down")
    assert link.offer(15.0, UP, 1, old) == Fail(15.0, Cause.LIMIT_TIME)
    assert isinstance(link.offer(16.9, UP, 1, new), Deliver if passes else Blocked)
    assert link.offer(17.0, DOWN, 1, new) == Fail(17.0, Cause.LIMIT_TIME)
    link.apply(event("recovery"), 18.0)
    assert link.closes_at(2, 18.0) == math.inf and not link.limits_connections
    assert isinstance(link.offer(18.0, UP, 1, new), Deliver)


def test_ends_are_late_in_the_direction_of_a_slow_close() -> None:
    link = link_with(
        event("slow_close", close_after_seconds=2, direction="up"), event("slow_close", close_after_seconds=1)
    )
    assert (link.close_delay_seconds(UP), link.close_delay_seconds(DOWN)) == (3.0, 1.0)
    assert delay(link, UP) == pytest.approx(0.01) and not link.limits_connections


@pytest.mark.parametrize(
    ("kind", "fields", "told"),
    [
        ("limit_data", {}, "limit_data needs limit_bytes"),
        ("limit_data", {"limit_bytes": -1}, "limit_bytes is 0 to"),
        ("limit_time", {}, "limit_time needs close_after_seconds"),
        ("timeout", {}, "timeout needs close_after_seconds"),
        ("slow_close", {}, "slow_close needs close_after_seconds"),
        ("slow_close", {"close_after_seconds": math.nan}, "close_after_seconds is 0 to"),
        ("partition", {"direction": "upp"}, "unknown direction 'upp'; did you mean 'up'"),
    ],
)
def test_events_that_cannot_be_are_refused(kind: str, fields: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidInput, match=told) as caught:
        event(kind, **fields)
    assert ("direction" in fields) == isinstance(caught.value, UnknownName)


def test_directions_shift_no_draw() -> None:
    plain, disturbed = (Link("n", Profile("p", Path(Uniform(0, 1)), Path(Uniform(0, 1))), 3) for _ in range(2))
    disturbed.apply(event("latency_spike", added_ms=100, direction="up"), 0.0)
    disturbed.apply(event("limit_time", close_after_seconds=1e6), 0.0)
    for now in range(1, 20):
        assert delay(disturbed, UP, now=now) == pytest.approx(delay(plain, UP, now=now) + 0.1)
        assert delay(disturbed, DOWN, now=now) == delay(plain, DOWN, now=now)


def test_the_library_simulates_each_of_them() -> None:
    simulator = NetworkSimulator(Profile("line", LINE.up, LINE.down), clock=lambda: 50.0)
    simulator.inject_event(event("limit_data", limit_bytes=100))
    assert [simulator.simulate_communication("n", b"x" * 60)[0] for _ in range(3)] == [True, False, True]
    simulator.inject_event(event("recovery"))
    simulator.inject_event(event("partition", direction="down"))
    assert not simulator.simulate_communication("n", b"x")[0]
