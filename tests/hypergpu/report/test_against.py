"""Real and simulated runs in one report: their clocks are not mixed, and there is one speed-up."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hypergpu.common.metric import ACCURACY, LOSS, MetricSpec
from hypergpu.report.against import Against
from hypergpu.report.headline import figures, target_sentence
from hypergpu.report.page import page
from hypergpu.report.run import read_run
from hypergpu.report.writing import write_report

Rows = list[dict[str, Any]]
R2 = {"metric": {"name": "r2", "better": "higher", "format": "number", "unit": ""}}


def rounds(*values: float | None, step: float, name: str = "accuracy") -> Rows:
    return [
        {
            "round": number,
            "ended_seconds": step * number,
            "seconds": step,
            "loss": 1.0 / number,
            name: value,
            "contributors": ["a"],
            "missing": [],
        }
        for number, value in enumerate(values, 1)
    ]


def write(directory: Path, rows: Rows, **summary: Any) -> Path:
    directory.mkdir(parents=True)
    (directory / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "events.jsonl").write_text("")
    (directory / "summary.json").write_text(json.dumps({"state": "completed", "policy": "reactive", **summary}))
    return directory


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A real run of 2 s, and its two repetitions in virtual time of 4 and 8 s."""
    run = write(tmp_path / "run", rounds(0.5, 0.9, step=1.0))
    simulated = {"simulated": True, "target_accuracy": 0.9}
    write(run / "simulated" / "reactive", rounds(0.5, 0.9, step=2.0), **simulated)
    write(run / "simulated" / "none", rounds(0.5, 0.9, step=4.0), **simulated | {"policy": "none"})
    return run


def test_the_two_simulated_runs_are_compared_and_labelled(demo: Path) -> None:
    written = write_report(demo)
    assert written.against is not None
    found = written.against.comparison_of(written.run)
    assert (found.run_seconds, found.baseline_seconds, found.speedup) == (4.0, 8.0, 2.0)
    text = re.sub(r"<[^>]*>", " ", written.path.read_text())
    verdict = "In simulation: the run with adaptation (reactive) reached accuracy 90.0 % after 4.0 s"
    assert verdict in text
    assert "2.00 times sooner" in text
    assert "4.00 times" not in text  # 8 s of virtual time against 2 s of real time
    assert "none (simulated)" in text
    for label in ("this run (real)", "simulated, with adaptation", "simulated, without"):
        assert label in text
    assert "better" not in text.partition("Learning")[0]
    record = written.to_dict()
    assert record["comparison"]["speedup"] == 2.0
    assert record["baseline"]["simulated"] is True


def test_a_simulated_baseline_that_is_named_is_told_apart_too(demo: Path, tmp_path: Path) -> None:
    named = write_report(demo, baseline=demo / "simulated" / "none", out=tmp_path / "r.html")
    assert named.against is not None
    assert named.against.comparison_of(named.run).speedup == 2.0
    alone = write(tmp_path / "alone" / "none", rounds(0.5, 0.9, step=4.0), simulated=True, policy="none")
    mixed = write_report(demo, baseline=alone, out=tmp_path / "m.html")
    assert mixed.against is not None
    sentence = mixed.against.comparison_of(mixed.run).sentence
    assert "This run (real time)" in sentence
    assert "the baseline (simulated time)" in sentence
    assert "are not exactly comparable" in (tmp_path / "m.html").read_text()


def test_two_runs_of_one_clock_are_compared_as_they_are(demo: Path) -> None:
    run, other = read_run(demo / "simulated" / "reactive"), read_run(demo / "simulated" / "none")
    against = Against(other)
    assert against.comparison_of(run).sentence.startswith("This run reached accuracy 90.0 % after 4.0 s, the baseline")
    assert against.table() is None
    assert "baseline 16.0 s" in page(run, against) or "baseline 8.0 s" in page(run, against)


def test_values_and_axes_are_written_as_the_metric_says(tmp_path: Path) -> None:
    run = read_run(write(tmp_path / "r", rounds(-0.2, 0.461, step=1.0, name="r2"), **R2, target_accuracy=0.4))
    assert run.metric == MetricSpec(name="r2")
    text = re.sub(r"<[^>]*>", " ", page(run))
    assert "ending at r2 0.461" in text
    assert "46.1 %" not in text
    assert "R2 over time" in text
    assert "From -0.2 (" in text
    assert target_sentence(run) == "Reached the target of 0.4 after 2.0 s."
    assert figures(run)["r2"] == 0.461
    assert figures(run)["best_r2"] == 0.461


def test_the_best_of_a_metric_of_which_less_is_better_is_the_least(tmp_path: Path) -> None:
    spec = {"name": "mse", "better": "lower", "format": "number", "unit": "m²"}
    run = read_run(write(tmp_path / "r", rounds(0.3, 0.1, 0.2, step=1.0, name="mse"), metric=spec))
    assert (figures(run)["mse"], figures(run)["best_mse"]) == (0.2, 0.1)
    assert "0.2 m²" in page(run)


def test_a_run_that_is_judged_by_its_loss_has_no_second_chart_of_it(tmp_path: Path) -> None:
    spec = LOSS.model_dump()
    run = read_run(write(tmp_path / "r", rounds(None, None, step=1.0), metric=spec))
    assert run.metric == LOSS
    assert page(run).count("Loss over time") == 1
    assert figures(run)["best_loss"] == 0.5


@pytest.mark.parametrize("spec", [[], "r2", {"name": ""}, {"name": "x", "better": "up"}, {"name": "a<b"}, None])
def test_a_metric_that_is_damaged_is_noted(tmp_path: Path, spec: object) -> None:
    run = read_run(write(tmp_path / "r", rounds(0.5, step=1.0), metric=spec))
    assert run.metric == ACCURACY
    assert "The metric in summary.json is not valid" in " ".join(run.notes)
    assert run.rounds[0].metric == 0.5


def test_an_undefined_metric_leaves_a_page_with_its_loss(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    del make_run
    run = read_run(write(tmp_path / "r", rounds(None, None, step=1.0, name="r2"), **R2, target_accuracy=0.4))
    text = re.sub(r"<[^>]*>", " ", page(run))
    assert "R2 was not measured." in text
    assert "Did not reach the target of 0.4." in text
