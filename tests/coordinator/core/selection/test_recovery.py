"""Which nodes are probed, how often, and when they are back."""

import numpy as np
import pytest

from hypergpu.coordinator.core.selection.recovery import RecoveryProbes


class Node:
    """Node 1 of two, whose communication took 0.1 s when the strategy chose it."""

    def __init__(self) -> None:
        self.subject = RecoveryProbes()
        self.subject.grow(2)
        self.rows = np.array([1])
        self.round = 0
        self.subject.chosen(self.rows, np.array([0.1]), np.array([80.0]))

    def due(self, *, chosen: bool = False, left_out: bool = True) -> bool:
        """Return whether it is probed in the next round, and probe it then."""
        self.round += 1
        due = self.subject.due(
            self.rows, chosen=np.array([chosen]), may_recover=np.array([left_out]), round_number=self.round
        )
        if due[0]:
            self.subject.begin(self.rows, self.round)
        return bool(due[0])

    def arrives(self) -> bool:
        """Return whether the node is back once its update has arrived in time."""
        assert self.subject.were_probed(self.rows, self.round).tolist() == [True]
        return bool(self.subject.succeeded(self.rows, self.round).tolist() == [1])


def test_a_node_that_is_left_out_is_probed_in_every_second_round() -> None:
    node = Node()
    assert [node.due() for _ in range(7)] == [True, False, True, False, True, False, True]


def test_a_node_that_is_not_left_out_is_not_probed() -> None:
    node = Node()
    assert not any(node.due(left_out=False, chosen=chosen) for chosen in (False, True))
    assert not node.subject.on_trial(node.rows)[0]


def test_one_probe_in_time_brings_it_back() -> None:
    node = Node()
    assert node.due()
    assert node.arrives()
    assert not node.subject.on_trial(node.rows)[0]
    assert not node.due(chosen=True, left_out=False)


def test_a_node_that_the_strategy_chooses_too_early_is_probed_first() -> None:
    node = Node()
    node.due()
    assert [node.due(chosen=True, left_out=False) for _ in range(3)] == [True, True, True]
    assert node.arrives()


def test_each_relapse_doubles_the_probes_that_a_return_takes_up_to_sixteen() -> None:
    node, taken = Node(), []
    for _ in range(6):
        count = 0
        while node.subject.on_trial(node.rows)[0] or not count:
            assert node.due(), "after a probe in time, the next one follows at once"
            count += 1
            node.arrives()
        taken.append(count)
    assert taken == [1, 2, 4, 8, 16, 16]


@pytest.mark.parametrize(("rounds", "needed"), [(49, 2), (50, 1)])
def test_a_relapse_is_soon_after_the_return(rounds: int, needed: int) -> None:
    node = Node()
    node.due()
    node.arrives()
    node.round += rounds
    node.due()
    assert node.subject.figures(1, 0.5)["probes_needed"] == needed


def test_a_probe_that_is_late_ends_the_streak() -> None:
    node = Node()
    node.due()
    node.arrives()
    node.due()  # a relapse: two are needed
    assert not node.arrives()
    assert node.subject.figures(1, 0.5) == {
        "communication_seconds": 0.5,
        "best_communication_seconds": 0.1,
        "probes_in_time": 1,
        "probes_needed": 2,
    }
    assert node.due()
    assert [node.due() for _ in range(2)] == [False, True]
    assert node.subject.figures(1, 0.5)["probes_in_time"] == 0
    assert not node.arrives()
    assert node.due()
    assert node.arrives()


@pytest.mark.parametrize(
    ("seconds", "score", "worse"), [(0.15, 80.0, False), (0.1501, 80.0, True), (0.1, 75.0, False), (0.1, 74.9, True)]
)
def test_worse_is_slower_by_half_or_five_points_below_the_best(seconds: float, score: float, worse: bool) -> None:
    node = Node()
    node.subject.chosen(node.rows, np.array([0.3]), np.array([60.0]))  # the best stays
    assert node.subject.is_worse(node.rows, np.array([seconds]), np.array([score])).tolist() == [worse]


def test_a_node_that_was_never_chosen_is_not_worse() -> None:
    node = Node()
    assert not node.subject.is_worse(np.array([0]), np.array([100.0]), np.array([0.0]))[0]
    assert "best_communication_seconds" not in node.subject.figures(0, 1.0)


def test_a_late_probe_with_the_usual_communication_counts_once() -> None:
    node = Node()
    assert not node.subject.is_usual(1, 0.1)
    node.due()
    assert [node.subject.is_usual(1, seconds) for seconds in (0.2, 0.201)] == [True, False]
    node.subject.succeeded(node.rows, node.round)
    assert not node.subject.is_usual(1, 0.1)
