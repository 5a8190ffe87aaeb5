"""The search for the best fixed setting, over outcomes that are made up and by the model of convergence."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hypergpu.cli.app import app
from hypergpu.common.errors import InvalidInput
from hypergpu.simulation.oracle import grid, rank, runs_of, tune
from hypergpu.simulation.run import Outcome, simulate
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.variants import Static

OUTCOME = Outcome(
    "s", "none", 0, "completed", "rounds_done", 5, 130.0, 0.9, 0.1, 0.9, 0.8, 50.0, 10, 10, [], trained_seconds=100.0
)
SCENARIO = Scenario.model_validate({"nodes": [{"id": "n", "count": 2}], "target_accuracy": 0.9, "seed": 5})


def test_the_grid_has_every_combination_that_makes_sense() -> None:
    settings = grid(SCENARIO)
    assert len(settings) == len(set(settings)) == 6 * 2 * 3 * 3 * 3 - 2 * 3 * 3
    assert Static(1, 256, 0.5, 100.0, "fedavgm") in settings
    assert Static(200, 64, 2.0, 60.0, "diloco") in settings
    assert not any(each.local_steps == 1 and each.optimizer == "diloco" for each in settings)
    modelled = SCENARIO.changed(learning="model")
    assert {each.optimizer for each in grid(modelled)} == {"sgd"}


def test_settings_are_ranked_by_reach_then_time_then_metric() -> None:
    quick, slow = replace(OUTCOME, time_to_target_seconds=1.0), replace(OUTCOME, time_to_target_seconds=16.0)
    even = replace(OUTCOME, time_to_target_seconds=5.0)
    near = replace(OUTCOME, time_to_target_seconds=None, final_metric=0.89)
    far = replace(near, final_metric=0.5)
    blank = replace(near, final_metric=None)
    order = [[quick, slow], [even, even], [near, quick], [far, quick], [near, near], [blank, near]]
    keys = [rank(outcomes) for outcomes in order]  # 1 and 16 take 4 in the geometric mean
    assert all(before < after for before, after in pairwise(keys))


class Tuning:
    """Runs that reach the target after a time of their own, and what was asked of them."""

    def __init__(self, best: int) -> None:
        self.asked: list[list[Scenario]] = []
        self._best = best

    def __call__(self, scenarios: Sequence[Scenario]) -> list[Outcome]:
        self.asked.append(list(scenarios))
        return [self.outcome(each) for each in scenarios]

    def outcome(self, scenario: Scenario) -> Outcome:
        seconds = 10.0 + abs(scenario.config.training.local_steps - self._best)
        limit = scenario.time_limit_seconds
        if limit is not None and seconds > limit:
            return replace(OUTCOME, time_to_target_seconds=None, final_metric=1 / seconds)
        return replace(OUTCOME, time_to_target_seconds=seconds)


def test_the_best_is_found_on_other_seeds_in_ever_longer_runs() -> None:
    tuning = Tuning(best=7)
    settings = [Static(local_steps=steps) for steps in range(1, 33)]
    found = tune(SCENARIO, tuning, settings)
    assert found.setting == Static(local_steps=7)
    yardstick, first, second, third = tuning.asked
    assert [run.config.training.local_steps for run in yardstick] == [40]
    assert [len(stage) for stage in (yardstick, first, second, third)] == [1, 32, 8, 6]
    assert found.runs == runs_of(32) == 47
    assert {run.seed for run in (*yardstick, *first)} == {10_005}
    assert {run.seed for run in second} == {10_006}
    assert {run.seed for run in third} == {10_005, 10_006, 10_007} == set(found.seeds)
    limits = [{run.time_limit_seconds for run in stage} for stage in tuning.asked]
    assert limits == [{None}, {21.5}, {43.0}, {64.5}]  # first-80 takes 43 s
    assert {run.config.training.target_accuracy for run in first} == {0.9}, "a run ends when it is there"
    assert {run.config.orchestrator.policy for run in first} == {"none"}


def test_a_search_needs_a_target() -> None:
    with pytest.raises(InvalidInput, match="set target_accuracy"):
        tune(SCENARIO.changed(target_accuracy=None), Tuning(1))


def test_a_run_ends_at_its_time_limit() -> None:
    nodes = [{"id": "n", "count": 2, "gpu": "T4"}]
    long = Scenario.model_validate({"nodes": nodes, "learning": "model", "rounds": 50})
    whole = simulate(long)
    limited = simulate(long.changed(time_limit_seconds=whole.seconds / 2))
    assert limited.seconds == pytest.approx(whole.seconds / 2, abs=0.1)
    assert (limited.state, limited.given_up) == ("stopped", "")
    assert 20 <= limited.rounds <= 30
    assert limited.course == whole.course[: limited.rounds]


def test_the_command_says_what_the_best_fixed_setting_is_and_the_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [Static(steps, close_percent=close) for steps in (1, 5, 20, 60) for close in (80.0, 100.0)]
    monkeypatch.setattr("hypergpu.simulation.compare.grid", lambda _: settings)
    file = tmp_path / "small.yaml"
    file.write_text(
        "learning: model\nrounds: 12\ntarget_accuracy: 0.9\nconfig: {training: {learning_rate: 0.02}}\n"
        "nodes: [{id: n, count: 3, gpu: T4, profile: good}]\n"
    )
    command = ["compare", str(file), "--seeds", "2", "--jobs", "1", "--baselines", "none", "--oracle"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    runs = runs_of(8)
    assert f"best of 8 fixed settings, by {runs} runs on other seeds: static:H=" in done.output
    assert "times the time of the best fixed setting" in done.output
    record = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    oracle = record["oracle"]
    assert (oracle["settings"], oracle["runs"], oracle["tuning_seeds"]) == (8, runs, [10_000, 10_001, 10_002])
    assert record["baselines"][-1]["setting"] == oracle["setting"]
    (candidate,) = record["candidates"]
    speedup = candidate["against"][oracle["setting"]]["speedup"]
    assert oracle["gap"]["reactive"]["mean"] == pytest.approx(1 / speedup["mean"])
    assert oracle["gap"]["reactive"]["ci_low"] == pytest.approx(1 / speedup["ci_high"])
