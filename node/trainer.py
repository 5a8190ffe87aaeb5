"""Forward, backward and local steps of one model through torch, into flat buffers."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import structlog
import torch
from torch import Tensor

from hypergpu.common.errors import HyperGPUError, InvalidInput, NonFiniteUpdate, OutOfMemory
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.common.tensors import Flat
from hypergpu.node.fused_sgd import AppliedTwiceError, FusedSgd, Rehearsal
from hypergpu.tasks import MetricFailed, Task, build, metric_for
from hypergpu.tasks.memory import is_out_of_memory
from hypergpu.tasks.samples import Indices, fetch
from hypergpu.tasks.seeding import seeded

log = structlog.get_logger()

log = structlog.get_logger()

Fetch = Callable[[int], tuple[Tensor, Tensor]]
"""The samples of local step `i`."""


def _warn(failure: MetricFailed) -> None:
    log.warning("the metric of a training batch is undefined; training goes on", error=str(failure))


class WorkAbandoned(HyperGPUError):
    """The work was given up while it ran."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step found; means over the samples, times in seconds."""

    loss: float
    metric: float | None
    """The task's metric on these samples; None where it is undefined, or failed."""
    grad_norm: float
    samples: int
    forward_time: float
    backward_time: float
    step_time: float


@dataclass(frozen=True, slots=True)
class Update:
    """What a unit of work gives back: gradients of one step, or the change that several made, and state changes."""

    flat: Flat
    steps: tuple[Step, ...]
    compute_seconds: float

    @property
    def samples(self) -> int:
        """The weight of the update in the mean."""
        return sum(step.samples for step in self.steps)

    @property
    def loss(self) -> float:
        """The mean over all samples."""
        return sum(step.loss * step.samples for step in self.steps) / self.samples


@dataclass(frozen=True, slots=True)
class Timing:
    """One pass as two clocks saw it."""

    cpu_seconds: float
    """Of the thread: without the time in which others had the core."""
    wall_seconds: float

    @property
    def seconds(self) -> float:
        """The better of the two: some systems count CPU time in ticks, 0 or too much for a short pass."""
        return min(self.cpu_seconds, self.wall_seconds) if self.cpu_seconds > 0 else self.wall_seconds


class Trainer:
    """A task's model on a device.

    Args:
        task: what to train.
        seed: of the initial parameters, and of whatever the model draws while it trains.
        device: `cpu` or `cuda`.
        precision: `float32`, `bfloat16`, or `auto`: bfloat16 where a CUDA card has it.
        metric_failed: called once, with the first failure of the task's metric on a training batch.
    """

    def __init__(
        self,
        task: Task,
        seed: int,
        device: str = "cpu",
        precision: str = "auto",
        *,
        metric_failed: Callable[[MetricFailed], None] = _warn,
    ) -> None:
        self.task, self.seed = task, seed
        self.device = torch.device(device)
        self.model = build(task, seed, self.device)
        self.precision = precision
        cuda = self.device.type == "cuda"
        self._half = precision == "bfloat16" or (precision == "auto" and cuda and torch.cuda.is_bf16_supported())
        self._fusible: bool | None = None
        self._metric_failed: Callable[[MetricFailed], None] | None = metric_failed
        self._start = torch.empty_like(self.model.values)
        self._out = torch.empty(self.model.manifest.size, pin_memory=cuda)

    def gradient(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        step: int = 0,
        micro_batch: int | None = None,
        descent: FusedSgd | None = None,
    ) -> Step:
        """Forward and backward over a batch, the mean gradient in `model.gradients`.

        Args:
            inputs: one sample per row.
            targets: as many.
            step: named by the error.
            micro_batch: the most samples that the card holds at once; a larger batch is accumulated in parts, which
                gives the same mean gradient (BatchNorm apart, whose statistics are those of the parts).
            descent: entered; the parameters have moved afterwards, and `model.gradients` holds nothing.

        Raises:
            NonFiniteUpdate: NaN or infinity in the loss or the gradients.
            InvalidInput: the model or the loss does not take these samples.
        """
        began = time.perf_counter()
        samples = len(inputs)
        parts = math.ceil(samples / micro_batch) if micro_batch else 1
        if descent is None:
            self.model.gradients.zero_()
        self.model.module.train()
        forward = backward = 0.0
        loss = torch.zeros((), device=self.device)
        metric: float | None = 0.0
        for x, y in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
            weight = len(x) / samples
            at = self._now()
            found, score = self._forward(x, y)
            part = found * weight
            middle = self._now()
            self._backward(part, len(x))
            self.model.collect_state()
            if descent is None:
                self.model.collect_gradients()
            end = self._now()
            loss += part.detach()
            metric = None if metric is None or score is None else metric + weight * score
            forward += middle - at
            backward += end - middle
        norm = descent.norm() if descent else float(torch.linalg.vector_norm(self.model.gradients))
        mean = float(loss)
        if not (math.isfinite(mean) and math.isfinite(norm)):
            what = f"the loss is {mean}" if not math.isfinite(mean) else f"the gradient norm is {norm}"
            raise NonFiniteUpdate(f"{what} at step {step}; lower the learning rate, or look at the samples", step)
        return Step(mean, metric, norm, samples, forward, backward, time.perf_counter() - began)

    def work(
        self,
        parameters: Flat,
        batches: Fetch,
        *,
        local_steps: int,
        learning_rate: float,
        key: tuple[str | int, ...] = (),
        micro_batch: int | None = None,
        after_step: Callable[[Step], None] = lambda step: None,
        abandon: threading.Event | None = None,
    ) -> Update:
        """Local SGD from `parameters`: the mean gradient for one step, the change of the parameters for more.

        The state part of the update (BatchNorm's statistics) is a change in both cases. The update is written to a
        buffer of the trainer's that the next unit of work uses again.

        Args:
            parameters: shape (manifest.size,).
            batches: gives the samples of each step.
            local_steps: at least 1.
            learning_rate: of the local SGD; not used with one step.
            key: names the work: with the seed, it fixes whatever the model draws, such as dropout.
            micro_batch: as in `gradient`.
            after_step: called after each step, such as to record it or to wait as a slower card would.
            abandon: when set, the work ends at the next step.

        Raises:
            NonFiniteUpdate: carries the step.
            ProtocolError: `parameters` of another shape.
            InvalidInput: steps or rate that can't work, or samples that the model does not take.
            WorkAbandoned: `abandon` was set.
        """
        if local_steps < 1 or not learning_rate > 0:
            raise InvalidInput(f"{local_steps} local steps at learning rate {learning_rate}: both must be above 0")
        began = time.perf_counter()
        model = self.model
        model.load(parameters)
        steps: list[Step] = []

        def run(*, fused: bool) -> None:
            recorded = len(steps)
            with self._seeded(key), FusedSgd(model, learning_rate) if fused else nullcontext() as descent:
                for index in range(local_steps):
                    if abandon is not None and abandon.is_set():
                        raise WorkAbandoned(f"given up after {index} of {local_steps} steps")
                    step = self.gradient(*batches(index), step=index, micro_batch=micro_batch, descent=descent)
                    if local_steps > 1 and descent is None:
                        model.parameters.add_(model.gradients, alpha=-learning_rate)
                    if index < recorded:
                        steps[index] = step
                        continue
                    steps.append(step)
                    after_step(step)

        changing = slice(model.parameter_count if local_steps == 1 else 0, None)
        self._start[changing] = model.values[changing]
        fused = local_steps > 1 and micro_batch is None and self._can_fuse(batches)
        try:
            run(fused=fused)
        except (AppliedTwiceError, RuntimeError) as error:
            if not fused:
                raise
            self._fusible = False
            log.info(
                "this model's parameters have to wait for the end of the backward pass", error=type(error).__name__
            )
        if fused and not self._fusible:
            model.load(parameters)
            run(fused=False)
        out = self._out if self.device.type == "cpu" else self._start
        torch.sub(model.values[changing], self._start[changing], out=out[changing])
        if local_steps == 1:
            out[: model.parameter_count] = model.gradients  # whose norm is known to be finite
        if not math.isfinite(float(torch.linalg.vector_norm(out[changing]))):
            last = local_steps - 1
            raise NonFiniteUpdate(f"the change of the parameters is not finite after step {last}", last)
        if out is not self._out:
            self._out.copy_(out)
        return Update(self._out.numpy(), tuple(steps), time.perf_counter() - began)

    def measure_activations(self, inputs: Tensor, targets: Tensor) -> float:
        """Bytes that one sample takes between forward and backward: what autograd saves, and the sample itself.

        Each storage counts once, and that of the model's own tensors not at all.
        """
        own = self.model.values.untyped_storage().data_ptr()
        saved: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() != own:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        x, y = inputs.to(self.device), targets.to(self.device)
        with self._trial("measure"), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            self._forward(x, y)
        for part in (x, y):
            saved[part.untyped_storage().data_ptr()] = part.numel() * part.element_size()
        return sum(saved.values()) / len(x)

    def time_step(self, inputs: Tensor, targets: Tensor) -> Timing:
        """Return how long one forward and backward pass over this batch takes the calling thread; on the CPU."""
        with self._trial("time"):
            wall, cpu = time.perf_counter(), time.thread_time()
            self.gradient(inputs, targets)
            return Timing(time.thread_time() - cpu, time.perf_counter() - wall)

    def samples(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Training samples of the task by index, on the device."""
        return fetch(self.task.train, indices, self.device)

    def _forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, float | None]:
        """Mean loss, to go backward from, and metric over a batch; the user's code runs here and only here."""
        try:
            with self._autocast():
                outputs = self.model.module(inputs.to(self.device, non_blocking=True))
            outputs, targets = _as_float32(outputs), targets.to(self.device, non_blocking=True)
            loss = self.task.loss(outputs, targets)
            if loss.ndim or not loss.requires_grad:
                what = f"of shape {tuple(loss.shape)}" if loss.ndim else "that no parameter has a part in"
                raise ValueError(f"the loss is a tensor {what}, not the mean over the batch")
            metric = self._score(outputs, targets)
        except Exception as error:
            if is_out_of_memory(error):
                raise self._out_of_memory(len(inputs)) from error
            raise InvalidInput(
                f"task {self.task.name!r} does not take samples of shape {tuple(inputs.shape)} and targets of shape "
                f"{tuple(targets.shape)}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            ) from error
        return loss, metric

    def _score(self, outputs: Tensor, targets: Tensor) -> float | None:
        """The metric of a batch. One that fails costs no work: it is undefined, and the first failure is told."""
        metric = metric_for(self.task, outputs, targets)
        try:
            return None if metric is None else metric.score(outputs, targets)
        except MetricFailed as failure:
            if self._metric_failed is not None:
                self._metric_failed(failure)
                self._metric_failed = None
            return None

    def _backward(self, loss: Tensor, samples: int) -> None:
        try:
            loss.backward()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise self._out_of_memory(samples) from error
            raise

    def _out_of_memory(self, samples: int) -> OutOfMemory:
        return OutOfMemory(f"{self.device} does not hold a batch of {samples}", samples // 2)

    def _can_fuse(self, batches: Fetch) -> bool:
        """Whether this model's parameters may move within the backward pass: tried once."""
        if self._fusible is None:
            batch = batches(0)
            try:
                with self._trial("fuse"), Rehearsal(self.model) as rehearsal:
                    self.gradient(*batch, descent=rehearsal)
                self._fusible = True
            except Exception:  # the user's code among NaNs; an error of its own comes again without them
                self._fusible = False
        return self._fusible

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._half else nullcontext()

    @contextmanager
    def _trial(self, name: str) -> Iterator[None]:
        """KeyedRandom of its own, and values as they were afterwards: a forward pass moves BatchNorm's statistics."""
        values = self.model.values.clone()
        try:
            with self._seeded((name,)):
                yield
        finally:
            self.model.put_buffers_back()
            self.model.values.copy_(values)

    @contextmanager
    def _seeded(self, key: tuple[str | int, ...]) -> Iterator[None]:
        """Fix what the model draws, and leave the global generators as they were."""
        with seeded(KeyedRandom(self.seed, "train", *key).bits(0) >> 1, self.device):
            yield

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _as_float32(outputs: Tensor) -> Tensor:
    """Losses are taken in float32, whatever the forward pass ran in; other outputs than tensors are the task's own."""
    return outputs.float() if isinstance(outputs, Tensor) and outputs.dtype is torch.bfloat16 else outputs
