"""One local step of each optimizer, from the gradients in a flat buffer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from hypergpu.common.errors import InvalidInput
from hypergpu.common.local_optimizer import LocalSettings
from hypergpu.node.optimizers.local_training import LocalTraining
from hypergpu.node.optimizers.muon import muon_step
from hypergpu.node.optimizers.state import OptimizerState
from hypergpu.tasks import FlatModel, Task

ApplyStep = Callable[[], None]
"""Changes the parameters by the present gradients."""


def step_of(local: LocalTraining, model: FlatModel, task: Task) -> ApplyStep:
    """Return the function that takes a local step.

    Raises:
        InvalidInput: the optimizer is that of the task, which has none or raised.
    """
    optimizer, settings, given = local
    state = OptimizerState() if given is None else given
    if optimizer.name == "sgd":
        return _sgd(model, optimizer.learning_rate, settings, state)
    if optimizer.name == "adamw":
        whole = [slice(0, model.parameter_count)]
        return _adamw(model, whole, optimizer.learning_rate, settings.decay_of("adamw"), state)
    if optimizer.name == "muon":
        return _muon(model, optimizer.learning_rate, settings.decay_of("muon"), state)
    return _of_task(task, model, optimizer.learning_rate, state)


def _sgd(model: FlatModel, rate: float, settings: LocalSettings, state: OptimizerState) -> ApplyStep:
    """Return a step of SGD, as torch.optim.SGD takes it: with momentum v ← μ·v + g, in Nesterov's form g + μ·v."""
    parameters, gradients = model.parameters.detach(), model.gradients
    velocity = state.tensor("velocity", gradients) if settings.momentum else None
    decay = settings.decay_of("sgd")

    @torch.no_grad()
    def apply() -> None:
        if decay:
            gradients.add_(parameters, alpha=decay)
        move = gradients
        if velocity is not None:
            velocity.mul_(settings.momentum).add_(gradients)
            move = gradients.add_(velocity, alpha=settings.momentum) if settings.nesterov else velocity
        parameters.add_(move, alpha=-rate)

    return apply


def _adamw(model: FlatModel, parts: Sequence[slice], rate: float, decay: float, state: OptimizerState) -> ApplyStep:
    """Return a step of AdamW on parts of the buffer, with the other defaults of `torch.optim.AdamW`.

    The class of that name imports torch's compiler: seconds in which the first work unit of each node would wait.
    """
    counts = state.tensor("steps", torch.zeros(len(parts), device=model.gradients.device))
    means = (state.tensor(name, model.gradients) for name in ("first", "second"))
    buffers = (model.parameters.detach(), model.gradients, *means)
    parameters, gradients, first, second = ([buffer[part] for part in parts] for buffer in buffers)

    def apply() -> None:
        adamw(
            parameters,
            gradients,
            first,
            second,
            [],
            list(counts),
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=rate,
            weight_decay=decay,
            eps=1e-8,
            maximize=False,
        )

    return apply


def _muon(model: FlatModel, rate: float, decay: float, state: OptimizerState) -> ApplyStep:
    """Return a step of Muon for matrices, and of AdamW for all else.

    The kernels of a convolution are a matrix with a row for each output.
    """
    buffers = (model.parameters.detach(), model.gradients, state.tensor("velocity", model.gradients))
    parts = [(parameter, part) for parameter, part in _parts(model) if parameter.ndim >= 2]
    rest = [part for parameter, part in _parts(model) if parameter.ndim < 2]
    parameters, gradients, velocities = (
        [buffer[part].view(len(parameter), -1) for parameter, part in parts] for buffer in buffers
    )
    adamw_step = _adamw(model, rest, rate, decay, state) if rest else None

    def apply() -> None:
        muon_step(parameters, gradients, velocities, rate, decay)
        if adamw_step is not None:
            adamw_step()

    return apply


def _parts(model: FlatModel) -> Iterator[tuple[Tensor, slice]]:
    """Yield each parameter and its place in the flat buffer."""
    start = 0
    for parameter in model.trainable:
        yield parameter, slice(start, start + parameter.numel())
        start += parameter.numel()


def _of_task(task: Task, model: FlatModel, rate: float, state: OptimizerState) -> ApplyStep:
    """Return a step of the task's own optimizer."""
    if task.optimizer is None:
        raise InvalidInput(f"task {task.name!r} brings no optimizer: give it one, or choose another local_optimizer")
    with _faults_of(task):
        apply = _of_torch(task.optimizer(list(model.trainable), rate), rate, state)

    def apply_or_say() -> None:
        with _faults_of(task):
            apply()

    return apply_or_say


def _of_torch(optimizer: torch.optim.Optimizer, rate: float, state: OptimizerState) -> ApplyStep:
    """Return a step of an optimizer of torch's kind, which goes on from `state` at another rate."""
    if state.of_torch is not None:
        optimizer.load_state_dict(state.of_torch)
        for group in optimizer.param_groups:
            group["lr"] = rate

    def apply() -> None:
        optimizer.step()
        state.of_torch = optimizer.state_dict()

    return apply


@contextmanager
def _faults_of(task: Task) -> Iterator[None]:
    """Name the task in an error of its optimizer."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise InvalidInput(f"the optimizer of task {task.name!r} raised {type(error).__name__}: {said}") from error
