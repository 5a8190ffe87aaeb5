"""Metrics of any sign and direction in virtual time: simulated, compared and fitted."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from hypergpu.cli.app import app
from hypergpu.cli.simulate import in_words
from hypergpu.common.config import TrainingConfig
from hypergpu.common.errors import UnknownName
from hypergpu.common.metric import ACCURACY, LOSS, MetricSpec
from hypergpu.simulation.compare import compare
from hypergpu.simulation.convergence import Convergence
from hypergpu.simulation.fit import SETUPS, Curves, _fitted
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.thresholds import figures_of, parse_threshold

MSE = {"name": "mse", "better": "lower"}
LEARNING = {"model_bytes": 8, "learning_rate": 0.1, "loss_floor": 0.1, "loss_scale": 4.0}
CURVE = {"metric_start": 1.0, "metric_limit": 0.1, "metric_scale": 1.64, "metric_power": 0.974}


def scenario(**changes: Any) -> Scenario:
    nodes = [{"id": "n", "count": 3, "gpu": "T4", "profile": "good"}]
    return Scenario.model_validate({"nodes": nodes, "learning": "model", "rounds": 8} | changes)


def of_mse(**changes: Any) -> Scenario:
    return scenario(metric=MSE, convergence=CURVE, **changes)


def test_a_metric_of_which_less_is_better_reaches_its_target_from_above(tmp_path: Path) -> None:
    found = simulate(of_mse(target_accuracy=0.2), tmp_path)
    values = [value for _, value in found.course]
    assert values == sorted(values, reverse=True)
    assert found.best_metric == found.final_metric == values[-1] < 0.2
    first = next(at for at, value in found.course if value <= 0.2)
    assert found.time_to_target_seconds == first
    assert found.course[0][1] > 0.2
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["metric"]["name"], summary["final_mse"]) == ("mse", values[-1])
    assert "final_accuracy" not in summary
    rows = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [row["mse"] for row in rows] == values
    assert f"mse 0.2 after {1000 * first:.0f} ms" in "\n".join(in_words(found))
    never = simulate(of_mse(target_accuracy=0.01))
    assert never.time_to_target_seconds is None
    assert f"mse 0.01 was not reached; the best was {never.metric.text(values[-1])}" in "\n".join(in_words(never))


def test_a_comparison_whose_target_no_run_reached_is_made_at_what_all_reached() -> None:
    found = compare(of_mse(target_accuracy=0.01), ["reactive"], seeds=2)
    (candidate,) = found.candidates
    finals = [o.best_metric or 0.0 for r in (found.baseline, candidate.result) for o in r.outcomes]
    assert (found.wanted, found.target) == (0.01, max(finals))
    assert None not in [o.time_to_target_seconds for r in (found.baseline, candidate.result) for o in r.outcomes]
    assert candidate.match.speedup.mean is not None
    assert found.remark.startswith("no run reached the target of 0.01; times are to mse ")
    record = found.to_dict()
    assert {"best_mse", "final_mse"} <= record["baseline"].keys()
    assert "mse_difference" in record["candidates"][0]


def test_a_threshold_is_on_the_metric_by_its_name(tmp_path: Path) -> None:
    spec = MetricSpec(name="top.5")
    assert (
        parse_threshold("top.5_difference.ci_low>=-1", spec).value(
            {"top.5_difference": {"mean": 0.0, "ci_low": -0.5, "ci_high": 0.5}}
        )
        == -0.5
    )
    assert "final_accuracy" not in figures_of(spec)
    with pytest.raises(UnknownName):
        parse_threshold("final_accuracy>=0.5", spec)
    assert parse_threshold("final_accuracy>=0.5", ACCURACY).figure == "final_accuracy"
    file = tmp_path / "mse.yaml"
    nodes = [{"id": "n", "count": 2, "gpu": "T4"}]
    tree = {"nodes": nodes, "learning": "model", "rounds": 4, "metric": MSE, "convergence": CURVE}
    file.write_text(yaml.safe_dump(tree | {"target_accuracy": 0.01}))
    command = ["compare", str(file), "--seeds", "1", "--jobs", "1", "--threshold", "final_mse<=0.9"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "pass  final_mse<=0.9 for reactive" in done.output
    assert "no run reached the target of 0.01" in done.output
    assert "never" not in done.output


def test_a_task_without_a_metric_is_simulated_by_its_loss() -> None:
    model = Convergence(
        model_bytes=8,
        learning_rate=0.1,
        noise_scale=1.0,
        loss_start=2.0,
        loss_floor=0.1,
        loss_scale=4.0,
        loss_power=1.0,
    )
    assert model.metric(3.0) is None
    own = {name: value for name, value in model if value is not None}
    nodes = [{"id": "n", "count": 2, "gpu": "T4"}]
    bare = {"nodes": nodes, "learning": "model", "rounds": 4, "task": "own:task", "convergence": own}
    found = simulate(Scenario.model_validate(bare))
    assert found.metric == LOSS
    assert found.final_metric == found.final_loss


def curves(true: Convergence) -> list[Curves]:
    config, found = TrainingConfig(), []
    for nodes, batch in SETUPS:
        paths = [true.progress(n * config.local_steps, nodes * batch, config.learning_rate) for n in range(30)]
        found.append(Curves([true.loss(p) for p in paths], [true.metric(p) for p in paths], [1.0]))
    return found


@pytest.mark.parametrize(
    ("spec", "start", "limit"),
    [
        (ACCURACY, 0.1, 0.95),
        (MetricSpec(name="mse", better="lower"), 25.0, 3.0),
        (MetricSpec(name="r2"), -4.0, 0.6),
        (MetricSpec(name="neg"), -900.0, -20.0),
    ],
)
def test_the_fit_finds_a_curve_of_any_direction_and_range(spec: MetricSpec, start: float, limit: float) -> None:
    true = Convergence(
        model_bytes=8,
        learning_rate=0.1,
        noise_scale=30.0,
        loss_start=3.0,
        loss_floor=0.1,
        loss_scale=4.0,
        loss_power=1.4,
        metric_start=start,
        metric_limit=limit,
        metric_scale=2.0,
        metric_power=1.2,
    )
    base = true.model_copy(update={"noise_scale": 64.0, "metric_start": None, "metric_limit": None})
    fitted = _fitted(base, spec, curves(true), TrainingConfig())
    assert fitted.model.metric_start == pytest.approx(start)
    assert fitted.model.metric_limit == pytest.approx(limit, abs=0.03 * abs(limit - start))
    assert fitted.metric_error is not None
    assert fitted.metric_error < 0.01 * abs(limit - start)


def test_the_fit_of_a_task_that_is_judged_by_its_loss_has_no_curve_of_a_metric() -> None:
    true = Convergence(
        model_bytes=8,
        learning_rate=0.1,
        noise_scale=30.0,
        loss_start=3.0,
        loss_floor=0.1,
        loss_scale=4.0,
        loss_power=1.4,
    )
    fitted = _fitted(true, LOSS, curves(true), TrainingConfig())
    assert (fitted.model.metric_start, fitted.metric_error) == (None, None)
    assert fitted.loss_error < 0.05


def test_the_example_reaches_the_target_that_it_documents() -> None:
    nodes = [{"id": "n", "count": 5, "gpu": "T4", "profile": "good"}]
    found = simulate(Scenario.model_validate({"nodes": nodes, "task": "examples.own_metric:diabetes", "rounds": 25}))
    assert found.metric == MetricSpec(name="r2")
    assert found.best_metric is not None
    assert found.best_metric >= 0.4
