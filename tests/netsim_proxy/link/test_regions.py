import pytest

from common.errors import UnknownName
from netsim_proxy.link import PROFILES, Deliver, Direction, Link
from netsim_proxy.link.profiles import LAST_MILES
from netsim_proxy.link.regions import ALIASES, at_distance, between_regions, find_region, round_trip_ms


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
