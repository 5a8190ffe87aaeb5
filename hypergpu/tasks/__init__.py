"""Training tasks: model, data, loss, metric, and the distribution of samples over shards."""

from hypergpu.tasks.base import Evaluation, Task, evaluate
from hypergpu.tasks.flat import FlatModel, build
from hypergpu.tasks.loading import TASK_NAMES, load_task
from hypergpu.tasks.local_optimizer import with_local_optimizer
from hypergpu.tasks.main_metric import load_main_task, with_main_metric
from hypergpu.tasks.metrics import Metric, MetricFailed, metric_for, metric_of, spec_of

__all__ = [
    "TASK_NAMES",
    "Evaluation",
    "FlatModel",
    "Metric",
    "MetricFailed",
    "Task",
    "build",
    "evaluate",
    "load_main_task",
    "load_task",
    "metric_for",
    "metric_of",
    "spec_of",
    "with_local_optimizer",
    "with_main_metric",
]
