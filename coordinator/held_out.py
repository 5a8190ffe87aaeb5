"""Evaluation of the model on held-out data."""

import structlog
import torch

from hypergpu.common.errors import ConfigError
from hypergpu.common.tensors import Flat
from hypergpu.tasks import Evaluation, FlatModel, Task, evaluate, metric_of, spec_of

log = structlog.get_logger()


def evaluation_device(name: str) -> torch.device:
    """Return the device named by `server.evaluation_device`.

    Raises:
        ConfigError: The device does not exist on this machine or is of an unsupported kind.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    key = "server.evaluation_device"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{key}: {name!r} is not a device; choose auto, cpu, cuda or cuda:NUMBER") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{key}: {name!r} is not supported; choose auto, cpu, cuda or cuda:NUMBER")
    cards = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= cards:
        found = f"PyTorch finds {cards} CUDA {'card' if cards == 1 else 'cards'}"
        raise ConfigError(f"{key}: {name!r} is not here, {found}; choose auto, cpu or a card that is there")
    return device


class HeldOut:
    """Evaluator of parameters on the held-out samples of a task.

    Args:
        model: Instance for evaluation only, on the device that evaluates.
        task: Task that is trained.
        batch_size: Samples per batch; reduced permanently if memory runs out.
    """

    def __init__(self, model: FlatModel, task: Task, batch_size: int) -> None:
        self._model, self._task = model, task
        self.batch_size = batch_size
        self.metric = spec_of(metric_of(task, model.module))
        """Main metric of the task."""

    def evaluate(self, values: Flat) -> Evaluation:
        """Return the loss and metric of these parameters."""
        self._model.load(values)
        result = evaluate(self._model.module, self._task, batch_size=self.batch_size)
        if result.batch_size < self.batch_size:
            log.warning(
                "memory ran out in the evaluation; it takes fewer samples at once from now on",
                batch_size=result.batch_size,
                before=self.batch_size,
                setting="server.evaluation_batch_size",
            )
            self.batch_size = result.batch_size
        return result
