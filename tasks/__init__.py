"""What is trained: the model, the data, the loss, and how the samples are dealt out."""

from tasks.base import Evaluation, Task, evaluate
from tasks.flat import FlatModel, build
from tasks.loading import TASK_NAMES, load_task

__all__ = ["TASK_NAMES", "Evaluation", "FlatModel", "Task", "build", "evaluate", "load_task"]
