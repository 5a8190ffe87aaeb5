"""Search for the best setting of a scenario, and its gain."""

import pytest

from hypergpu.common.errors import InvalidInput
from hypergpu.simulation.oracle import CODECS, grid
from hypergpu.simulation.racing import SEED_OFFSET
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.tuning import Budget, changed_settings, tune_scenario

SCENARIO = Scenario.model_validate(
    {
        "name": "small",
        "learning": "model",
        "task": "digits",
        "rounds": 40,
        "target_accuracy": 0.95,
        "convergence": {"model_bytes": 100_000, "drift_steps": 60},
        "nodes": [{"id": "near", "count": 2, "profile": "good"}, {"id": "far", "profile": "dsl"}],
        "config": {"training": {"batch_size": 32}},
    }
)


def test_the_best_setting_suits_the_slow_link() -> None:
    found = tune_scenario(SCENARIO, seeds=2, budget=Budget(settings=24))
    best = found.tuned.setting
    assert best.codec in ("int8", "int4")  # one node uploads 100 kB at 3 Mbit/s
    assert (best.local_steps or 0) >= 20
    assert found.best.result.variant.static == best
    assert [each.result.variant.static for each in found.comparison.candidates] == list(found.tuned.finalists[:3])
    config = found.config()
    assert config["compression"]["strategy"] == "fixed"
    assert config["training"]["local_steps"] == best.local_steps
    assert config["orchestrator"] == {"policy": "none"}
    assert Scenario.model_validate({"nodes": [{"id": "n"}], "config": config}).config.compression.strategy == "fixed"


def test_the_search_ends_with_its_budget_and_is_the_same_again() -> None:
    few, again = (tune_scenario(SCENARIO, seeds=1, budget=Budget(settings=9)) for _ in range(2))
    assert 9 <= len(few.tuned.tried) < 9 + 8  # the batch in which it ran out is run to its end
    assert few.tuned.setting == again.tuned.setting
    assert few.best.to_dict() == again.best.to_dict()
    assert set(few.losers) == set(few.tuned.tried) - {few.tuned.setting}
    times = [run.time_to_target_seconds for run in few.losers.values() if run.time_to_target_seconds is not None]
    assert times == sorted(times)


def test_minutes_of_all_processes_are_a_budget_too() -> None:
    assert not Budget().watch(1)(10**6)
    assert not Budget(cpu_minutes=1.0).watch(1)(10**6)
    assert Budget(cpu_minutes=1e-9).watch(2)(0)
    assert Budget(settings=5).watch(1)(5)
    assert not Budget(settings=5).watch(1)(4)


def test_the_reported_seeds_are_not_those_of_the_search() -> None:
    found = tune_scenario(SCENARIO, seeds=2, budget=Budget(settings=1))
    assert not set(found.comparison.seeds) & set(found.tuned.seeds)
    assert min(found.tuned.seeds) >= SEED_OFFSET


def test_the_grid_has_codecs_only_where_they_are_asked_for() -> None:
    assert {setting.codec for setting in grid(SCENARIO)} == {None}
    assert {setting.codec for setting in grid(SCENARIO, CODECS)} == set(CODECS)


def test_a_search_needs_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypergpu.simulation.tuning.target_of", lambda _: None)
    with pytest.raises(InvalidInput, match="set target_accuracy"):
        tune_scenario(SCENARIO)


def test_only_what_differs_from_the_defaults_is_shown() -> None:
    plain = Scenario.model_validate({"nodes": [{"id": "n", "count": 5}], "policy": "none"})
    assert changed_settings(plain.config) == {"orchestrator": {"policy": "none"}}
