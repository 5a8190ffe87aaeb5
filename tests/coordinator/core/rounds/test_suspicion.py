"""Which nodes are suspected, by what figures, and for how long."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from hypergpu.common.config.training import TrainingConfig
from hypergpu.coordinator.core.model.sketch import WIDTH, Sketch
from hypergpu.coordinator.core.rounds.suspicion import (
    ALIKE,
    LEAST_UPDATES,
    NEIGHBORS,
    PROBATION_ROUNDS,
    SAME,
    SKEWED,
    SUSPENDED_ROUNDS,
    Judgement,
    SuspicionReason,
    Suspicions,
    copies_of,
    suspicions_of,
)

HONEST = [f"honest_{n}" for n in range(6)]
TRUTH = np.random.default_rng(99).standard_normal(WIDTH)
OPPOSITE = (-0.3 * TRUTH).astype(np.float32)


class Rounds:
    """Rounds in which honest nodes agree, but for noise."""

    def __init__(self, judge: Suspicions | None = None, noise: float = 1.0) -> None:
        self.judge, self.noise, self.number = judge or Suspicions(), noise, 0
        self._random = np.random.default_rng(0)

    def honest(self, length: float = 1.0) -> Sketch:
        update: Sketch = (length * (TRUTH + self.noise * self._random.standard_normal(WIDTH))).astype(np.float32)
        return update

    def close(self, hostile: Mapping[str, Sketch], honest: Sequence[str] = HONEST, scale: float = 1.0) -> Judgement:
        """Close a round of these nodes, as far as they may work."""
        self.number += 1
        self.judge.release(self.number)
        for node in honest:
            if not self.judge.is_suspended(node, self.number):
                self.judge.observe(node, self.honest(), scale)
        for node, update in hostile.items():
            if not self.judge.is_suspended(node, self.number):
                self.judge.observe(node, update, scale)
        return self.judge.judge(self.number, [*honest, *hostile])

    def named(self, hostile: Any, rounds: int) -> dict[str, tuple[int, SuspicionReason]]:
        """Return the round and reason of each suspicion."""
        found: dict[str, tuple[int, SuspicionReason]] = {}
        for _ in range(rounds):
            for each in self.close(hostile(self)).accusations:
                found.setdefault(each.node, (self.number, each.reason))
        return found


def test_honest_nodes_are_not_suspected() -> None:
    assert Rounds(noise=3.0).named(lambda _: {}, 200) == {}


@pytest.mark.parametrize("limits", [ALIKE, SKEWED])
def test_a_node_that_sends_the_opposite_is_suspected(limits: Any) -> None:
    rounds = Rounds(Suspicions(limits=limits))
    found = rounds.named(lambda each: {"hostile": OPPOSITE}, 6)
    assert found.keys() == {"hostile"}
    assert found["hostile"][1] is SuspicionReason.AGAINST_THE_OTHERS
    assert found["hostile"][0] <= 5


def test_a_node_that_was_honest_for_long_has_no_credit() -> None:
    rounds = Rounds()
    assert rounds.named(lambda each: {"hostile": each.honest()}, 30) == {}
    assert rounds.named(lambda _: {"hostile": OPPOSITE}, 3)["hostile"][0] <= 33


def test_long_updates_make_a_suspect_after_some_rounds_and_one_odd_round_does_not() -> None:
    rounds = Rounds()
    rounds.close({"hostile": rounds.honest(9.0)})
    assert rounds.named(lambda each: {"hostile": each.honest()}, 10) == {}
    found = rounds.named(lambda each: {"hostile": each.honest(12.0)}, 5)
    assert found["hostile"][1] is SuspicionReason.TOO_LONG


def test_an_update_beyond_all_measure_spoils_its_round_even_the_first() -> None:
    rounds = Rounds()
    judgement = rounds.close({"hostile": rounds.honest(1000.0)})
    assert judgement.spoiled_by == ("hostile",)
    assert [each.node for each in judgement.accusations] == ["hostile"]
    assert not rounds.close({"hostile": rounds.honest(1000.0)}).spoiled_by, "it gets no work any more"


def test_norms_are_compared_in_units_of_what_was_ordered() -> None:
    judge = Suspicions()
    for node in HONEST:
        judge.observe(node, Rounds().honest(), 1.0)
    judge.observe("longer", Rounds().honest(100.0), 100.0)
    assert judge.judge(1, [*HONEST, "longer"]) == Judgement()


def test_an_update_is_long_by_earlier_rounds_too_once_most_have_nothing_left_to_learn() -> None:
    rounds = Rounds()
    rounds.named(lambda _: {}, 10)
    judge = rounds.judge
    for node in HONEST[:-1]:
        judge.observe(node, rounds.honest(0.001), 1.0)
    judge.observe(HONEST[-1], rounds.honest(), 1.0)
    assert judge.judge(11, HONEST) == Judgement()


def test_copies_make_suspects_and_the_one_that_is_copied_is_none() -> None:
    def copies(rounds: Rounds) -> dict[str, Sketch]:
        update = rounds.honest()
        return {"copied": update, "thief_1": update, "thief_2": update * np.float32(1.01)}

    found = Rounds().named(copies, 10)
    assert {node: reason for node, (_, reason) in found.items()} == {
        "thief_1": SuspicionReason.COPIES,
        "thief_2": SuspicionReason.COPIES,
    }


def test_all_of_a_group_are_suspected_where_each_was_a_copy_once() -> None:
    def gang(rounds: Rounds) -> dict[str, Sketch]:
        update = rounds.honest()
        order = ["a", "b", "c"] if rounds.number % 2 else ["c", "b", "a"]
        return dict.fromkeys(order, update)

    found = Rounds().named(gang, 10)
    assert set(found) == {"a", "b", "c"}
    assert len({number for number, _ in found.values()}) == 1


def test_nodes_with_data_of_their_own_may_have_the_same() -> None:
    judge = suspicions_of(TrainingConfig(partition="local"), enabled=True)

    def twins(rounds: Rounds) -> dict[str, Sketch]:
        update = rounds.honest()
        return {"twin_1": update, "twin_2": update}

    assert Rounds(judge).named(twins, 20) == {}


def test_nobody_is_suspected_where_the_updates_do_not_agree() -> None:
    random = np.random.default_rng(5)
    judge = Suspicions(limits=SKEWED)
    for number in range(1, 60):
        updates = random.standard_normal((5, WIDTH))
        updates -= updates.mean(axis=0)  # an optimum: what the others send points against each
        for at, update in enumerate(updates):
            judge.observe(str(at), update.astype(np.float32), 1.0)
        assert judge.judge(number, [str(at) for at in range(5)]) == Judgement()


def test_no_more_than_half_of_the_nodes_become_suspects() -> None:
    rounds = Rounds()
    named: set[str] = set()
    for _ in range(12):
        hostile = {f"hostile_{n}": -rounds.honest() for n in range(5)}
        named |= {each.node for each in rounds.close(hostile, HONEST[:3]).accusations}
    assert len(named) <= 4


def test_too_few_updates_say_nothing() -> None:
    rounds = Rounds()
    for _ in range(10):
        honest = HONEST[: LEAST_UPDATES - 2]
        assert rounds.close({"hostile": -100 * rounds.honest()}, honest) == Judgement()


def test_updates_that_cannot_be_used_make_a_suspect_unless_many_nodes_send_them() -> None:
    rounds = Rounds()
    for _ in range(2):
        rounds.judge.refused("broken", SuspicionReason.NOT_FINITE)
        accusations = rounds.close({}).accusations
    assert [(each.node, each.reason) for each in accusations] == [("broken", SuspicionReason.NOT_FINITE)]
    for _ in range(10):
        for node in HONEST[:4]:
            rounds.judge.refused(node, SuspicionReason.NOT_FINITE)
        assert not rounds.close({}, HONEST[4:]).accusations


def test_a_suspect_returns_on_probation_and_is_cleared_or_suspected_for_longer() -> None:
    rounds = Rounds()
    number = rounds.named(lambda _: {"hostile": OPPOSITE}, 3)["hostile"][0]
    last = number + SUSPENDED_ROUNDS
    assert rounds.judge.is_suspended("hostile", last)
    assert not rounds.judge.is_suspended("hostile", last + 1)
    rounds.number = last
    again = rounds.close({"hostile": OPPOSITE}).accusations
    assert [(each.node, each.figures["suspended_rounds"]) for each in again] == [("hostile", 2 * SUSPENDED_ROUNDS)]
    rounds.number = last + 1 + 2 * SUSPENDED_ROUNDS
    for at in range(PROBATION_ROUNDS):
        found = rounds.close({"hostile": rounds.honest()}).accusations
        assert rounds.judge.counts("hostile") == (at == PROBATION_ROUNDS - 1)
    assert [(each.node, each.reason) for each in found] == [("hostile", SuspicionReason.CLEARED)]


def test_a_user_may_forgive_and_may_turn_it_off() -> None:
    rounds = Rounds()
    rounds.close({"hostile": rounds.honest(1000.0)})
    rounds.judge.forgive("hostile")
    assert rounds.judge.counts("hostile")
    off = Rounds(Suspicions(enabled=False))
    assert off.named(lambda each: {"hostile": each.honest(1000.0)}, 5) == {}


def test_what_is_known_outlasts_the_process() -> None:
    undisturbed, restarted = Rounds(), Rounds()
    told: dict[str, list[Any]] = {"undisturbed": [], "restarted": []}
    for number in range(1, 40):
        for name, rounds in (("undisturbed", undisturbed), ("restarted", restarted)):
            told[name] += rounds.close({"hostile": OPPOSITE, "late": rounds.honest(8.0)}).accusations
        if number % 3 == 0:
            known = json.loads(json.dumps(restarted.judge.snapshot()))
            restarted.judge = Suspicions()
            restarted.judge.restore(**known)
    assert told["restarted"] == told["undisturbed"]
    assert {each.node for each in told["restarted"]} == {"hostile", "late"}
    assert restarted.judge.is_suspended("hostile", restarted.number)
    forgetful = Suspicions(enabled=False)
    forgetful.restore(**restarted.judge.snapshot())
    assert not forgetful.is_suspended("hostile", restarted.number)


def brute_force(vectors: Any, norms: Any, nodes: Sequence[str]) -> dict[str, tuple[frozenset[str], float]]:
    """The copies, pair by pair."""
    usual = float(np.median(np.linalg.norm(vectors - np.median(vectors, axis=0), axis=1))) * np.sqrt(2.0)
    order = np.argsort(norms, kind="stable").tolist()
    group, nearest = list(range(len(nodes))), [np.inf] * len(nodes)
    for at, first in enumerate(order):
        for second in order[at + 1 : at + 1 + NEIGHBORS]:
            distance = float(np.linalg.norm(vectors[first] - vectors[second])) / usual
            if distance < SAME:
                low, high = sorted((group[first], group[second]))
                group = [low if each == high else each for each in group]
                nearest[first], nearest[second] = min(nearest[first], distance), min(nearest[second], distance)
    members = {label: frozenset(nodes[at] for at, each in enumerate(group) if each == label) for label in set(group)}
    return {nodes[at]: (members[label], nearest[at]) for at, label in enumerate(group) if label != at}


@pytest.mark.parametrize("seed", range(8))
def test_copies_are_those_of_a_comparison_of_all_pairs(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(3, 60))
    vectors = random.standard_normal((count, 64)) + 1e3 * (seed % 2)
    for _ in range(int(random.integers(0, count))):
        to, source = random.integers(0, count, 2)
        vectors[to] = vectors[source] + random.choice([0.0, 1e-3, 0.05, 0.12, 0.2]) * random.standard_normal(64)
    norms = np.linalg.norm(vectors, axis=1)
    nodes = [f"node_{number}" for number in range(count)]
    expected = brute_force(vectors, norms, nodes)
    assert {node: tuple(copy) for node, copy in copies_of(vectors, norms, nodes).items()} == expected
    assert len(expected) > 0 or seed > 5
