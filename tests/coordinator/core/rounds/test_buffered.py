"""Buffered rounds: any K updates close one, and a node that is free gets work on the newest model at once."""

import math
from typing import Any

import pytest

from hypergpu.coordinator.core.overrides import NodeOverride
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.adaptation import FixedAdaptation, RoundPlan
from tests.coordinator.core.rounds.test_machine import Driver

NODES = ("a", "b", "c", "d")


def driver(**options: Any) -> Driver:
    found = Driver(**{"rounds": 40, "mode": "buffered", "min_nodes": 4, **options})
    found.join(*NODES)
    found.ask(*NODES)
    return found


def works(found: Driver, node: str) -> ev.WorkAssigned:
    """Return the latest work of a node."""
    latest: ev.WorkAssigned = [each for each in found.of(ev.WorkAssigned) if each.node == node][-1]
    return latest


def deliver(found: Driver, *nodes: str) -> None:
    for node in nodes:
        assert found.push(node, works(found, node).round).status is ev.UpdateStatus.ACCEPTED
        found.ask(node)


def closed(found: Driver) -> list[ev.CloseRound]:
    return found.of(ev.CloseRound)


def test_half_of_the_nodes_close_a_round_by_default() -> None:
    found = driver()
    deliver(found, "a")
    assert not closed(found)
    deliver(found, "b")
    (first,) = closed(found)
    assert first.reason is ev.CloseReason.ENOUGH_CONTRIBUTED


@pytest.mark.parametrize("size", [1, 3, 4])
def test_any_updates_close_a_round_late_ones_among_them(size: int) -> None:
    found = driver(buffer_size=size)
    order = ["d", "c", "b", "a"] * 6
    for node in order:
        deliver(found, node)
    counts = [sum(c.success for c in each.contributions) + len(each.late) for each in closed(found)]
    assert set(counts) == {size}
    assert len(counts) == len(order) // size
    assert {each.node for ended in closed(found) for each in ended.late} == (set() if size == 4 else set(NODES))


def test_no_round_needs_more_updates_than_it_has_nodes() -> None:
    found = driver(buffer_size=9)
    deliver(found, *NODES)
    assert [each.reason for each in closed(found)] == [ev.CloseReason.ALL_CONTRIBUTED]


def test_a_node_that_was_late_joins_the_open_round_at_once() -> None:
    found = driver()
    deliver(found, "a", "b")
    assert found.machine.round == 2
    deliver(found, "c")
    joined = works(found, "c")
    assert (joined.round, joined.attempt) == (2, 1)
    assert joined.shard.cursor == 16, "after the samples that it has just used"
    assert joined.accepted_round == 1
    assert len({works(found, node).shard.index for node in NODES}) == 4


def test_a_node_has_one_work_unit_at_a_time_and_one_per_round() -> None:
    found = driver(buffer_size=3)
    deliver(found, "a")
    assert works(found, "a").round == 1, "it waits for the round to close"
    deliver(found, "b", "c")
    assert [works(found, node).round for node in NODES] == [2, 2, 2, 1]


def test_nobody_waits_for_nodes_that_are_busy() -> None:
    found = driver(buffer_size=1, quorum=1.0)
    for number in range(1, 6):
        deliver(found, "a")
        assert found.machine.round == number + 1
    assert found.machine.selected == ("a",)


def test_a_round_closes_with_fewer_updates_when_its_nodes_are_gone() -> None:
    found = driver(buffer_size=3)
    deliver(found, "a")
    found.send(ev.NodeLeft("b"), ev.NodeLeft("c"), ev.NodeLeft("d"))
    assert [each.reason for each in closed(found)] == [ev.CloseReason.SURVIVORS_CONTRIBUTED]


def test_momentum_is_applied_once_for_as_many_updates_as_there_are_nodes() -> None:
    found = driver(buffer_size=3)
    deliver(found, "a", "b", "c")
    assert closed(found)[0].momentum_every == math.ceil(4 / 3)
    found = driver(mode="late")
    found.push("a")
    deliver(found, "b", "c", "d")
    assert closed(found)[0].momentum_every == 1


class Choosy(FixedAdaptation):
    """Plans a batch of its own for each node, and never takes d."""

    def plan_round(self, available: Any, round_number: int) -> RoundPlan:
        batches = {node: 4 * (index + 1) + round_number for index, node in enumerate(NODES)}
        chosen = [node for node in available if node != "d"]
        return RoundPlan(chosen, {node: batches[node] for node in chosen}, 8, node_steps={"b": 5, "c": 1})


def test_a_node_that_joins_gets_what_was_planned_for_it() -> None:
    found = driver(adaptation=Choosy(8), buffer_size=2)
    assert works(found, "c").batch_size == 13
    assert [works(found, node).local_steps for node in "abc"] == [8, 5, 2], "one step would send a gradient"
    deliver(found, "a", "b", "c")
    assert works(found, "c").batch_size == 14
    assert not [each for each in found.of(ev.WorkAssigned) if each.node == "d"]
    selected = {node: found.machine.members.require(node).rounds_selected for node in NODES}
    assert selected == {"a": 2, "b": 2, "c": 2, "d": 0}


def test_a_node_that_a_user_excludes_does_not_join() -> None:
    found = driver()
    deliver(found, "a", "b")
    found.send(ev.OverrideSet("c", NodeOverride.EXCLUDE))
    assert found.push("c", 1).status is ev.UpdateStatus.ACCEPTED, "its work was given before"
    assert not found.ask("c")
