"""Several metrics of one task: each on record, one of them the main one."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from hypergpu.common import strict_json
from hypergpu.common.errors import ConfigError, InvalidInput
from hypergpu.report import write_report
from hypergpu.simulation.compare import target_of
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario
from hypergpu.tasks import Metric, Task, build, evaluate, load_task

TASK = """
from dataclasses import replace
from torch.nn import functional
from hypergpu.tasks import Metric, load_task
from hypergpu.tasks.metrics import CLASSIFICATION

def top3(outputs, targets):
    return (outputs.topk(3).indices == targets[:, None]).any(1).float().mean()

def task():
    return replace(
        load_task("digits"),
        metric=CLASSIFICATION,
        metrics=(
            Metric("top 3", top3, format="percent"),
            Metric("perplexity", lambda o, t: functional.cross_entropy(o, t).exp(), better="lower"),
            Metric("rows", lambda o, t: float(len(o)), over="set"),
        ),
    )
"""


@pytest.fixture
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    (tmp_path / "further_metrics.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    tree = {
        "name": "further",
        "task": "further_metrics:task",
        "rounds": 6,
        "policy": "none",
        "nodes": [{"id": "node", "count": 2, "gpu": "T4", "profile": "good"}],
        "config": {"training": {"evaluate_every": 2}},
    }
    return Scenario.model_validate(tree)


def changed(scenario: Scenario, **training: Any) -> Scenario:
    config = scenario.config
    update = {"training": config.training.model_copy(update=training)}
    return scenario.changed(config=config.model_copy(update=update))


def test_each_metric_is_on_record_and_in_the_report(scenario: Scenario, tmp_path: Path) -> None:
    out = tmp_path / "run"
    outcome = simulate(scenario, out)
    rows = list(strict_json.read_lines(out / "rounds.jsonl"))
    assert [sorted(row.get("metrics", {})) for row in rows] == [[], ["perplexity", "rows", "top 3"]] * 3
    last = rows[-1]
    assert last["accuracy"] == outcome.final_metric
    assert last["accuracy"] < last["metrics"]["top 3"] < 1
    assert last["metrics"]["rows"] == 300
    assert last["metrics"]["perplexity"] > 1
    closed = [row for row in strict_json.read_lines(out / "events.jsonl") if row["kind"] == "round_closed"]
    assert f"accuracy {100 * last['accuracy']:.1f} %, top 3 {last['metrics']['top 3']:.4g}" in closed[-1]["text"]
    page = write_report(out).path.read_text()
    for name in ("top 3", "perplexity"):
        assert f"{name} over rounds" in page


def test_any_metric_can_decide_the_best_model_and_the_end(scenario: Scenario) -> None:
    by_perplexity = changed(scenario, metric="perplexity", target_accuracy=2.0, evaluate_every=1, rounds=40)
    outcome = simulate(by_perplexity)
    assert (outcome.metric.name, outcome.metric.better) == ("perplexity", "lower")
    assert outcome.reason.startswith("target_reached")
    assert outcome.final_metric is not None
    assert outcome.final_metric <= 2.0
    assert outcome.rounds < 40
    assert target_of(by_perplexity.changed(target_accuracy=None)) != 0.97, "the task's own target is one of accuracy"


def test_a_metric_that_the_task_does_not_have_is_named(scenario: Scenario) -> None:
    with pytest.raises(ConfigError, match=r"has no metric 'perplexiti'; did you mean 'perplexity'"):
        simulate(changed(scenario, metric="perplexiti"))


def test_metrics_of_one_name_are_refused() -> None:
    task = load_task("digits")
    twice = Metric("mae", lambda outputs, targets: 0.0)
    with pytest.raises(InvalidInput, match="metrics of the same name: mae, mae"):
        Task(model=task.model, train=task.train, test=task.test, metric=twice, metrics=(twice,))


def test_a_further_metric_that_fails_leaves_the_others_alone() -> None:
    def broken(outputs: Tensor, targets: Tensor) -> float:
        raise KeyError("threshold")

    digits = load_task("digits")
    metrics = (Metric("broken", broken), Metric("one", lambda outputs, targets: 1.0))
    task = Task(model=digits.model, train=digits.train, test=digits.test, metrics=metrics)
    found = evaluate(build(task, 0).module, task)
    assert found.metric is not None
    assert found.others == {"broken": None, "one": 1.0}
    assert found.fault == "metric 'broken' raised KeyError: 'threshold'"
    assert json.dumps(dict(found.others))
