from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hypergpu.common.metric import ACCURACY
from hypergpu.report.charts_section import learning
from hypergpu.report.headline import compare, figures
from hypergpu.report.model import Event, Round, Run
from hypergpu.report.run import read_run


def _run(*accuracies: float | None, target: float | None = None) -> Run:
    """Rounds of 10 s each, after 10 s in which the nodes came."""
    rounds = tuple(Round(n, 10.0 + 10.0 * n, 10.0, metric=value) for n, value in enumerate(accuracies, start=1))
    return Run("r", {}, rounds, config={"training": {"target_accuracy": target}})


def test_figures_of_a_run(run_dir: Path) -> None:
    shown = figures(read_run(run_dir))
    assert shown["rounds"] == 25
    assert shown["accuracy"] == pytest.approx(0.9667, abs=1e-3)
    assert shown["contributing_share"] == pytest.approx(103 / 106)
    assert shown["bytes_sent"] is None


def test_time_is_compared_at_the_best_accuracy_that_both_reached() -> None:
    result = compare(_run(0.5, 0.8, 0.9), _run(0.3, 0.5, 0.7, 0.8))
    assert (result.target, result.run_seconds, result.baseline_seconds, result.speedup) == (0.8, 20.0, 40.0, 2.0)
    assert "2.00 times sooner" in result.sentence


@pytest.mark.parametrize(
    ("mine", "theirs", "says"),
    [
        (_run(0.5, 0.9, target=0.9), _run(0.5, 0.8), "the baseline never did"),
        (_run(0.5, target=0.9), _run(0.5, 0.95), "this run never did"),
        (_run(0.5, target=0.9), _run(0.5), "Neither run reached the target of 90.0 % (best: 50.0 % and 50.0 %)"),
        (_run(None), _run(0.5), "was not measured in both"),
        (_run(0.9), _run(0.9), "Both runs reached accuracy 90.0 % after about 10.0 s"),
        (_run(0.1, 0.9), _run(0.9), "2.00 times later"),
    ],
)
def test_the_verdict_is_honest(mine: Run, theirs: Run, says: str) -> None:
    assert says in compare(mine, theirs).sentence


def test_a_target_counts_when_it_was_first_reached() -> None:
    assert _run(0.2, 0.9, 0.7, 0.9).course.time_to(ACCURACY, 0.85) == 20.0


@pytest.mark.parametrize(
    ("reverts", "final"),
    [
        ([], (0.4, 0.7)),
        ([(20.0, 0.2, 0.9)], (0.4, 0.7)),
        ([(20.0, 0.2, 0.9), (30.0, 0.3, 0.8)], (0.3, 0.8)),
        ([(31.0, None, None)], (None, None)),
    ],
)
def test_the_final_figures_are_those_of_the_model_that_is_kept(
    reverts: list[tuple[float, float | None, float | None]], final: tuple[float | None, float | None]
) -> None:
    rounds = (
        Round(1, 20.0, 10.0, loss=0.2, metric=0.9),
        Round(2, 30.0, 10.0, loss=0.4, metric=0.7),
        Round(3, 40.0, 10.0, train_loss=0.1),
    )
    events = tuple(
        Event(at, 1, "model_reverted", "", figures={"loss": loss, "accuracy": metric} if loss and metric else {})
        for at, loss, metric in reverts
    )
    run = Run("r", {}, rounds, events)
    assert run.final == final
    assert (figures(run)["loss"], figures(run)["accuracy"]) == final


def test_the_caption_of_a_curve_tells_of_a_model_that_was_given_up_at_the_end() -> None:
    event = Event(20.0, 1, "model_reverted", "", figures={"loss": 0.25, "accuracy": 0.9})
    run = Run("r", {}, (Round(1, 20.0, 10.0, loss=0.5, metric=0.5),), (event,))
    assert "50.0 % (round 1). The run then returned to an earlier model: 90.0 %." in str(learning(run))
    assert "returned" not in str(learning(replace(run, events=())))


def test_an_empty_run_has_no_figures(make_run: Callable[..., Path]) -> None:
    shown = figures(read_run(make_run([], [])))
    assert {value for key, value in shown.items() if key != "rounds"} == {None}
