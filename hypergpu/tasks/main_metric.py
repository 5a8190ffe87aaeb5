"""Choice of the main metric among those of a task."""

from dataclasses import replace

from hypergpu.common.config import TrainingConfig
from hypergpu.common.errors import ConfigError, suggest
from hypergpu.tasks.base import Task
from hypergpu.tasks.loading import load_task
from hypergpu.tasks.metrics import named_metric


def with_main_metric(task: Task, name: str) -> Task:
    """Return the task with the metric of this name as its main one; an empty name leaves it as it is.

    The former main metric becomes one of the others. The task's target, which is about that one, is dropped.

    Raises:
        ConfigError: the task has no metric of this name.
    """
    main = named_metric(task)
    if not name or (main is not None and main.name == name):
        return task
    chosen = next((metric for metric in task.metrics if metric.name == name), None)
    if chosen is None:
        known = [each.name for each in (main, *task.metrics) if each is not None]
        raise ConfigError(f"training.metric: task {task.name!r} has no metric {name!r}{suggest(name, known)}")
    others = tuple(each for each in (main, *task.metrics) if each is not None and each is not chosen)
    return replace(task, metric=chosen, accuracy=None, metrics=others, target=None)


def load_main_task(training: TrainingConfig) -> Task:
    """Return the task of a run's settings, with the main metric that they name.

    Raises:
        UnknownName, InvalidInput: see `load_task`.
        ConfigError: the task has no metric of this name.
    """
    return with_main_metric(load_task(training.task, training.seed), training.metric)
