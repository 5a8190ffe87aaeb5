"""The search for the best fixed setting, over outcomes that are made up and by the model of convergence."""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from hypergpu.cli.app import app
from hypergpu.common.errors import InvalidInput
from hypergpu.simulation.oracle import grid, rank, tune
from hypergpu.simulation.run import Outcome, simulate
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.variants import Static, Variant

OUTCOME = Outcome(
    "s", "none", 0, "completed", "rounds_done", 5, 130.0, 0.9, 0.1, 0.9, 0.8, 50.0, 10, 10, [], trained_seconds=100.0
)
SCENARIO = Scenario.model_validate({"nodes": [{"id": "n", "count": 2}], "target_accuracy": 0.9, "seed": 5})


def test_the_grid_has_every_combination_that_makes_sense() -> None:
    tried = grid(SCENARIO)
    assert len(tried) == len(set(tried)) == 6 * 2 * 3 * 3 * 5 - 3 * 2 * 3 * 3
    assert Static(1, 256, 0.5, 100.0, "fedavgm") in tried
    assert Static(200, 64, 2.0, 60.0, "diloco") in tried
    assert not any(each.local_steps == 1 and each.optimizer in ("diloco", "muon", "muloco") for each in tried)
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
    """Runs that reach the target the sooner the nearer their setting is to the best, and what was asked of them."""

    def __init__(self, best: Static, seconds: float = 10.0) -> None:
        self.asked: list[list[Scenario]] = []
        self._best, self._seconds = Variant("none", static=best).of(SCENARIO, 0).config.training, seconds

    def __call__(self, scenarios: Sequence[Scenario]) -> list[Outcome]:
        self.asked.append(list(scenarios))
        return [self.outcome(each) for each in scenarios]

    def seconds(self, scenario: Scenario) -> float:
        training, best = scenario.config.training, self._best
        distance = abs(math.log(training.local_steps / best.local_steps))
        distance += abs(math.log(training.batch_size / best.batch_size))
        distance += abs(math.log(training.learning_rate / best.learning_rate))
        distance += abs(training.close_share - best.close_share)
        distance += training.local_optimizer != best.local_optimizer
        distance += training.server_momentum != best.server_momentum
        return self._seconds * math.exp(distance)

    def outcome(self, scenario: Scenario) -> Outcome:
        seconds, limit = self.seconds(scenario), scenario.time_limit_seconds
        if limit is not None and seconds > limit:
            return replace(OUTCOME, time_to_target_seconds=None, final_metric=1 / seconds)
        return replace(OUTCOME, time_to_target_seconds=seconds)


settings_of_the_grid = st.sampled_from(grid(SCENARIO))


@given(settings_of_the_grid)
@settings(max_examples=30)
def test_the_best_is_found_by_a_third_of_the_runs(best: Static) -> None:
    tuning = Tuning(best)
    found = tune(SCENARIO, tuning)
    assert found.setting == best
    runs = [run for batch in tuning.asked for run in batch]
    assert found.runs == len(runs) <= 486 / 3
    assert found.settings == 486


def test_a_run_is_cut_off_when_it_can_no_longer_be_near_the_best() -> None:
    tuning = Tuning(Static(10, 256, 0.5, 60.0, "fedavgm"))
    tune(SCENARIO, tuning)
    best: dict[int, float] = {}
    for batch in tuning.asked:
        slack = 1.25 if batch[0].seed == 10_005 else 2.0
        so_far = best.get(batch[0].seed)
        assert {run.time_limit_seconds for run in batch} == {so_far and slack * so_far}
        best[batch[0].seed] = min(tuning.seconds(run) for run in batch if so_far is None or run.time_limit_seconds)
        best[batch[0].seed] = min(best[batch[0].seed], so_far or math.inf)
    assert best == pytest.approx(dict.fromkeys((10_005, 10_006, 10_007), 10.0))


def test_the_finalists_run_on_every_tuning_seed_and_every_run_ends_at_the_target() -> None:
    tuning = Tuning(Static(40, 64, 1.0, 80.0, "diloco"))
    found = tune(SCENARIO, tuning)
    assert list(found.seeds) == [10_005, 10_006, 10_007]
    runs = [run for batch in tuning.asked for run in batch]
    seeds = Counter(run.seed for run in runs)
    assert (seeds[10_006], seeds[10_007]) == (6, 6)
    assert {run.config.training.target_accuracy for run in runs} == {0.9}
    assert {run.config.orchestrator.policy for run in runs} == {"none"}


def test_a_setting_that_is_the_best_on_one_seed_only_is_not_the_best() -> None:
    lucky, steady = Static(20, 64, 1.0, 80.0, "sgd"), Static(40, 64, 1.0, 80.0, "sgd")

    class Luck(Tuning):
        def seconds(self, scenario: Scenario) -> float:
            training = scenario.config.training
            is_lucky = scenario.seed != 10_005 and training.local_steps == 20
            return super().seconds(scenario) * (4.0 if is_lucky else 1.0)

    assert tune(SCENARIO, Luck(lucky), [lucky, steady]).setting == steady
    assert tune(SCENARIO, Tuning(lucky), [lucky, steady]).setting == lucky


def test_a_slow_start_takes_no_whole_run_and_what_was_cut_off_too_soon_runs_again() -> None:
    class Slow(Tuning):
        """Every setting needs far longer than ten rounds take, which is 100 s."""

        def outcome(self, scenario: Scenario) -> Outcome:
            seconds, limit = self.seconds(scenario), scenario.time_limit_seconds
            end = 100.0 if limit is None else limit
            if seconds > end:
                return replace(OUTCOME, time_to_target_seconds=None, final_metric=1 / seconds, trained_seconds=end)
            return replace(OUTCOME, time_to_target_seconds=seconds, trained_seconds=seconds)

    best = Static(200, 64, 2.0, 80.0, "muon")
    tuning = Slow(best, seconds=500.0)
    found = tune(SCENARIO, tuning)
    assert found.setting == best
    alone, *batches = tuning.asked
    assert [(run.rounds, run.time_limit_seconds) for run in alone] == [(10, None)]
    limits = [batch[0].time_limit_seconds for batch in batches if batch[0].seed == 10_005]
    assert limits[:2] == pytest.approx([150.0, 225.0]), "until one is there"
    assert max(filter(None, limits)) < 1000.0
    runs = [run for batch in tuning.asked for run in batch]
    assert found.runs == len(runs) > len({(run.seed, run.config.training.model_dump_json()) for run in runs})


def test_where_no_setting_reaches_the_target_the_best_metric_counts() -> None:
    class Never(Tuning):
        def outcome(self, scenario: Scenario) -> Outcome:
            return replace(OUTCOME, time_to_target_seconds=None, final_metric=1 / self.seconds(scenario))

    best = Static(100, 64, 2.0, 100.0, "fedavgm")
    assert tune(SCENARIO, Never(best)).setting == best


def test_a_search_needs_a_target() -> None:
    with pytest.raises(InvalidInput, match="set target_accuracy"):
        tune(SCENARIO.changed(target_accuracy=None), Tuning(Static(1)))


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
    tried = [Static(steps, close_percent=close) for steps in (1, 5, 20, 60) for close in (80.0, 100.0)]
    monkeypatch.setattr("hypergpu.simulation.compare.grid", lambda _: tried)
    file = tmp_path / "small.yaml"
    file.write_text(
        "learning: model\nrounds: 12\ntarget_accuracy: 0.9\nconfig: {training: {learning_rate: 0.02}}\n"
        "nodes: [{id: n, count: 3, gpu: T4, profile: good}]\n"
    )
    command = ["compare", str(file), "--seeds", "2", "--jobs", "1", "--baselines", "none", "--oracle"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert re.search(r"best of 8 fixed settings, by \d+ runs on other seeds: static:H=", done.output), done.output
    assert "times the time of the best fixed setting" in done.output
    record = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    oracle = record["oracle"]
    assert (oracle["settings"], oracle["tuning_seeds"]) == (8, [10_000, 10_001, 10_002])
    assert 8 <= oracle["runs"] <= 8 + 2 * 6
    assert record["baselines"][-1]["setting"] == oracle["setting"]
    (candidate,) = record["candidates"]
    speedup = candidate["against"][oracle["setting"]]["speedup"]
    assert oracle["gap"]["reactive"]["mean"] == pytest.approx(1 / speedup["mean"])
    assert oracle["gap"]["reactive"]["ci_low"] == pytest.approx(1 / speedup["ci_high"])
