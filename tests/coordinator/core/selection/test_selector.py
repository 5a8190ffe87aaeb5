"""Who is selected, and whether the reason given is the true one."""

import itertools
import math
import random
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.clock import ManualClock
from hypergpu.common.config import SelectorConfig
from hypergpu.common.errors import InvalidInput, UnknownName
from hypergpu.coordinator.core.links import NetworkQualityMonitor
from hypergpu.coordinator.core.selection import (
    DynamicNodeSelector,
    NodeState,
    QuarantineReason,
    SelectionReason,
    SelectionStrategy,
)
from hypergpu.coordinator.core.selection.context import SelectionContext
from tests.examples import examples

GOOD = [f"good_{i}" for i in range(8)]
BAD = ["bad_0", "bad_1"]
ALL = GOOD + BAD


class Cluster:
    """Eight good links and two bad ones, and what their rounds were like."""

    def __init__(self, strategy: SelectionStrategy, most: int | None = None, **settings_: object) -> None:
        self.clock = ManualClock()
        self.monitor = NetworkQualityMonitor(clock=self.clock)
        config = SelectorConfig.model_validate(settings_)
        self.selector = DynamicNodeSelector(self.monitor, strategy, most, config=config, clock=self.clock)
        for node in ALL:
            self.monitor.register_node(node)
            self.selector.register_node(node)

    def round(self, nodes: list[str] = ALL, *, failing: tuple[str, ...] = (), bad_seconds: float = 0.8) -> None:
        """These nodes trained; four of their RPCs were seen."""
        for at, node in enumerate(nodes):
            bad = node in BAD
            for rpc in range(4):
                self.monitor.record_communication(node, 300.0 if bad else 20.0 + rpc, not (bad and rpc == 3))
            self.monitor.record_round_communication(node, bad_seconds if bad else 0.05 + 0.001 * at)
            self.selector.record_contribution(node, 0.02, bad_seconds if bad else 0.05, node not in failing)
        self.clock.advance(0.1)

    def reason(self, node: str) -> SelectionReason:
        last = self.selector.last_selection
        assert last is not None
        return last.reasons[node]


def warmed(strategy: SelectionStrategy, most: int | None = None, **settings_: object) -> Cluster:
    cluster = Cluster(strategy, most, **settings_)
    for round_num in range(6):
        cluster.selector.select_all(ALL, round_num, SelectionReason.WARM_UP)
        cluster.round()
    return cluster


def test_all_available_is_all() -> None:
    cluster = warmed(SelectionStrategy.ALL_AVAILABLE)
    assert cluster.selector.select_nodes(ALL) == ALL
    assert cluster.reason("bad_0") is SelectionReason.ALL_AVAILABLE


@pytest.mark.parametrize(
    "strategy", [SelectionStrategy.QUALITY_THRESHOLD, SelectionStrategy.ADAPTIVE_THRESHOLD, SelectionStrategy.UTILITY]
)
def test_bad_links_are_left_out(strategy: SelectionStrategy) -> None:
    cluster = warmed(strategy)
    assert cluster.selector.select_nodes(ALL) == GOOD
    expected = (
        SelectionReason.COSTS_MORE_THAN_IT_ADDS
        if strategy is SelectionStrategy.UTILITY
        else SelectionReason.BELOW_THRESHOLD
    )
    assert cluster.reason("bad_0") is expected
    assert cluster.selector.get_node_details("bad_0")["figures"]


def test_utility_gives_the_figures_that_made_it_decide() -> None:
    cluster = warmed(SelectionStrategy.UTILITY)
    cluster.selector.select_nodes(ALL)
    figures = cluster.selector.get_node_details("bad_0")["figures"]
    assert figures["adds_seconds"] == pytest.approx(0.8 - 0.057, abs=0.01)
    assert figures["adds_progress_share"] < figures["adds_seconds"] / figures["round_seconds"]


def test_a_slow_node_is_kept_where_its_samples_pay() -> None:
    cluster = warmed(SelectionStrategy.UTILITY)
    computing = SelectionContext(compute_seconds=np.full(10, 30.0))  # beside it the network is nothing
    assert cluster.selector.select_nodes(ALL, context=computing) == ALL
    assert cluster.reason("bad_0") is SelectionReason.WORTH_ITS_TIME


def test_a_uniform_cluster_stays_whole_whatever_its_jitter() -> None:
    for strategy in (
        SelectionStrategy.ADAPTIVE_THRESHOLD,
        SelectionStrategy.QUALITY_THRESHOLD,
        SelectionStrategy.UTILITY,
    ):
        cluster = Cluster(strategy)
        for round_num in range(30):
            cluster.selector.select_nodes(GOOD)
            for at, node in enumerate(GOOD):
                jitter = ((at * 7 + round_num * 13) % 10) / 10.0
                cluster.monitor.record_communication(node, 10 + 40 * jitter, True)
                cluster.monitor.record_round_communication(node, 0.03 + 0.06 * jitter)
                cluster.selector.record_contribution(node, 0.01, 0.03 + 0.06 * jitter, True)
        assert len(cluster.selector.select_nodes(GOOD)) >= 7


def test_top_n_takes_the_best_and_no_more_than_there_are() -> None:
    cluster = warmed(SelectionStrategy.TOP_N, 4)
    chosen = cluster.selector.select_nodes(ALL)
    assert len(chosen) == 4
    assert set(chosen) <= set(GOOD)
    assert cluster.selector.select_nodes(["good_0", "bad_0"]) == ["good_0", "bad_0"]


def test_contribution_is_half_efficiency_and_half_reliability() -> None:
    cluster = Cluster(SelectionStrategy.CONTRIBUTION_BASED)
    cluster.selector.record_contribution("good_0", 3.0, 1.0, True)
    cluster.selector.record_contribution("good_1", 1.0, 3.0, False)
    assert cluster.selector.get_node_details("good_0")["contribution_score"] == pytest.approx(0.5 * 0.75 + 0.5)
    assert cluster.selector.get_node_details("good_1")["contribution_score"] == pytest.approx(0.5 * 0.25)


def test_contribution_based_leaves_out_those_who_only_wait_and_fail() -> None:
    cluster = Cluster(SelectionStrategy.CONTRIBUTION_BASED, quarantine_after_failures=100)
    for _ in range(6):
        cluster.selector.select_nodes(ALL)
        for node in ALL:
            cluster.selector.record_contribution(node, 0.05, 3.0 if node in BAD else 0.05, node not in BAD)
    assert cluster.selector.select_nodes(ALL) == GOOD


def test_repeated_failures_lead_to_quarantine_probation_and_back() -> None:
    cluster = warmed(SelectionStrategy.ALL_AVAILABLE, quarantine_rounds=4)
    for _ in range(3):
        cluster.round(failing=("good_3",))
    assert cluster.selector.get_node_state("good_3") is NodeState.QUARANTINED
    assert "good_3" not in cluster.selector.select_nodes(ALL)
    assert cluster.reason("good_3") is SelectionReason.QUARANTINED
    for _ in range(3):
        assert "good_3" not in cluster.selector.select_nodes(ALL)
    assert "good_3" in cluster.selector.select_nodes(ALL)
    assert cluster.selector.get_node_state("good_3") is NodeState.PROBATION
    cluster.round()
    cluster.round()
    assert cluster.selector.get_node_state("good_3") is NodeState.ACTIVE
    reasons = [change.reason for _, change in cluster.selector.drain_state_changes()]
    assert reasons == [
        QuarantineReason.REPEATED_FAILURES,
        QuarantineReason.QUARANTINE_EXPIRED,
        QuarantineReason.PROBATION_PASSED,
    ]


def test_a_failure_on_probation_doubles_the_quarantine() -> None:
    cluster = warmed(SelectionStrategy.ALL_AVAILABLE, quarantine_rounds=4)
    for _ in range(3):
        cluster.round(failing=("good_3",))
    for _ in range(5):
        cluster.selector.select_nodes(ALL)
    cluster.round(failing=("good_3",))
    assert cluster.selector.get_node_details("good_3")["quarantine_rounds_left"] == 8


def test_a_late_update_is_half_a_failure() -> None:
    cluster = Cluster(SelectionStrategy.ALL_AVAILABLE)
    for _ in range(5):
        cluster.selector.record_contribution("good_0", 0.1, 5.0, False, late=True)
    assert cluster.selector.get_node_state("good_0") is NodeState.ACTIVE
    cluster.selector.record_contribution("good_0", 0.1, 5.0, False, late=True)
    assert cluster.selector.get_node_state("good_0") is NodeState.QUARANTINED
    ((_, change),) = cluster.selector.drain_state_changes()
    assert change.reason is QuarantineReason.REPEATEDLY_LATE
    assert change.figures == {"failures_in_a_row": 0, "late_in_a_row": 6, "quarantine_rounds": 5}


def test_failures_and_late_updates_add_up_until_a_success() -> None:
    cluster = Cluster(SelectionStrategy.ALL_AVAILABLE)
    for success, late in [(False, False), (False, True), (True, False), (False, False), (False, False), (False, True)]:
        cluster.selector.record_contribution("good_0", 0.1, 5.0, success, late=late)
    assert cluster.selector.get_node_state("good_0") is NodeState.ACTIVE
    cluster.selector.record_contribution("good_0", 0.1, 5.0, False, late=True)
    ((_, change),) = cluster.selector.drain_state_changes()
    assert change.reason is QuarantineReason.REPEATED_FAILURES
    assert change.figures == {"failures_in_a_row": 2, "late_in_a_row": 2, "quarantine_rounds": 5}


def test_when_all_are_quarantined_the_least_bad_are_released_with_the_reason() -> None:
    cluster = warmed(SelectionStrategy.UTILITY)
    for _ in range(3):
        cluster.round(failing=tuple(ALL))
    assert all(cluster.selector.get_node_state(node) is NodeState.QUARANTINED for node in ALL)
    chosen = cluster.selector.select_nodes(ALL)
    assert len(chosen) == 5
    assert set(chosen) <= set(GOOD)
    assert all(cluster.reason(node) is SelectionReason.RELEASED_TO_FILL_ROUND for node in chosen)
    released = [change for _, change in cluster.selector.drain_state_changes() if change.state is NodeState.PROBATION]
    assert {change.reason for change in released} == {QuarantineReason.RELEASED_TO_FILL_ROUND}


def test_users_rules_win() -> None:
    cluster = warmed(SelectionStrategy.UTILITY)
    cluster.selector.force_include("bad_0")
    cluster.selector.force_exclude("good_0")
    chosen = cluster.selector.select_nodes(ALL)
    assert "bad_0" in chosen
    assert "good_0" not in chosen
    assert cluster.reason("bad_0") is SelectionReason.FORCED_IN
    assert cluster.reason("good_0") is SelectionReason.FORCED_OUT
    cluster.selector.clear_rule("bad_0")
    cluster.selector.clear_rule("good_0")
    assert "good_0" in cluster.selector.select_nodes(ALL)


def test_no_healthy_node_starves() -> None:
    cluster = Cluster(SelectionStrategy.TOP_N, 3, fairness_rounds=4)
    seen: dict[str, int] = {}
    for round_num in range(40):
        for node in cluster.selector.select_nodes(GOOD):
            assert round_num - seen.get(node, 0) <= 4 + len(GOOD) // 3 + 1
            seen[node] = round_num
        cluster.round(GOOD)
    assert set(seen) == set(GOOD)
    assert all(40 - last <= 8 for last in seen.values())


@examples(25)
@given(st.sampled_from(list(SelectionStrategy)), st.integers(1, 10), st.integers(1, 12), st.randoms())
def test_no_healthy_node_waits_longer_than_the_bound(
    strategy: SelectionStrategy, most: int, patience: int, chance: random.Random
) -> None:
    """Under any strategy and maximum: its patience, and then one passage through all nodes of its speed."""
    cluster = Cluster(strategy, most, fairness_rounds=patience)
    compute = {node: chance.uniform(0.001, 0.006) for node in GOOD}
    last = dict.fromkeys(GOOD, -1)
    for round_num in range(60):
        for node in cluster.selector.select_nodes(GOOD):
            last[node] = round_num
            cluster.monitor.record_round_communication(node, 0.05)
            cluster.selector.record_contribution(node, compute[node], 0.05, True)
        for node in GOOD:
            cluster.monitor.record_communication(node, 20.0, True)
        assert max(round_num - at for at in last.values()) <= patience + math.ceil(len(GOOD) / most)


@pytest.mark.parametrize(("compute_seconds", "rounds"), [(0.05, (10, 12)), (0.4, (50, 90))])
def test_turns_of_slow_nodes_with_healthy_links_stay_within_their_share_of_the_time(
    compute_seconds: float, rounds: tuple[int, int]
) -> None:
    """One that takes twice as long has its turn in time; one that takes eight times as long waits until it is paid."""
    cluster = warmed(SelectionStrategy.UTILITY, slow_time_share=0.1, fairness_rounds=10)
    compute = np.full(len(GOOD), 0.001)
    compute[0] = compute_seconds
    turns = []
    for round_num in range(300):
        context = SelectionContext(compute_seconds=compute)
        chosen = cluster.selector.select_nodes(GOOD, context=context)
        if "good_0" in chosen:
            turns.append(round_num)
            assert cluster.reason("good_0") is SelectionReason.FAIRNESS_TURN
        cluster.round(chosen)
    waits = [after - before for before, after in itertools.pairwise(turns)]
    assert waits
    assert rounds[0] <= min(waits[1:]) <= max(waits) <= rounds[1]


def test_a_node_on_probation_gets_its_trial_under_a_maximum() -> None:
    cluster = warmed(SelectionStrategy.TOP_N, 1, quarantine_rounds=1, fairness_rounds=1000)
    for _ in range(3):
        cluster.round(failing=("bad_0",))
    cluster.selector.select_nodes(ALL)
    assert cluster.selector.select_nodes(ALL) == ["bad_0"]
    assert cluster.reason("bad_0") is SelectionReason.ON_PROBATION


def test_a_warm_up_keeps_to_the_maximum_and_takes_turns() -> None:
    cluster = Cluster(SelectionStrategy.UTILITY, 4)
    taken = [cluster.selector.select_all(ALL, at, SelectionReason.WARM_UP) for at in range(3)]
    assert [len(each) for each in taken] == [4, 4, 4]
    assert set().union(*taken) == set(ALL)


def test_who_is_in_or_out_for_the_bounds_alone_is_told_so() -> None:
    few = warmed(SelectionStrategy.UTILITY, min_selected_share=1.0)
    assert few.selector.select_nodes(ALL) == ALL
    assert [few.reason(node) for node in ALL].count(SelectionReason.KEEPS_THE_MINIMUM) == 2
    many = warmed(SelectionStrategy.UTILITY, 6)
    many.selector.select_nodes(ALL)
    reasons = [many.reason(node) for node in ALL]
    assert reasons.count(SelectionReason.BEYOND_THE_MAXIMUM) == 2
    assert reasons.count(SelectionReason.COSTS_MORE_THAN_IT_ADDS) == 2


@pytest.mark.parametrize(("configured", "most", "count"), [(None, 3, 3), (5, 3, 3), (2, 3, 2), (None, None, 8)])
def test_a_round_may_have_a_limit_of_its_own(configured: int | None, most: int | None, count: int) -> None:
    cluster = warmed(SelectionStrategy.UTILITY, configured)
    assert len(cluster.selector.select_nodes(ALL, context=SelectionContext(most=most))) == count
    if most is not None:
        assert SelectionReason.BEYOND_THE_MAXIMUM in {cluster.reason(node) for node in ALL}


def test_figures_tell_whether_the_link_or_the_card_is_slow() -> None:
    cluster = warmed(SelectionStrategy.UTILITY)
    compute = np.full(10, 0.02)
    compute[0] = 5.0
    cluster.selector.select_nodes(ALL, context=SelectionContext(compute_seconds=compute))
    card, link = (cluster.selector.get_node_details(node)["figures"] for node in ("good_0", "bad_0"))
    assert card["compute_seconds"] > 10 * card["communication_seconds"]
    assert link["communication_seconds"] > 10 * link["compute_seconds"]


def test_bad_nodes_get_their_turn_together_and_within_their_share_of_the_time() -> None:
    cluster = warmed(SelectionStrategy.UTILITY, slow_time_share=0.2)
    turns, spent, whole = [], 0.0, 0.0
    for round_num in range(200):
        chosen = cluster.selector.select_nodes(ALL)
        slow = [node for node in chosen if node in BAD]
        seconds = 0.8 if slow else 0.06
        whole += seconds
        if slow:
            turns.append((round_num, slow))
            spent += seconds
            assert cluster.reason("bad_0") is SelectionReason.FAIRNESS_TURN
        cluster.round(chosen)
    assert turns
    assert all(slow == BAD for _, slow in turns)
    assert spent / whole < 0.25


def test_a_newcomer_is_tried() -> None:
    cluster = warmed(SelectionStrategy.UTILITY)
    cluster.selector.select_nodes(ALL)
    cluster.round(GOOD)
    cluster.monitor.register_node("new")
    cluster.selector.register_node("new")
    assert "new" in cluster.selector.select_nodes([*ALL, "new"])


def test_bad_input() -> None:
    cluster = warmed(SelectionStrategy.UTILITY)
    assert cluster.selector.select_nodes([]) == []
    assert cluster.selector.select_nodes(["good_0", "good_0"]) == ["good_0"]
    with pytest.raises(UnknownName, match="good_0"):
        cluster.selector.select_nodes(["good_O"])
    with pytest.raises(InvalidInput):
        cluster.selector.record_contribution("good_0", math.nan, 0.0, True)
    with pytest.raises(InvalidInput):
        DynamicNodeSelector(cluster.monitor, max_selected_nodes=0)


def test_the_summary_counts() -> None:
    cluster = warmed(SelectionStrategy.UTILITY)
    cluster.selector.select_nodes(ALL)
    summary = cluster.selector.get_selection_summary()
    assert summary["rounds"] == 7
    assert summary["selection_counts"]["bad_0"] == 6
    assert summary["selection_counts"]["good_0"] == 7
    assert summary["last_reasons"]["bad_0"] == "costs_more_than_it_adds"
    assert 0 <= cluster.selector.get_node_score("bad_0") < cluster.selector.get_node_score("good_0") <= 100


@examples(40)
@given(
    st.sampled_from(list(SelectionStrategy)),
    st.one_of(st.none(), st.integers(1, 20)),
    st.lists(st.tuples(st.sampled_from(ALL), st.booleans(), st.floats(0, 5)), max_size=60),
)
def test_somebody_is_always_selected_and_never_too_many(
    strategy: SelectionStrategy, most: int | None, events: list[tuple[str, bool, float]]
) -> None:
    cluster = Cluster(strategy, most)
    for node, success, seconds in events:
        cluster.monitor.record_communication(node, 1e3 * seconds, success)
        cluster.monitor.record_round_communication(node, seconds)
        cluster.selector.record_contribution(node, seconds, seconds, success)
        chosen = cluster.selector.select_nodes(ALL)
        assert 1 <= len(chosen) <= (most or len(ALL))
        assert set(cluster.selector.last_selection.reasons) == set(ALL)  # type: ignore[union-attr]


# ---------------------------------------------------------------- probes


class Probed(Cluster):
    """A cluster whose links were good until `bad_0` became slow, asked with and without probes."""

    def __init__(self, strategy: SelectionStrategy, most: int | None = None) -> None:
        super().__init__(strategy, most)
        for _ in range(6):
            self.choose()
            self.round(ALL, bad_seconds=0.05)
        for _ in range(4):
            self.choose(probes=False)
            self.monitor.record_round_communication("bad_0", 5.0)

    def round(self, nodes: list[str] = ALL, *, failing: tuple[str, ...] = (), bad_seconds: float = 0.8) -> None:
        for node in nodes:
            self.monitor.record_communication(node, 20.0, True)
            self.monitor.record_round_communication(node, bad_seconds)
            self.selector.record_contribution(node, 0.02, bad_seconds, node not in failing)
        self.clock.advance(0.1)

    def choose(self, *, probes: bool = True) -> list[str]:
        return self.selector.select_nodes(ALL, context=SelectionContext(probes=probes))

    @property
    def probes(self) -> list[str]:
        last = self.selector.last_selection
        assert last is not None
        return list(last.probes)


def test_a_node_that_has_become_slow_keeps_the_reason_why_and_is_probed() -> None:
    cluster = Probed(SelectionStrategy.UTILITY)
    assert cluster.choose() == [node for node in ALL if node != "bad_0"]
    assert (cluster.reason("bad_0"), cluster.probes) == (SelectionReason.COSTS_MORE_THAN_IT_ADDS, ["bad_0"])
    cluster.choose()
    assert cluster.probes == []
    cluster.choose()
    assert cluster.probes == ["bad_0"]


def test_a_caller_that_waits_for_everybody_gets_no_probes() -> None:
    cluster = Probed(SelectionStrategy.UTILITY)
    for _ in range(3):
        assert "bad_0" not in cluster.choose(probes=False)
        assert cluster.probes == []


def test_a_probe_in_time_brings_the_node_back_at_once() -> None:
    cluster = Probed(SelectionStrategy.UTILITY)
    cluster.choose()
    cluster.monitor.record_round_communication("bad_0", 0.05)
    cluster.selector.record_contribution("bad_0", 0.02, 0.05, True)
    assert cluster.choose() == ALL
    assert (cluster.reason("bad_0"), cluster.probes) == (SelectionReason.WORTH_ITS_TIME, [])


@pytest.mark.parametrize(("seconds", "is_back"), [(0.05, True), (5.0, False)])
def test_a_late_probe_brings_the_node_back_if_its_communication_was_usual(seconds: float, is_back: bool) -> None:
    cluster = Probed(SelectionStrategy.UTILITY)
    cluster.choose()
    cluster.monitor.record_round_communication("bad_0", seconds)
    cluster.selector.record_late_probe("bad_0", seconds)
    assert ("bad_0" in cluster.choose()) == is_back


def test_a_probe_that_failed_is_no_failure_of_the_node_and_no_round_of_it() -> None:
    cluster = Probed(SelectionStrategy.UTILITY)
    before = cluster.selector.get_node_details("bad_0")
    cluster.choose()
    after = cluster.selector.get_node_details("bad_0")
    assert (after["attempts"], after["rounds_selected"]) == (before["attempts"], before["rounds_selected"])
    assert after["rounds_idle"] == before["rounds_idle"] + 1


@pytest.mark.parametrize(("most", "probed"), [(10, ["bad_0"]), (9, [])])
def test_probes_take_no_place_under_a_maximum(most: int, probed: list[str]) -> None:
    cluster = Probed(SelectionStrategy.UTILITY, most)
    assert len(cluster.choose()) == 9
    assert cluster.probes == probed


def test_a_node_that_was_only_late_is_probed_in_quarantine_and_released() -> None:
    cluster = Probed(SelectionStrategy.UTILITY)
    for late in (True, True, True, True, True, True):
        cluster.selector.record_contribution("bad_0", 0.0, 0.0, False, late=late)
    assert cluster.selector.get_node_state("bad_0") is NodeState.QUARANTINED
    cluster.choose()
    assert (cluster.reason("bad_0"), cluster.probes) == (SelectionReason.QUARANTINED, ["bad_0"])
    cluster.selector.drain_state_changes()
    cluster.selector.record_contribution("bad_0", 0.02, 0.05, True)
    assert cluster.selector.get_node_state("bad_0") is NodeState.PROBATION
    assert [change.reason for _, change in cluster.selector.drain_state_changes()] == [QuarantineReason.RECOVERED]


def test_a_node_that_failed_is_not_probed_in_quarantine() -> None:
    cluster = Probed(SelectionStrategy.UTILITY)
    for _ in range(3):
        cluster.selector.record_contribution("bad_0", 0.0, 0.0, False)
    cluster.choose()
    assert (cluster.reason("bad_0"), cluster.probes) == (SelectionReason.QUARANTINED, [])


def test_somebody_else_is_always_awaited() -> None:
    cluster = Probed(SelectionStrategy.UTILITY)
    cluster.choose()
    assert cluster.selector.select_nodes(["bad_0"], context=SelectionContext(probes=True)) == ["bad_0"]
    assert cluster.probes == []


# ---------------------------------------------------------------- probation


class Released(Cluster):
    """A cluster in which `good_3` is on probation after failures; its link is as good as ever."""

    def __init__(self, probation_successes: int = 2) -> None:
        super().__init__(SelectionStrategy.UTILITY, quarantine_rounds=1, probation_successes=probation_successes)
        for _ in range(3):
            self.choose()
            self.round(failing=("good_3",))
        for _ in range(2):
            self.choose()
        assert self.selector.get_node_state("good_3") is NodeState.PROBATION

    def choose(self) -> list[str]:
        return self.selector.select_nodes(ALL, context=SelectionContext(probes=True))

    @property
    def probes(self) -> dict[str, Mapping[str, float]]:
        last = self.selector.last_selection
        assert last is not None
        return dict(last.probes)


def test_no_round_waits_for_a_node_on_probation() -> None:
    cluster = Released()
    for _ in range(20):
        assert "good_3" not in cluster.choose()
        assert cluster.reason("good_3") is SelectionReason.ON_PROBATION
        assert cluster.probes == {"good_3": {}}, "no figures of a link: it may be as good as ever"


def test_a_node_on_probation_that_is_in_time_is_awaited_again() -> None:
    cluster = Released(probation_successes=2)
    for awaited in (False, False, True):
        assert ("good_3" in cluster.choose()) is awaited
        cluster.round()
    assert cluster.selector.get_node_state("good_3") is NodeState.ACTIVE


def test_a_node_on_probation_passes_by_what_it_needs_and_not_by_how_fast_the_others_are() -> None:
    cluster = Released(probation_successes=2)
    for _ in range(2):
        cluster.choose()
        cluster.selector.record_late_probation("good_3", in_time=True)
    assert cluster.selector.get_node_state("good_3") is NodeState.ACTIVE


def test_two_late_updates_in_a_row_send_a_node_on_probation_back() -> None:
    cluster = Released(probation_successes=3)
    for in_time, state in (
        (False, NodeState.PROBATION),
        (True, NodeState.PROBATION),
        (False, NodeState.PROBATION),
        (False, NodeState.QUARANTINED),
    ):
        cluster.choose()
        cluster.selector.record_late_probation("good_3", in_time=in_time)
        assert cluster.selector.get_node_state("good_3") is state
    assert cluster.selector.get_node_details("good_3")["quarantine_rounds_left"] == 2


def test_a_failure_in_a_round_that_does_not_wait_sends_a_node_on_probation_back() -> None:
    cluster = Released()
    cluster.choose()
    cluster.selector.record_failed_probes(["good_3", "good_4"])
    states = [cluster.selector.get_node_state(node) for node in ("good_3", "good_4")]
    assert states == [NodeState.QUARANTINED, NodeState.ACTIVE], "what a probe of an active node failed at shows nothing"


def test_late_work_of_an_active_node_is_no_outcome_of_a_probation() -> None:
    cluster = Released()
    for _ in range(20):
        cluster.selector.record_late_probation("good_4", in_time=False)
    assert cluster.selector.get_node_state("good_4") is NodeState.ACTIVE


def test_a_round_of_nodes_on_probation_alone_waits_for_them() -> None:
    cluster = Released()
    context = SelectionContext(probes=True)
    assert cluster.selector.select_nodes(["good_3"], context=context) == ["good_3"]
    assert cluster.probes == {}


def test_a_user_can_have_a_node_on_probation_waited_for() -> None:
    cluster = Released()
    cluster.selector.force_include("good_3")
    assert "good_3" in cluster.choose()
    assert cluster.probes == {}
