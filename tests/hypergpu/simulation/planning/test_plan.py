"""Plans of runs: the scenario that links make, what is tried, and the figures."""

from dataclasses import replace
from statistics import fmean, stdev

import pytest

from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.simulation.compute import SimulatedCards
from hypergpu.simulation.node import LocalSteps
from hypergpu.simulation.planning.links_file import PlannedNode
from hypergpu.simulation.planning.plan import make_plan, yaml_of
from hypergpu.simulation.planning.request import Curve, Request, scenario_of
from hypergpu.simulation.planning.settings import settings, spread
from hypergpu.simulation.run import simulate

NEAR = PlannedNode("near", 4.0, 0.05, up_mbit=1000.0, down_mbit=1000.0, price_per_hour=2.0)
FAR = PlannedNode("far", 90.0, 0.05, jitter_ms=8.0, up_mbit=2.0, down_mbit=20.0, price_per_hour=0.5)
DIGITS = Curve({}, 0.9, name="digits")


def test_the_scenario_has_the_measured_links_and_step_times() -> None:
    slow = replace(FAR, name="slow", step_seconds=0.2)
    scenario = scenario_of(Request([NEAR, FAR, slow], 1_000_000, batch_size=32))
    profile = scenario.profiles_of_links()["far"]
    assert (profile.up.bandwidth_mbit, profile.down.bandwidth_mbit) == (2.0, 20.0)
    draws = KeyedRandom(0, "rtt")
    trips = [
        1000 * (profile.up.latency.at(draws.uniform(2 * n)) + profile.down.latency.at(draws.uniform(2 * n + 1)))
        for n in range(2000)
    ]
    assert fmean(trips) == pytest.approx(90, rel=0.02)
    assert stdev(trips) == pytest.approx(8, rel=0.1)
    cards = SimulatedCards(scenario)
    for name, seconds in (("near", 0.05), ("slow", 0.2)):
        drawn = [cards.seconds(name, LocalSteps(step, 1, 32, "sgd"), 0.0) for step in range(400)]
        assert fmean(drawn) == pytest.approx(seconds, rel=0.02)


def test_the_slowest_nodes_are_those_that_are_left_out() -> None:
    request = Request([FAR, NEAR], 1_000_000, curve=DIGITS)
    found = settings(request, scenario_of(request))
    assert {tuple(each.nodes) for each in found} == {("near", "far"), ("near",)}
    assert {each.static.local_steps for each in found if each.static} == {10, 40, 100, 200}
    alone = settings(Request([FAR, NEAR], 1_000_000, local_steps=7), scenario_of(request))
    assert {each.static.local_steps for each in alone if each.static} == {7}
    assert len(spread(found, 5)) == 5
    assert spread(found, 0) == found


def test_work_without_a_curve_takes_as_long_as_that_many_simulated_rounds() -> None:
    request = Request([NEAR, replace(NEAR, name="near_2")], 1_000_000)
    plan = make_plan(request, seeds=1, candidates=1)
    given = plan.reference
    assert given.setting.label == "as given"
    direct = simulate(scenario_of(request).changed(policy="none", rounds=40, target_accuracy=None))
    seconds = direct.trained_seconds / direct.rounds
    assert given.hours.mean == pytest.approx(1000 * seconds / 3600, rel=0.05)
    assert given.bytes == pytest.approx(1000 * direct.bytes / direct.rounds, rel=0.05)
    assert given.money.mean == pytest.approx(4.0 * (given.hours.mean or 0.0))
    assert given.rounds == pytest.approx(1000, rel=0.01)


def test_fewer_nodes_do_the_same_work_in_more_rounds() -> None:
    request = Request([NEAR, replace(NEAR, name="near_2")], 1_000_000)
    plan = make_plan(request, seeds=1)
    halves = [row for row in plan.rows if len(row.setting.nodes) == 1]
    assert all(row.rounds == pytest.approx(2000, rel=0.01) for row in halves)
    assert len(plan.best.setting.nodes) == 2  # as good a node, and half of the time
    plain = next(row for row in plan.rows if row.setting.static and row.setting.static.codec == "int8")
    assert plain.rounds == pytest.approx(1000, rel=0.01)


def test_a_node_that_only_holds_up_the_others_is_left_out() -> None:
    nodes = [NEAR, replace(NEAR, name="near_2"), replace(NEAR, name="near_3"), FAR]
    plan = make_plan(Request(nodes, 500_000), seeds=2, candidates=16)
    assert "far" not in plan.best.setting.nodes
    assert (plan.best.won, plan.best.reached) == (2, 2)
    assert plan.best.against.ci_high is not None
    assert plan.best.against.ci_high < 0.5
    assert yaml_of(plan, plan.best)["training"] == {"local_steps": 10, "batch_size": 64}


def test_with_a_curve_the_policy_is_the_reference_and_the_same_plan_comes_again() -> None:
    request = Request([NEAR, FAR], 500_000, curve=DIGITS)
    plan, again = (make_plan(request, seeds=2, candidates=4) for _ in range(2))
    assert plan.reference.setting.label == "reactive"
    assert plan.reference.reached == 2
    assert [row.to_dict() for row in plan.rows] == [row.to_dict() for row in again.rows]
    assert plan.best.hours.mean == min(row.hours.mean or 9e9 for row in plan.rows if row.reached == 2)


def test_the_cheapest_plan_pays_less_than_the_fastest() -> None:
    dear = replace(NEAR, price_per_hour=50.0)
    nodes = [dear, replace(dear, name="dear_2"), replace(NEAR, name="cheap", price_per_hour=0.1, step_seconds=0.2)]
    fastest = make_plan(Request(nodes, 200_000), seeds=1, candidates=12).best
    cheapest = make_plan(Request(nodes, 200_000, by_money=True), seeds=1, candidates=12).best
    assert (cheapest.money.mean or 0.0) < (fastest.money.mean or 0.0)
    assert (cheapest.hours.mean or 0.0) > (fastest.hours.mean or 0.0)
