"""Points of updates: by direction, by share, and nothing for what was known."""

from collections.abc import Callable

import numpy as np
import pytest

from hypergpu.coordinator.core.model.sketch import WIDTH, Sketch
from hypergpu.coordinator.core.rounds.membership import Membership
from hypergpu.coordinator.core.rounds.usefulness import KEPT, LEAST_UPDATES, Useful, Usefulness

HONEST = [f"honest_{n}" for n in range(7)]
ROUNDS = 30
Send = Callable[[int, Sketch], Sketch]
"""Function of a round and an honest update."""


class Run:
    """Rounds in which honest nodes share a direction, which moves on, but for noise of their own."""

    def __init__(self, seed: int = 0) -> None:
        self.judge, self.number, self.points = Usefulness(), 0, dict.fromkeys([*HONEST, "other"], 0.0)
        self._random = np.random.default_rng(seed)
        self.direction = self._random.standard_normal(WIDTH)

    def random(self) -> Sketch:
        return self._random.standard_normal(WIDTH).astype(np.float32)

    def close(self, send: Send, weight: float = 32.0) -> dict[str, Useful]:
        """Close a round; add the points."""
        self.number += 1
        self.direction = 0.9 * self.direction + 0.44 * self.random()
        for node in HONEST:
            self.judge.observe(node, (self.direction + self.random()).astype(np.float32), 1.0, 32.0)
        own = (self.direction + self.random()).astype(np.float32)
        self.judge.observe("other", send(self.number, own), 1.0, weight)
        found = {each.node: each for each in self.judge.close(0)}
        for node, each in found.items():
            self.points[node] += each.points
        return found

    def earned(self, send: Send, weight: float = 32.0) -> float:
        """Return what the other node earns in all rounds, of what an honest one does."""
        for _ in range(ROUNDS):
            self.close(send, weight)
        honest = [self.points[node] for node in HONEST]
        assert min(honest) > 0.8 * np.mean(honest)
        return float(self.points["other"] / np.mean(honest))


@pytest.mark.parametrize("seed", range(3))
def test_a_node_of_noise_earns_nothing_worth_mentioning(seed: int) -> None:
    run = Run(seed)
    assert abs(run.earned(lambda _, __: 2.0 * run.random())) < 0.1


def test_an_honest_node_earns_by_its_samples_and_not_by_its_length() -> None:
    assert Run().earned(lambda _, own: own) == pytest.approx(1.0, abs=0.1)
    assert Run().earned(lambda _, own: 15.0 * own) == pytest.approx(1.0, abs=0.1)
    assert Run().earned(lambda _, own: own, weight=96.0) == pytest.approx(3.0, abs=0.3)


def test_whoever_sends_the_opposite_pays_for_it() -> None:
    assert Run().earned(lambda _, own: -own) < -0.5


def test_a_replayer_has_lost_what_its_first_update_earned() -> None:
    first: list[Sketch] = []

    def replay(_: int, own: Sketch) -> Sketch:
        first.append(own)
        return first[0] * np.float32(len(first))  # a length hides nothing

    assert Run().earned(replay) < 0.0


def test_only_so_many_earlier_updates_are_known_again() -> None:
    run, sent = Run(), []

    def send(number: int, own: Sketch) -> Sketch:
        sent.append(own)
        return sent[0] if number == KEPT + 1 or number == KEPT + 10 else own

    repeated = [run.close(send)["other"].repeated for _ in range(KEPT + 10)]
    assert [number for number, each in enumerate(repeated, 1) if each] == [KEPT + 1]


def test_the_step_that_everybody_received_is_no_work() -> None:
    run = Run()
    step = run.random()

    def echo(number: int, own: Sketch) -> Sketch:
        return own if number == 1 else -0.01 * step  # nodes may send gradients, which have the other sign

    run.close(echo)
    run.judge.stepped(1, step)
    assert not run.close(echo)["other"].repeated, "a step of another fragment"
    run.judge.stepped(0, step)
    assert run.close(echo)["other"].repeated
    assert not any(run.close(lambda _, own: own)[node].repeated for node in HONEST)


def test_of_copies_in_a_round_only_the_first_counts() -> None:
    judge = Usefulness()
    run = Run()
    shared = run.random()
    for node, own in (("a", shared), ("b", shared), ("c", run.random()), ("d", run.random() + shared)):
        judge.observe(node, own, 1.0, 1.0)
    found = {each.node: each for each in judge.close(0)}
    assert [node for node, each in found.items() if each.repeated] == ["b"]
    assert found["a"].cosine == pytest.approx(found["d"].cosine, abs=0.3), "not the cosine with its copy, which is 1"
    for node, own in (("a", shared), ("b", run.random()), ("c", run.random())):
        judge.observe(node, own, 1.0, 1.0)
    told = {each.node: each.repeated for each in judge.close(1, copied=["c"])}
    assert told == {"a": False, "b": False, "c": True}, "as suspicion has found"
    allowed = Usefulness(finds_copies=False)
    for node in ("a", "b", "c"):
        allowed.observe(node, shared if node != "c" else run.random(), 1.0, 1.0)
    assert not any(each.repeated for each in allowed.close(0))


def test_rounds_without_agreement_say_nothing() -> None:
    judge, run = Usefulness(), Run()
    vectors = [run.random() for _ in range(6)]
    whole = np.sum(vectors, axis=0) / 6.0
    for number, vector in enumerate(vectors):  # as near an optimum: the mean of all is 0
        judge.observe(f"n{number}", vector - whole, 1.0, 1.0)
    found = judge.close(0)
    assert all(each.cosine < 0 for each in found)
    assert [each.points for each in found] == [0.0] * 6


def test_shares_add_up_and_what_was_spoiled_or_discarded_does_not_count() -> None:
    run = Run()
    assert sum(each.share for each in run.close(lambda _, own: own, weight=64.0).values()) == pytest.approx(1.0)
    for node in HONEST:
        run.judge.observe(node, run.random(), 1.0, 1.0)
    assert {each.node for each in run.judge.close(0, [HONEST[0]])} == set(HONEST[1:])
    run.judge.observe("a", run.random(), 1.0, 1.0)
    run.judge.observe("b", run.random(), 1.0, 1.0)
    run.judge.discard()
    assert run.judge.close(0) == ()
    for number in range(LEAST_UPDATES - 1):
        run.judge.observe(f"n{number}", run.random(), 1.0, 1.0)
    assert run.judge.close(0) == ()


def test_zeros_and_two_equal_updates_are_judged_without_a_fault() -> None:
    judge = Usefulness()
    for _ in range(2):
        for node in ("a", "b", "c"):
            judge.observe(node, np.zeros(WIDTH, np.float32), 1.0, 1.0)
        assert [each.points for each in judge.close(0)] == [0.0] * 3


def test_the_share_of_all_points_has_an_interval_by_the_rounds() -> None:
    members = Membership(max_nodes=9, lost_after_seconds=None)
    for node in ("a", "b", "c"):
        members.join(node, "", 0.0)
    assert members.usefulness() == {}
    for points in (0.1, 0.3, 0.2, 0.2):
        members.credit([Useful("a", 0.5, 0.5, points), Useful("b", 0.5, 0.5, 0.2), Useful("c", 0.0, -0.5, -0.1)])
    a, b, c = (members.usefulness()[node] for node in ("a", "b", "c"))
    assert (a[0], b[0], c[0]) == pytest.approx((0.5, 0.5, 0.0))
    deviation = float(np.std([0.1, 0.3, 0.2, 0.2], ddof=1))
    assert a[1] == pytest.approx(1.96 * deviation * 4**0.5 / 1.6)
    assert b[1] == pytest.approx(0.0, abs=1e-9)
    restored = Membership(max_nodes=9, lost_after_seconds=None)
    rows = [
        {"node_id": m.node_id, "judged_rounds": 4, "points": m.points, "squared_points": m.squared_points}
        for m in members
    ]
    restored.restore(rows)
    assert restored.usefulness()["a"] == pytest.approx(a)
