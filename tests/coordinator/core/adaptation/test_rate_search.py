"""The search for the learning rate, on losses that are known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.coordinator.core.adaptation.rate_search import RateChange, RateReason, RateSearch
from hypergpu.coordinator.core.rounds.events import Contribution
from tests.examples import examples

NODES = [f"n{i}" for i in range(8)]


def after_a_step(rate: float, limit: float) -> float:
    """Return the loss after one step on a parabola of loss 1, which diverges above `limit`."""
    return (1.0 - 2.0 * rate / limit) ** 2


def play(search: RateSearch, limit: float, nodes: list[str] = NODES) -> RateChange | None:
    """Run a round in which each node works at the rate that it was given."""
    factor, trials = search.plan(nodes)
    done = []
    for node in nodes:
        after = after_a_step(trials.get(node, factor), limit)
        tried = Contribution(node, True, 64, 64, loss_before=1.0, loss_after=after, trial_failed=after >= 1.0)
        done.append(tried)
    return search.observe(done)


def test_a_quarter_of_the_nodes_try_a_higher_rate_and_all_take_it_once_it_has_won() -> None:
    search = RateSearch(4.0, 64.0)
    factor, trials = search.plan(NODES)
    assert factor == 1.0
    assert trials == {"n0": 4.0, "n1": 4.0, "n2": 1 / 16}, "and a far lower one, in case that it is better"
    change = play(search, limit=1000.0)
    assert change is not None
    assert (change.reason, change.before, change.after) == (RateReason.TRIAL_WON, 1.0, 4.0)
    assert float(change.figures["decrease"]) > float(change.figures["usual_decrease"])
    factor, trials = search.plan(NODES)
    assert factor == 4.0
    assert set(trials.values()) == {16.0}
    assert not set(trials) & {"n0", "n1"}, "others take their turn"


@pytest.mark.parametrize("nodes", [NODES, NODES[:3], NODES[:2], NODES[:1]])
@pytest.mark.parametrize("limit", [0.9, 3.0, 10.0, 40.0, 1e9])
def test_the_rate_ends_near_the_best_and_below_half_of_what_diverges(limit: float, nodes: list[str]) -> None:
    search = RateSearch(4.0, 64.0)
    for _ in range(30):
        play(search, limit, nodes)
    assert search.factor <= min(64.0, max(0.5 * limit * 1.5, 1.0))
    assert search.factor >= min(64.0, 0.24 * limit), "within a factor of two of the best"


def test_a_rate_that_is_far_too_high_is_left_in_its_first_round_and_its_updates_are_given_up() -> None:
    search = RateSearch(4.0, 64.0)
    change = play(search, limit=0.5)
    assert change is not None
    assert (change.reason, change.before, change.after) == (RateReason.TOO_HIGH, 1.0, 1 / 16)
    assert change.ruinous
    for _ in range(20):
        play(search, limit=0.5)
    assert 0.1 < search.factor <= 0.25, "it is raised again, and stays below half of what diverged"


def test_with_few_nodes_the_low_rate_is_tried_before_the_high_one() -> None:
    search = RateSearch(4.0, 64.0)
    assert play(search, limit=1000.0, nodes=NODES[:4]) is None, "the low rate has lost, and no other was tried"
    assert search.plan(NODES[:4])[1] == {"n1": 4.0}


def test_nodes_that_were_late_are_no_sign_that_the_rate_is_too_high() -> None:
    search = RateSearch(4.0, 64.0)
    _, trials = search.plan(NODES)
    (low,) = (node for node, rate in trials.items() if rate < 1.0)
    tried = Contribution(low, True, 0, 64, loss_before=1.0, loss_after=0.9)
    others = [Contribution(node, False, late=True) for node in NODES if node not in trials]
    assert search.observe([tried, *others]) is None
    assert 1 / 16 in search.plan(NODES)[1].values(), "it is tried again"
    failed = [Contribution(node, False) for node in NODES if node not in trials]
    (low,) = (node for node, rate in search.plan(NODES)[1].items() if rate < 1.0)
    change = search.observe([Contribution(low, True, 0, 64, loss_before=1.0, loss_after=0.9), *failed])
    assert change is not None
    assert change.reason is RateReason.TOO_HIGH, "where none could finish, it is"


@pytest.mark.parametrize(("gain", "won"), [(0.27, False), (0.30, True)])
def test_a_rate_four_times_as_high_must_gain_over_four_tenths(gain: float, won: bool) -> None:
    search = RateSearch(4.0, 64.0)
    factor, trials = search.plan(NODES)
    gains = {factor: 0.20, factor / 16: 0.02, factor * 4: gain}
    done = [
        Contribution(n, True, 64, 64, loss_before=1.0, loss_after=1.0 - gains[trials.get(n, factor)]) for n in NODES
    ]
    change = search.observe(done)
    assert (change is not None) is won


def test_a_low_rate_that_is_a_little_better_ruins_nothing() -> None:
    search = RateSearch(4.0, 64.0)
    factor, trials = search.plan(NODES)
    gains = {factor: 0.30, factor / 16: 0.40, factor * 4: 0.1}
    done = [
        Contribution(n, True, 64, 64, loss_before=1.0, loss_after=1.0 - gains[trials.get(n, factor)]) for n in NODES
    ]
    change = search.observe(done)
    assert change is not None
    assert (change.reason, change.ruinous) == (RateReason.TOO_HIGH, False)


@pytest.mark.parametrize(("gain", "is_lowered"), [(0.40, False), (0.65, True)])
def test_where_data_differs_only_a_rate_that_harms_the_model_is_lowered(gain: float, is_lowered: bool) -> None:
    search = RateSearch(4.0, 64.0, alike=False)
    factor, trials = search.plan(NODES)
    gains = {factor: 0.30, factor / 16: gain, factor * 4: 0.1}
    done = [
        Contribution(n, True, 64, 64, loss_before=1.0, loss_after=1.0 - gains[trials.get(n, factor)]) for n in NODES
    ]
    change = search.observe(done)
    assert (change is not None) is is_lowered, "the loss of a node with few classes falls faster at any rate"
    assert change is None or (change.reason, change.ruinous) == (RateReason.TOO_HIGH, True)


def test_a_rate_that_makes_the_loss_worse_is_not_tried_again() -> None:
    search = RateSearch(4.0, 64.0)
    play(search, limit=3.0)
    tried: list[float] = []
    for _ in range(20):
        tried += search.plan(NODES)[1].values()
        play(search, limit=3.0)
    assert max(tried, default=1.0) <= 2.0


def test_a_rate_just_below_one_that_diverges_is_lowered() -> None:
    search = RateSearch(1.5, 64.0)
    change = play(search, limit=1.2)
    assert change is not None
    assert (change.reason, change.after) == (RateReason.NEAR_DIVERGENCE, 0.75)


def test_nothing_is_concluded_from_silence_or_from_losses_that_nobody_measured() -> None:
    search = RateSearch(4.0, 64.0)
    _, trials = search.plan(NODES)
    usual = [Contribution(n, True, 64, 64, loss_before=1.0, loss_after=0.9) for n in NODES if n not in trials]
    late = [Contribution(n, False, late=True) for n in trials]
    assert search.observe(usual + late) is None
    search.plan(NODES)
    assert search.observe([Contribution(n, True, 64, 64) for n in NODES]) is None
    assert search.factor == 1.0
    assert search.candidate == 4.0, "it is tried again"


def test_divergence_halves_the_rate_and_what_led_there_is_not_tried_again() -> None:
    search = RateSearch(4.0, 64.0)
    play(search, limit=1000.0)
    change = search.retreat()
    assert change is not None
    assert (change.reason, change.before, change.after) == (RateReason.DIVERGED, 4.0, 2.0)
    for _ in range(20):
        play(search, limit=1000.0)
    assert search.factor <= 2.0
    for _ in range(30):
        search.retreat()
    assert search.factor >= 2.0**-12
    assert search.retreat() is None


@pytest.mark.parametrize(("least", "expected"), [(1.0, [2.0, 1.0]), (0.7, [2.0, 1.0, 0.7])])
def test_a_stalled_loss_lowers_the_rate_and_ends_the_search(least: float, expected: list[float]) -> None:
    search = RateSearch(4.0, 64.0)
    play(search, limit=1000.0)
    after = []
    while (change := search.settle(least)) is not None:
        assert change.reason is RateReason.LOSS_STALLED
        after.append(change.after)
    assert after == expected
    assert search.candidate is None


@examples(60)
@given(st.floats(0.01, 100.0), st.floats(1.0, 16.0), st.integers(1, 12))
def test_the_rate_never_stays_where_the_loss_rises(limit: float, step: float, nodes: int) -> None:
    search = RateSearch(step, 64.0)
    for _ in range(40):
        factor, _ = search.plan([f"n{i}" for i in range(nodes)])
        if after_a_step(factor, limit) >= 1.0:
            search.retreat()
        else:
            play(search, limit, [f"n{i}" for i in range(nodes)])
    assert after_a_step(search.factor, limit) < 1.0
    assert math.isfinite(search.factor)


def test_a_low_rate_is_tried_once_where_no_higher_one_may_be() -> None:
    search = RateSearch(4.0, bound=3.0, factor=3.0)
    assert search.plan(NODES[:2]) == (3.0, {}), "two nodes can't compare"
    factor, trials = search.plan(NODES)
    assert (factor, list(trials.values())) == (3.0, [3 / 16])
    play = [
        Contribution(node, True, 0 if node in trials else 64, 64, loss_before=1.0, loss_after=0.5) for node in NODES
    ]
    assert search.observe(play) is None
    assert search.plan(NODES) == (3.0, {})


def test_a_bound_of_one_keeps_the_configured_rate() -> None:
    assert RateSearch(4.0, bound=1.0).plan(NODES) == (1.0, {})


def test_a_search_that_has_settled_tries_nothing() -> None:
    search = RateSearch(4.0, 64.0)
    search.settle(1.0)
    assert search.plan(NODES) == (1.0, {})
