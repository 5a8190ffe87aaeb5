"""Fairness by data."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.config import SelectorConfig
from hypergpu.coordinator.core.links import NetworkQualityMonitor
from hypergpu.coordinator.core.selection import DynamicNodeSelector
from hypergpu.coordinator.core.selection.data_shares import DataShares
from hypergpu.coordinator.core.selection.strategies import SelectionReason

ROWS = np.arange(3)


def shares(*held: int, least: float = 0.5) -> DataShares:
    made = DataShares(least, 10)
    made.grow(len(held))
    for row, samples in enumerate(held):
        made.hold(row, samples)
    return made


def test_a_node_is_neglected_when_its_share_seen_is_below_half_of_that_held() -> None:
    data = shares(100, 100, 200)
    assert not data.neglected(ROWS).any(), "nothing was seen yet"
    for _ in range(4):
        data.begin_round()
        data.see(ROWS, np.array([100.0, 100.0, 0.0]))
    assert data.neglected(ROWS).tolist() == [False, False, True]
    assert data.seen_shares(ROWS).tolist() == [0.5, 0.5, 0.0]
    assert data.held_shares(ROWS).tolist() == [0.25, 0.25, 0.5]
    data.begin_round()
    data.see(np.array([2]), np.array([200.0]))
    assert data.seen_shares(ROWS)[2] > 0.2
    figures = data.figures(ROWS, np.array([False, False, True]))
    assert np.isnan(figures["seen_share"][:2]).all()
    assert figures["held_share"][2] == 0.5


def test_repeating_the_same_samples_sees_no_more_of_them() -> None:
    small, large = shares(10, 10, 10), shares(10, 10, 10)
    small.see(ROWS, np.array([10.0, 10.0, 5.0]))
    large.see(ROWS, np.array([5000.0, 10.0, 5.0]))
    assert large.seen_shares(ROWS).tolist() == small.seen_shares(ROWS).tolist() == [0.4, 0.4, 0.2]


def test_nodes_that_tell_nothing_count_as_equals() -> None:
    data = shares(0, 0, 0)
    data.see(ROWS, np.array([640.0, 16.0, 0.0]))
    assert data.held_shares(ROWS).tolist() == [1 / 3] * 3
    assert data.seen_shares(ROWS).tolist() == [0.5, 0.5, 0.0]
    assert shares(30, 0, 90).held_shares(ROWS).tolist() == [30 / 180, 60 / 180, 90 / 180]


@given(st.lists(st.integers(0, 1000), min_size=3, max_size=3), st.integers(1, 4))
def test_a_node_that_is_taken_when_neglected_keeps_its_share(held: list[int], selected: int) -> None:
    """Round after round, one node trains and those that are neglected: no share stays below half for long."""
    data = shares(*held)
    fastest = selected % 3
    for _ in range(200):
        data.begin_round()
        taken = data.neglected(ROWS)
        taken[fastest] = True
        data.see(ROWS, np.where(taken, 1000.0, 0.0))
    assert (data.seen_shares(ROWS) >= 0.45 * data.held_shares(ROWS)).all()


def selector(data_share: float) -> DynamicNodeSelector:
    monitor = NetworkQualityMonitor()
    config = SelectorConfig(data_share=data_share, fairness_rounds=1000, slow_time_share=1.0, min_selected_share=0.1)
    made = DynamicNodeSelector(monitor, config.strategy, config=config, data_is_local=True)
    for node in ("fast", "quick", "slow"):
        monitor.register_node(node)
        made.register_node(node)
    return made


def rounds_of(made: DynamicNodeSelector, rounds: int) -> list[SelectionReason]:
    """Run rounds in which the slow node takes a hundred times as long; return the reasons for which it took part."""
    reasons = []
    for _ in range(rounds):
        for node in made.select_nodes(["fast", "quick", "slow"]):
            seconds = 50.0 if node == "slow" else 0.5
            made.record_contribution(node, seconds, 0.1, success=True, samples=64)
            made._monitor.record_round_communication(node, 0.1)
        last = made.last_selection
        assert last is not None
        if "slow" in last.selected:
            reasons.append(last.reasons["slow"])
            if last.reasons["slow"] is SelectionReason.DATA_TURN:
                figures = last.figures_of("slow")
                assert figures["seen_share"] < 0.5 * figures["held_share"]
    return reasons


def test_the_selector_takes_a_slow_node_back_for_its_data() -> None:
    without = rounds_of(selector(0.0), 40)
    assert SelectionReason.DATA_TURN not in without
    with_it = rounds_of(selector(0.5), 40)
    assert with_it.count(SelectionReason.DATA_TURN) >= 3
    assert len(with_it) > len(without)


def test_being_late_puts_no_node_into_quarantine_whose_data_nobody_else_has() -> None:
    states = {}
    for share in (0.0, 0.5):
        made = selector(share)
        for _ in range(12):
            made.select_nodes(["fast", "quick", "slow"])
            made.record_contribution("slow", 0.0, 0.0, success=False, late=True)
        states[share] = str(made.get_node_state("slow"))
    assert states[0.0] != "active"
    assert states[0.5] == "active"
