"""Choice between the configured local optimizer and the task's own."""

from hypergpu.common.config import TrainingConfig
from hypergpu.common.errors import ConfigError
from hypergpu.tasks.base import Task


def with_local_optimizer(training: TrainingConfig, task: Task) -> TrainingConfig:
    """Return the settings of a run of a task; with `auto`, the local optimizer is the task's own if it brings one.

    Raises:
        ConfigError: the settings name an optimizer that the task does not bring, or give momentum to one that it does.
    """
    if training.local_optimizer == "task" and task.optimizer is None:
        raise ConfigError(
            f"training.local_optimizer is task, and task {task.name!r} brings no optimizer: give `Task` an `optimizer`,"
            " or choose another"
        )
    if training.local_optimizer != "auto" or task.optimizer is None or training.local_steps == 1:
        return training
    if training.local_momentum:
        raise ConfigError(
            f"training.local_momentum is that of SGD, and task {task.name!r} brings its own optimizer: leave it out,"
            " or set training.local_optimizer to sgd"
        )
    return training.model_copy(update={"local_optimizer": "task"})
