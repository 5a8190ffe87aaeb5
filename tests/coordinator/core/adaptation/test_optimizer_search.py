"""The choice of the optimizer of local steps, on losses that are known."""

from collections.abc import Callable
from typing import Any

import pytest

from hypergpu.common.config import TrainingConfig
from hypergpu.common.local_optimizer import ADAMW, MUON, LocalOptimizer
from hypergpu.coordinator.core.adaptation.optimizer_search import OptimizerChange, OptimizerReason, OptimizerSearch
from hypergpu.coordinator.core.adaptation.rate_search import RateChange, RateReason
from hypergpu.coordinator.core.rounds.events import Contribution

NODES = [f"n{i}" for i in range(8)]
SGD = LocalOptimizer("sgd", 0.1)


def search(step: float = 4.0, model_bytes: int | None = None, **training: Any) -> OptimizerSearch:
    return OptimizerSearch(TrainingConfig(**training), step, 64.0, model_bytes)


def play(
    found: OptimizerSearch,
    loss_after: Callable[[LocalOptimizer], float],
    nodes: list[str] = NODES,
    *,
    compute_seconds: float = 1.0,
    waiting_seconds: float = 1.0,
    muon_share: float = 0.0,
) -> RateChange | OptimizerChange | None:
    """Run a round in which each node works with the optimizer that it was given."""
    usual, trials = found.plan(nodes)
    done = []
    for node in nodes:
        tried = trials.get(node, usual)
        after = loss_after(tried)
        done.append(
            Contribution(
                node,
                True,
                0 if node in trials else 64,
                64,
                loss_before=1.0,
                loss_after=after,
                trial_failed=after >= 1.0,
                compute_seconds=compute_seconds,
                waiting_seconds=waiting_seconds,
                optimizer_share=muon_share if tried.name == "muon" else 0.0,
            )
        )
    return found.observe(done)


def test_training_begins_with_adamw_and_nodes_try_other_rates_and_other_optimizers() -> None:
    found = search()
    change = found.begin(len(NODES))
    assert change is not None
    assert (change.reason, change.before) == (OptimizerReason.FAIR_START, SGD)
    assert change.after == found.optimizer == LocalOptimizer("adamw", 0.003)
    usual, trials = found.plan(NODES)
    assert usual == found.optimizer
    tried = sorted(trials.values())
    assert tried == [LocalOptimizer("adamw", rate) for rate in (0.003 / 16, 0.012, 0.012)] + [MUON, SGD]
    assert found.begin(len(NODES)) is None, "a run begins once"


@pytest.mark.parametrize(
    "chosen",
    [
        {"local_optimizer": "sgd"},
        {"local_optimizer": "adamw", "learning_rate": 0.002},
        {"local_steps": 1},
        {"server_optimizer": "adam"},
        {"server_momentum": 0.9},
        {"partition": "dirichlet"},
    ],
)
def test_what_the_user_chose_stays_and_so_does_sgd_on_unlike_data(chosen: dict[str, Any]) -> None:
    found = search(**chosen)
    configured = TrainingConfig(**chosen).first_optimizer
    assert found.begin(len(NODES)) is None
    assert found.optimizer == configured
    assert {each.name for each in found.plan(NODES)[1].values()} == {configured.name}


@pytest.mark.parametrize(("partition", "factor"), [("iid", 1 / 16), ("dirichlet", 1.0)])
def test_on_unlike_data_a_lower_rate_must_win_clearly(partition: str, factor: float) -> None:
    found = search(local_optimizer="sgd", partition=partition)
    play(found, lambda tried: 0.60 if tried.learning_rate < found.optimizer.learning_rate else 0.70)
    assert found.rates.factor == factor


def test_too_few_nodes_to_compare_and_a_policy_without_trials_keep_sgd() -> None:
    assert search().begin(3) is None
    assert search(step=1.0).begin(8) is None
    found = search()
    assert found.begin(0) is None
    assert found.begin(4) is not None, "a round of nobody decides nothing"
    assert found.plan(NODES[:4])[1] == {"n0": LocalOptimizer("adamw", 0.003 / 16), "n3": MUON}, "half try nothing"
    play(found, lambda tried: 0.6, NODES[:4])
    assert found.plan(NODES[:4])[1] == {"n3": SGD}, "one after the other"


def test_sgd_is_taken_back_where_it_learns_faster_and_is_then_searched_on() -> None:
    found = search()
    found.begin(8)
    before = found.optimizer
    change = play(found, lambda tried: 0.3 if tried.name == "sgd" else 0.6)
    assert isinstance(change, OptimizerChange)
    assert (change.reason, change.before, change.after) == (OptimizerReason.FASTER, before, SGD)
    assert change.figures == {
        "decrease": pytest.approx(1.204, abs=1e-3),
        "usual_decrease": pytest.approx(0.511, abs=1e-3),
        "time_factor": 1.0,
        "nodes": 1,
    }
    assert not change.ruinous
    usual, trials = found.plan(NODES)
    assert usual == SGD
    assert {(each.name, each.learning_rate) for each in trials.values()} >= {("sgd", 0.4)}


def test_updates_of_adamw_that_harmed_the_model_are_given_up() -> None:
    found = search()
    found.begin(8)
    change = play(found, lambda tried: 0.9 if tried.name == "sgd" else 3.0)
    assert isinstance(change, OptimizerChange)
    assert change.ruinous


def test_sgd_that_is_hardly_faster_is_tried_once_and_left() -> None:
    found = search()
    found.begin(8)
    change = play(found, lambda tried: 0.4 if tried.name == "sgd" else 0.6)
    assert change is None
    assert "sgd" not in {each.name for each in found.plan(NODES)[1].values()}


def test_sgd_that_was_not_measured_is_tried_again() -> None:
    found = search()
    found.begin(8)
    usual, trials = found.plan(NODES)
    silent = [Contribution(node, node not in trials, 64, 64, loss_before=1.0, loss_after=0.5) for node in NODES]
    assert found.observe(silent) is None
    assert SGD not in found.plan(NODES[:3])[1].values(), "not with too few nodes to compare it"
    assert SGD in found.plan(NODES)[1].values()
    assert usual == found.optimizer


def test_a_rate_of_adamw_that_wins_is_taken() -> None:
    found = search()
    found.begin(8)
    change = play(found, lambda tried: 0.2 if tried.learning_rate > 0.01 and tried.name == "adamw" else 0.6)
    assert isinstance(change, RateChange)
    assert change.reason is RateReason.TRIAL_WON
    assert found.optimizer == LocalOptimizer("adamw", 0.012)


def test_the_rate_settles_at_the_configured_one_or_far_below_that_of_adamw() -> None:
    found = search()
    found.begin(8)
    factors = []
    while (change := found.settle()) is not None:
        factors.append(change.after)
    assert factors == [1.5, 0.75, 0.375, 0.1875, 0.125]
    configured = search(local_optimizer="sgd")
    assert configured.settle() is None
    assert configured.optimizer == SGD


def test_another_policy_searches_on_from_the_present_rate() -> None:
    found = search()
    found.begin(8)
    found.set_step(1.0)
    assert found.optimizer == LocalOptimizer("adamw", 0.003)
    assert {each.name for each in found.plan(NODES)[1].values()} == {"muon", "sgd"}


def test_a_small_model_begins_with_muon_and_nodes_try_sgd() -> None:
    found = search(model_bytes=200_000)
    change = found.begin(8)
    assert change is not None
    assert (change.reason, change.before, change.after) == (OptimizerReason.FAIR_START, SGD, MUON)
    tried = sorted(found.plan(NODES)[1].values())
    assert tried == [LocalOptimizer("muon", rate) for rate in (0.02 / 16, 0.08, 0.08)] + [SGD]
    few = search(model_bytes=200_000)
    few.begin(7)
    assert {each.learning_rate for each in few.plan(NODES[:7])[1].values()} == {0.02 / 16, 0.1}, "no higher rate"
    larger = search(model_bytes=200_001).begin(8)
    assert larger is not None
    assert larger.after.name == "adamw"


@pytest.mark.parametrize(
    ("share", "waiting", "wins"),
    [
        (0.0, 0.0, True),
        (0.5, 0.0, False),  # a round takes twice as long, and the loss falls 1.8 times as fast
        (0.5, 1.0, True),  # 1.5 times as long
        (0.9, 1.0, False),
        (0.9, 100.0, True),
        (1.0, 1.0, False),
    ],
)
def test_muon_wins_if_it_learns_more_in_the_time_of_a_round(share: float, waiting: float, wins: bool) -> None:
    found = search()
    found.begin(8)
    change = play(found, lambda tried: 0.4 if tried.name == "muon" else 0.6, muon_share=share, waiting_seconds=waiting)
    assert isinstance(change, OptimizerChange) is wins
    if isinstance(change, OptimizerChange):
        assert (change.reason, change.after) == (OptimizerReason.FASTER, MUON)
        factor = (waiting + 1.0 / (1.0 - share)) / (waiting + 1.0)
        assert change.figures["time_factor"] == pytest.approx(factor)
        assert found.optimizer == MUON
    assert "muon" not in {each.name for each in found.plan(NODES)[1].values()} or wins


@pytest.mark.parametrize(("model_bytes", "first"), [(200_000, MUON), (200_001, ADAMW)])
def test_buffered_rounds_begin_at_the_default_rate_without_trials(model_bytes: int, first: LocalOptimizer) -> None:
    found = search(step=1.0, model_bytes=model_bytes, mode="buffered")
    change = found.begin(8)
    assert change is not None
    assert (change.before, change.after) == (SGD, first)
    assert found.plan(NODES) == (first, {})
    assert search(step=1.0, mode="buffered", partition="dirichlet").begin(8) is None
    assert search(step=1.0, mode="buffered").begin(3) is None


def test_of_two_rivals_that_win_the_faster_one_is_taken() -> None:
    found = search()
    found.begin(8)
    change = play(found, lambda tried: {"sgd": 0.1, "muon": 0.2}.get(tried.name, 0.6))
    assert isinstance(change, OptimizerChange)
    assert change.after == SGD
    assert {each.name for each in found.plan(NODES)[1].values()} == {"sgd"}, "both were tried"


def test_rivals_that_are_left_are_tried_after_a_restart() -> None:
    found = search()
    found.begin(4)
    play(found, lambda tried: 0.6, NODES[:4])
    restored = search()
    restored.restore(found.state())
    assert restored.plan(NODES[:4])[1] == {"n3": SGD}


@pytest.mark.parametrize(("nodes", "highest"), [(4, 0.003), (7, 0.003), (8, 0.012)])
def test_few_nodes_try_no_higher_rate_of_adamw_than_the_first(nodes: int, highest: float) -> None:
    found, names = search(), NODES[:nodes]
    found.begin(nodes)
    tried = [found.optimizer.learning_rate]
    for _ in range(3):
        tried += [each.learning_rate for each in found.plan(names)[1].values() if each.name == "adamw"]
        play(found, lambda optimizer: 0.5 / (1 + optimizer.learning_rate), names)
    assert max(tried) == pytest.approx(highest)
    assert min(tried) == pytest.approx(0.003 / 16), "one node tries a far lower rate, however few there are"


def test_the_bound_of_few_nodes_survives_a_restart_and_another_policy() -> None:
    found = search()
    found.begin(5)
    restored = search()
    restored.restore(found.state())
    restored.set_step(8.0)
    assert restored.rates.candidate is None
    restored = OptimizerSearch(TrainingConfig(), 4.0, bound=2.0)
    restored.restore(found.state())
    assert restored.rates.bound == 2.0, "the user has lowered it"


def test_a_rate_that_far_exceeds_what_few_nodes_can_use_is_found_without_higher_trials() -> None:
    found = search()
    found.begin(5)
    change = play(found, lambda tried: 0.5 if tried.learning_rate < 0.001 else 1.5, NODES[:5])
    assert isinstance(change, RateChange)
    assert (change.reason, change.after, change.ruinous) == (RateReason.TOO_HIGH, 3.0 / 16, True)
