"""Recipes, local optimizers and their state, with real gradients in virtual time."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from hypergpu.common import strict_json
from hypergpu.common.config.recipes import RECIPES
from hypergpu.common.errors import ConfigError
from hypergpu.common.local_optimizer import LocalOptimizer
from hypergpu.netsim_proxy.config.scenario import ScenarioError
from hypergpu.node.optimizers import LocalTraining
from hypergpu.node.trainer import Trainer
from hypergpu.simulation.run import Outcome, simulate
from hypergpu.simulation.scenario import Scenario
from hypergpu.tasks import Task, build, load_task
from hypergpu.tasks.saved import SavedModel


def scenario(policy: str = "none", **training: Any) -> Scenario:
    tree = {
        "name": "recipes",
        "task": training.pop("task", "digits"),
        "rounds": training.pop("rounds", 12),
        "policy": policy,
        "nodes": [{"id": "node", "count": 4, "gpu": "T4", "profile": "good"}],
        "config": {"training": {"local_steps": 10, **training}},
    }
    return Scenario.model_validate(tree)


def run(**options: Any) -> Outcome:
    outcome = simulate(scenario(**options))
    assert outcome.state == "completed", outcome.reason
    return outcome


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_trains(recipe: str) -> None:
    found = run(recipe=recipe)
    assert found.best_metric is not None
    assert found.best_metric > 0.9


@pytest.mark.parametrize(
    "settings",
    [
        {"local_momentum": 0.9, "learning_rate": 0.02},
        {"local_momentum": 0.9, "local_nesterov": True, "learning_rate": 0.02, "local_state": "kept"},
        {"local_optimizer": "muon", "learning_rate": 0.003},
        {"local_optimizer": "muon", "learning_rate": 0.003, "local_state": "kept"},
        {"clip_norm": 1.0, "weight_decay": 0.001, "learning_rate_schedule": "cosine", "warmup_rounds": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("policy", ["none", "reactive"])
def test_each_local_optimizer_trains_with_and_without_adaptation(policy: str, settings: dict[str, Any]) -> None:
    found = run(policy=policy, **settings)
    assert found.best_metric is not None
    assert found.best_metric > 0.9


def test_state_that_is_kept_changes_the_second_round_and_not_the_first() -> None:
    losses = {
        state: [loss for _, loss in run(local_optimizer="adamw", learning_rate=0.002, local_state=state).losses]
        for state in ("reset", "kept")
    }
    assert losses["kept"][0] == losses["reset"][0]
    assert losses["kept"][1] != losses["reset"][1]


def test_the_course_of_the_learning_rate_is_on_record(tmp_path: Path) -> None:
    simulate(scenario(learning_rate_schedule="cosine", warmup_rounds=1, rounds=4), tmp_path)
    rates = [row["learning_rate"] for row in strict_json.read_lines(tmp_path / "rounds.jsonl")]
    assert rates == pytest.approx([0.05, 0.1, 0.075, 0.025])


OWN_TASK = """
import torch
from dataclasses import replace
from hypergpu.tasks import load_task

def task():
    return replace(load_task("digits"), optimizer=torch.optim.RMSprop)
"""


@pytest.fixture
def own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a task that brings its own optimizer."""
    (tmp_path / "own_optimizer.py").write_text(OWN_TASK)
    monkeypatch.chdir(tmp_path)
    return "own_optimizer:task"


@pytest.mark.parametrize("policy", ["none", "reactive"])
def test_a_tasks_own_optimizer_is_used_unless_another_is_named(own_task: str, policy: str, tmp_path: Path) -> None:
    def optimizers(**training: Any) -> set[str]:
        out = tmp_path / str(len(training))
        outcome = simulate(scenario(policy, task=own_task, learning_rate=0.001, rounds=6, **training), out)
        assert outcome.best_metric is not None
        assert outcome.best_metric > 0.85
        return {row["local_optimizer"] for row in strict_json.read_lines(out / "rounds.jsonl")}

    assert optimizers() == {"task"}
    assert optimizers(local_optimizer="adamw") == {"adamw"}


def test_an_optimizer_that_the_task_does_not_bring_is_an_error(own_task: str) -> None:
    with pytest.raises(ConfigError, match="local_optimizer is task, and task 'digits' brings no optimizer"):
        simulate(scenario(local_optimizer="task"))
    with pytest.raises(ConfigError, match="local_momentum is that of SGD, and task 'digits' brings its own optimizer"):
        simulate(scenario(task=own_task, local_momentum=0.9))


def test_a_model_of_convergence_refuses_what_it_does_not_know() -> None:
    for setting in ({"local_momentum": 0.9}, {"proximal": 0.1}, {"warmup_rounds": 2}, {"recipe": "fedprox"}):
        modelled = scenario(**setting).model_copy(update={"learning": "model"})
        with pytest.raises(ScenarioError, match="the model of convergence is one of plain SGD"):
            modelled.learning_curve()


def test_the_shipped_tasks_bring_no_optimizer() -> None:
    task: Task = load_task("digits")
    assert task.optimizer is None


def test_a_run_goes_on_from_the_model_of_another_in_virtual_time_too(tmp_path: Path) -> None:
    first = build(load_task("digits"), 0)
    values = first.flat()
    trainer = Trainer(load_task("digits"), 0)
    update = trainer.work(
        values,
        lambda step: trainer.samples(range(32 * step, 32 * (step + 1))),
        local_steps=40,
        local=LocalTraining(LocalOptimizer("adamw", 0.003)),
    )
    save_file(SavedModel(first).state(values + update.flat), tmp_path / "model.safetensors")
    begun = [run(rounds=1, initial_model=path).losses[0][1] for path in ("", str(tmp_path / "model.safetensors"))]
    assert begun[1] < 0.5 * begun[0]
