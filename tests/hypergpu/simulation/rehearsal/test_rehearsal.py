"""Rehearsals in runs in virtual time, against what the runs then did."""

from pathlib import Path
from typing import Any

import pytest

from hypergpu.common import strict_json
from hypergpu.coordinator.core.adaptation.rehearsal import RehearsalReason
from hypergpu.coordinator.core.rehearsal import NOTHING_HELD, RehearsalRequest, Worth, WorthSource
from hypergpu.simulation.compute import read_rounds
from hypergpu.simulation.convergence import FITTED
from hypergpu.simulation.rehearsal.inline import simulate_with_rehearsals, worth_of
from hypergpu.simulation.run import Outcome, simulate
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.scenario_file import load_scenario

CURVE = FITTED["digit_sums"]


def scenario(**changes: Any) -> Scenario:
    """A long task between continents, on which few local steps are worth most."""
    scales = {"loss_scale": 300 * CURVE.loss_scale, "metric_scale": 300 * CURVE.metric_scale, "drift_steps": 40.0}
    long = load_scenario("transatlantic").changed(learning="model", convergence=scales, rounds=60, target_accuracy=None)
    training = long.config.training.model_copy(update={"target_accuracy": None})
    return long.changed(config=long.config.model_copy(update={"training": training}), policy="rehearsed", **changes)


def rehearsals(run_dir: Path) -> list[dict[str, Any]]:
    rows = strict_json.read_lines(run_dir / "events.jsonl")
    return [row for row in rows if row["kind"] == "decision" and row["text"].startswith("rehearsal ")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    out = tmp_path_factory.mktemp("rehearsed") / "run"
    return simulate_with_rehearsals(scenario(), out), out


def test_a_rehearsal_changes_a_setting_and_its_gains_are_on_record(run: tuple[Outcome, Path]) -> None:
    found = rehearsals(run[1])
    assert [row["reason"] for row in found] == [RehearsalReason.PREDICTED_FASTER, RehearsalReason.GAIN_REALISED]
    predicted, realised = (row["figures"] for row in found)
    assert predicted["worth_by"] == "learning_curve"
    held = int(predicted["setting"].split("local_steps=")[1].split()[0])
    rows = {row["round"]: row for row in read_rounds(run[1])}
    began = found[0]["round"] + 1
    assert rows[began - 1]["local_steps"] != held
    assert {rows[number]["local_steps"] for number in range(began, began + 10)} == {held}
    assert realised["predicted_gain"] == pytest.approx(predicted["predicted_gain"])
    assert realised["realised_gain"] > 0.1
    assert 1 + realised["realised_gain"] == pytest.approx(1 + realised["predicted_gain"], rel=0.15)


def test_the_result_comes_after_the_time_that_it_takes(run: tuple[Outcome, Path]) -> None:
    found = rehearsals(run[1])[0]
    asked = found["seconds"] - found["figures"]["cpu_seconds"]
    ends = [row["ended_seconds"] for row in read_rounds(run[1])]
    assert found["figures"]["cpu_seconds"] > 1.5
    assert min(abs(end - asked) for end in ends) < 1e-5


def test_runs_are_the_same_each_time(run: tuple[Outcome, Path], tmp_path: Path) -> None:
    again = simulate_with_rehearsals(scenario(), tmp_path / "run")
    assert again.to_dict() == run[0].to_dict()
    assert (tmp_path / "run" / "events.jsonl").read_bytes() == (run[1] / "events.jsonl").read_bytes()


def test_a_run_without_a_performer_of_rehearsals_goes_on_without_them(tmp_path: Path) -> None:
    simulate(scenario(), tmp_path / "run")
    assert rehearsals(tmp_path / "run") == []


def test_another_policy_has_no_rehearsals(tmp_path: Path) -> None:
    reactive = scenario().changed(policy="reactive")
    assert simulate_with_rehearsals(reactive, tmp_path / "run").to_dict() == simulate(reactive).to_dict()
    assert rehearsals(tmp_path / "run") == []


def test_what_was_measured_of_updates_goes_before_the_curve() -> None:
    def asked(source: WorthSource) -> RehearsalRequest:
        return RehearsalRequest(1, 9, 9.0, NOTHING_HELD, (), Worth(50.0, 30.0, source), 8, 10)

    assert worth_of(asked(WorthSource.UPDATE_NORMS), CURVE).noise_scale == 50.0
    assert worth_of(asked(WorthSource.ASSUMED), None).noise_scale == 50.0
    by_curve = worth_of(asked(WorthSource.ASSUMED), CURVE)
    assert (by_curve.noise_scale, by_curve.drift_steps) == (CURVE.noise_scale, float("inf"))
    assert by_curve.source is WorthSource.LEARNING_CURVE
