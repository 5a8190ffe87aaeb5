import math

import pytest
import torch
from torch import Tensor, nn

from hypergpu.common.errors import InvalidInput
from hypergpu.common.metric import ACCURACY, LOSS
from hypergpu.tasks import Metric, MetricFailed, Task, build, evaluate, load_task, metric_of, spec_of

G = torch.Generator().manual_seed(3)
X = torch.randn(37, 3, generator=G)
Y = X @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.1 * torch.randn(37, 1, generator=G)
CLASSES = torch.arange(37) % 2
mse = nn.functional.mse_loss


def r2(outputs: Tensor, targets: Tensor) -> Tensor:
    return 1 - ((outputs - targets) ** 2).sum() / ((targets - targets.mean()) ** 2).sum()


def regression(**more: object) -> Task:
    return Task(model=lambda: nn.Linear(3, 1), train=(X, Y), test=(X, Y), loss=mse, **more)  # type: ignore[arg-type]


def test_a_metric_over_the_set_is_exact_whatever_the_batches() -> None:
    task = regression(metric=Metric("r2", r2, over="set"))
    model = build(task, 0)
    with torch.no_grad():
        exact = float(r2(model.module(X), Y))
    for batch_size in (5, 37, 64):
        assert evaluate(model.module, task, batch_size=batch_size).metric == pytest.approx(exact, rel=1e-5)
    by_batches = evaluate(model.module, regression(metric=Metric("r2", r2)), batch_size=5).metric
    assert by_batches != pytest.approx(exact, rel=1e-3)  # which is why there is `over`


@pytest.mark.parametrize("over", ["batches", "set"])
def test_a_metric_takes_any_real_value(over: str) -> None:
    task = regression(metric=Metric("neg", lambda o, t: -mse(o, t), over=over))  # type: ignore[arg-type]
    model = build(task, 0)
    result = evaluate(model.module, task, batch_size=8)
    assert result.metric == pytest.approx(-result.loss, rel=1e-5)
    assert result.metric is not None
    assert result.metric < 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("over", ["batches", "set"])
def test_what_is_not_finite_is_undefined_and_no_fault(value: float | None, over: str) -> None:
    task = regression(metric=Metric("odd", lambda o, t: value, over=over))  # type: ignore[arg-type]
    result = evaluate(build(task, 0).module, task, batch_size=8)
    assert (result.metric, result.fault) == (None, "")
    assert math.isfinite(result.loss)


def test_one_undefined_batch_makes_the_mean_undefined() -> None:
    calls = iter([0.5, math.nan, *[0.5] * 9])
    task = regression(metric=Metric("odd", lambda o, t: next(calls)))
    assert evaluate(build(task, 0).module, task, batch_size=8).metric is None


@pytest.mark.parametrize("over", ["batches", "set"])
def test_a_metric_that_raises_is_named_and_leaves_the_loss(over: str) -> None:
    def broken(outputs: Tensor, targets: Tensor) -> float:
        raise ValueError("only one\n class present")

    task = regression(metric=Metric("auc", broken, over=over))  # type: ignore[arg-type]
    result = evaluate(build(task, 0).module, task, batch_size=8)
    assert result.metric is None
    assert result.fault == "metric 'auc' raised ValueError: only one class present"
    assert math.isfinite(result.loss)


def test_a_metric_that_is_not_one_number_is_its_own_fault() -> None:
    task = regression(metric=Metric("each", lambda o, t: (o - t) ** 2))
    assert evaluate(build(task, 0).module, task).fault.startswith("metric 'each' raised ")
    with pytest.raises(MetricFailed, match="metric 'each'"):
        Metric("each", lambda o, t: o - t).score(X, X)


def test_memory_that_runs_out_in_a_metric_is_no_fault_of_it() -> None:
    def hungry(outputs: Tensor, targets: Tensor) -> float:
        raise MemoryError

    with pytest.raises(MemoryError):
        Metric("m", hungry).score(X, Y)


def test_a_regression_without_a_metric_is_judged_by_its_loss() -> None:
    for targets, loss in ((Y, mse), (torch.arange(37)[:, None], lambda o, t: mse(o, t.float()))):
        task = Task(model=lambda: nn.Linear(3, 1), train=(X, targets), test=(X, targets), loss=loss)
        model = build(task, 0)
        assert metric_of(task, model.module) is None
        assert spec_of(None) == LOSS
        assert evaluate(model.module, task).metric is None
    flat = Task(
        model=lambda: nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)),
        train=(X, torch.arange(37)),
        test=(X, torch.arange(37)),
        loss=lambda o, t: mse(o, t.float()),
    )
    assert metric_of(flat, build(flat, 0).module) is None


@pytest.mark.parametrize("name", ["digits", "chars"])
def test_a_classification_without_a_metric_has_its_accuracy(name: str) -> None:
    task = load_task(name)
    model = build(task, 0)
    found = metric_of(task, model.module)
    assert found is not None
    assert found.spec == ACCURACY
    assert model.module.training


def test_an_accuracy_of_ones_own_is_a_figure_of_which_more_is_better() -> None:
    task = regression(accuracy=r2)
    found = spec_of(metric_of(task, build(task, 0).module))
    assert (found.name, found.better, found.format) == ("accuracy", "higher", "number")


def test_finding_the_metric_draws_nothing_and_leaves_the_mode() -> None:
    task = Task(model=lambda: nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)), train=(X, CLASSES), test=(X, CLASSES))
    model = build(task, 0).module.eval()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    assert metric_of(task, model) is not None
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not model.training


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"accuracy": r2, "metric": Metric("r2", r2)}, "give one of them"),
        ({"target": math.nan}, "target of task 'task' is nan"),
        ({"target": math.inf}, "target of task 'task' is inf"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(more: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        regression(**more)
    assert regression(target=-0.5).target == -0.5


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"name": "loss"}, "the name is reserved"),
        ({"name": "a<b"}, "name"),
        ({"better": "up"}, "better"),
        ({"format": "share"}, "format"),
        ({"over": "all"}, "'batches' or 'set'"),
    ],
)
def test_a_metric_that_cannot_be_told_is_refused_when_it_is_made(more: dict[str, str], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        Metric(**{"name": "m", "function": r2, **more})  # type: ignore[arg-type]
