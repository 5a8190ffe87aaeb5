import pytest

from hypergpu.common.errors import UnknownName
from hypergpu.netsim_proxy.link import PROFILES, Deliver, Direction, Link
from hypergpu.netsim_proxy.link.events import NetworkEvent
from hypergpu.netsim_proxy.link.profiles import LAST_MILES, Profile
from hypergpu.netsim_proxy.link.regions import ALIASES, at_distance, between_regions, find_region, round_trip_ms
from hypergpu.netsim_proxy.link.traces import Row, Trace


def test_figures_of_the_source() -> None:
    assert round_trip_ms("eu-west", "us-east") == 84
    assert round_trip_ms("us-east", "eu-west") == 84
    assert round_trip_ms("southafricanorth", "au-east") == 379
    assert round_trip_ms("eu-north", "swedencentral") == 1


def test_every_pair_is_there() -> None:
    regions = list(ALIASES.values())
    assert len(set(regions)) == 21
    assert all(round_trip_ms(a, b) > 1 for a in regions for b in regions if a != b)


def test_a_wrong_name_is_told_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'eu-west'"):
        find_region("eu-wset")


def test_a_node_between_regions_has_the_distance_and_its_last_mile() -> None:
    profile = between_regions("eu-west", "us-east", LAST_MILES["cable"])
    link = Link("n", profile, seed=0)
    low = sum(link.latency_bounds_ms(direction)[0] for direction in Direction)
    assert 94 <= low <= 97
    assert link.bandwidth_mbit(Direction.UP) == 20
    assert profile.name == "cable from eu-west to us-east"
    near = Link("n", between_regions("eu-west", "eu-west"), seed=0)
    outcome = near.offer(0.0, Direction.UP, 1, near.begin(0.0))
    assert isinstance(outcome, Deliver)
    assert 0.0005 <= outcome.at <= 0.00101


def test_distance_goes_on_top_of_any_profile() -> None:
    far = at_distance(PROFILES["good"], 200)
    assert far.up.latency.at(0.0) == pytest.approx(0.105)
    assert far.loss == PROFILES["good"].loss


def one_way_ms(link: Link) -> list[float]:
    """Lowest latencies up and down."""
    return [path.latency.at(0.0) * 1000 for path in (link.profile.up, link.profile.down)]


def change(profile: str, **fields: object) -> NetworkEvent:
    return NetworkEvent("profile_change", "n", new_profile=profile, **fields)  # type: ignore[arg-type]


def test_a_profile_change_keeps_the_distance_of_the_link() -> None:
    link = Link("n", between_regions("eu-west", "us-east", PROFILES["good"]), seed=0)
    assert one_way_ms(link) == [pytest.approx(5 + 42)] * 2
    link.apply(change("poor"), 1.0)
    assert one_way_ms(link) == [pytest.approx(75 + 42)] * 2
    assert link.profile.name == "poor from eu-west to us-east"
    link.apply(change("average"), 2.0)  # the distance counts once however often the profile changes
    assert one_way_ms(link) == [pytest.approx(25 + 42)] * 2


def test_a_profile_change_for_a_while_or_in_one_direction_keeps_the_distance() -> None:
    link = Link("n", between_regions("eu-west", "us-east", PROFILES["good"]), seed=0)
    link.apply(change("poor", duration_seconds=5.0), 1.0)
    assert one_way_ms(link) == [pytest.approx(75 + 42)] * 2
    assert link.next_change == 6.0
    link.blocked(6.0)
    assert one_way_ms(link) == [pytest.approx(5 + 42)] * 2
    link.apply(change("poor", direction="up"), 7.0)
    assert one_way_ms(link) == [pytest.approx(75 + 42), pytest.approx(5 + 42)]
    assert link.profile.name == "good from eu-west to us-east with poor up"


def test_a_recorded_path_is_replayed_at_the_distance_of_the_link() -> None:
    trace = Trace("path", [Row(0.0, 10.0, 0.0, 100.0, 100.0), Row(5.0, 30.0, 0.0, 100.0, 100.0)])
    recorded = trace.profile("path")

    def find(_: str) -> Profile:
        return recorded

    given = Link("n", at_distance(recorded, 100), seed=0)
    given.offer(0.0, Direction.UP, 1, given.begin(0.0))
    changed = Link("n", at_distance(PROFILES["good"], 100), seed=0, profiles=find)
    changed.apply(change("path"), 0.0)
    for link in (given, changed):
        assert one_way_ms(link) == [pytest.approx(5 + 50)] * 2
        link.blocked(5.0)
        assert one_way_ms(link) == [pytest.approx(15 + 50)] * 2


def test_a_link_without_a_distance_gets_none_from_a_profile_change() -> None:
    link = Link("n", PROFILES["good"], seed=0)
    link.apply(change("poor"), 0.0)
    assert link.profile is PROFILES["poor"]
