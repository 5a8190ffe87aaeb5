"""Training of one model with torch, into flat buffers."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import structlog
import torch
from torch import Tensor

from hypergpu.common.errors import HyperGPUError, InvalidInput, NonFiniteUpdate, OutOfMemory, UnknownName
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.common.local_optimizer import LOCAL_OPTIMIZERS
from hypergpu.common.tensors import Flat
from hypergpu.node.optimizers import ApplyStep, LocalTraining, step_of
from hypergpu.node.optimizers.fused_sgd import AppliedTwiceError, FusedSgd, Rehearsal
from hypergpu.tasks import MetricFailed, Task, build, metric_for
from hypergpu.tasks.inputs import Inputs, call, from_reduced, shapes, tensors
from hypergpu.tasks.memory import is_out_of_memory
from hypergpu.tasks.samples import Data, Indices, fetch
from hypergpu.tasks.seeding import seeded

log = structlog.get_logger()

Fetch = Callable[[int], tuple[Inputs, Tensor]]
"""Returns the samples of local step `i`."""


def _warn(failure: MetricFailed) -> None:
    log.warning("the metric of a training batch failed; training continues", error=str(failure))


class WorkAbandoned(HyperGPUError):
    """The work was abandoned before it was done."""


@dataclass(frozen=True, slots=True)
class Step:
    """Result of one step: means over the samples, times in seconds."""

    loss: float
    metric: float | None
    """Task's metric on these samples; None if it is undefined or failed."""
    grad_norm: float
    samples: int
    forward_time: float
    backward_time: float
    step_time: float
    """Forward and backward, without the optimizer."""
    optimizer_time: float = 0.0
    """Time in which the gradients were applied; 0 where the backward pass does it."""


@dataclass(frozen=True, slots=True)
class Update:
    """Result of a work unit: the gradients of one step or the change by several, and the change of the state."""

    flat: Flat
    steps: tuple[Step, ...]
    compute_seconds: float
    loss_after: float | None = None
    """Loss of the first batch after the last step; None for a single step, or if it could not be computed."""

    @property
    def optimizer_share(self) -> float:
        """Share of the time of the steps that the optimizer took."""
        optimizer = sum(step.optimizer_time for step in self.steps)
        return optimizer / (optimizer + sum(step.step_time for step in self.steps)) if optimizer else 0.0

    @property
    def samples(self) -> int:
        """Samples trained on: the weight of the update in the mean."""
        return sum(step.samples for step in self.steps)

    @property
    def loss(self) -> float:
        """Mean loss over all samples."""
        return sum(step.loss * step.samples for step in self.steps) / self.samples


@dataclass(frozen=True, slots=True)
class Timing:
    """Duration of one pass by two clocks."""

    cpu_seconds: float
    """CPU time of the thread, which excludes time when others had the core."""
    wall_seconds: float

    @property
    def seconds(self) -> float:
        """Smaller of the two: some systems count CPU time in ticks, which is 0 or too much for a short pass."""
        return min(self.cpu_seconds, self.wall_seconds) if self.cpu_seconds > 0 else self.wall_seconds


@dataclass(frozen=True, slots=True)
class _LocalWork:
    """Arguments of `Trainer.work`."""

    batches: Fetch
    local_steps: int
    local: LocalTraining
    key: tuple[str | int, ...]
    micro_batch: int | None
    after_step: Callable[[Step], None]
    abandon: threading.Event | None


class Trainer:
    """Model of a task on a device.

    Args:
        task: what to train.
        seed: seed of the initial parameters and of random numbers in training.
        device: `cpu` or `cuda`.
        precision: `float32`, `bfloat16`, or `auto`: bfloat16 if a CUDA card supports it.
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
        self.is_half = precision == "bfloat16" or (precision == "auto" and cuda and torch.cuda.is_bf16_supported())
        """True if it computes in bfloat16."""
        self._fusible: bool | None = None
        self._metric_failed: Callable[[MetricFailed], None] | None = metric_failed
        self._start = torch.empty_like(self.model.values)
        self._out = torch.empty(self.model.manifest.size, pin_memory=cuda)

    def gradient(
        self,
        inputs: Inputs,
        targets: Tensor,
        *,
        step: int = 0,
        micro_batch: int | None = None,
        fused: FusedSgd | None = None,
    ) -> Step:
        """Run forward and backward over a batch; the mean gradient is in `model.gradients`.

        Args:
            inputs: one tensor or several, with one sample per row.
            targets: one per sample.
            step: number for errors.
            micro_batch: largest batch that the card holds; a larger one is accumulated in parts, which gives the same
                mean gradient (except for BatchNorm, whose statistics are those of the parts).
            fused: applies the gradients during the backward pass; `model.gradients` is then not set.

        Raises:
            NonFiniteUpdate: NaN or infinity in the loss or the gradients.
            InvalidInput: the model or the loss failed on these samples.
        """
        began = time.perf_counter()
        samples = len(inputs)
        if fused is None:
            self.model.gradients.zero_()
        self.model.module.train()
        forward = backward = 0.0
        loss = torch.zeros((), device=self.device)
        metric: float | None = 0.0
        for x, y in _micro_batches(inputs, targets, micro_batch):
            weight = len(x) / samples
            at = self._now()
            found, score = self._forward(x, y)
            part = found * weight
            middle = self._now()
            self._backward(part, len(x))
            self.model.collect_state()
            if fused is None:
                self.model.collect_gradients()
            end = self._now()
            loss += part.detach()
            metric = None if metric is None or score is None else metric + weight * score
            forward += middle - at
            backward += end - middle
        norm = fused.norm() if fused else float(torch.linalg.vector_norm(self.model.gradients))
        mean = float(loss)
        if not (math.isfinite(mean) and math.isfinite(norm)):
            figure = f"the loss is {mean}" if not math.isfinite(mean) else f"the gradient norm is {norm}"
            raise NonFiniteUpdate(f"{figure} at step {step}; lower the learning rate, or check the samples", step)
        return Step(mean, metric, norm, samples, forward, backward, time.perf_counter() - began)

    def work(
        self,
        parameters: Flat,
        batches: Fetch,
        *,
        local_steps: int,
        local: LocalTraining,
        key: tuple[str | int, ...] = (),
        micro_batch: int | None = None,
        after_step: Callable[[Step], None] = lambda step: None,
        abandon: threading.Event | None = None,
    ) -> Update:
        """Run local steps from `parameters`; return the mean gradient of one step, or the change by several.

        The state part of the update (BatchNorm's statistics) is a change in both cases. The update is in a buffer of
        the trainer, which the next work unit overwrites.

        Args:
            parameters: shape (manifest.size,).
            batches: returns the samples of each step.
            local_steps: at least 1.
            local: how each step changes the parameters.
            key: identifies the work: with the seed, it fixes random numbers such as those of dropout.
            micro_batch: see `gradient`.
            after_step: called after each step, for example to record it or to wait as a slower card would.
            abandon: ends the work at the next step when it is set.

        Raises:
            NonFiniteUpdate: carries the step.
            ProtocolError: `parameters` has another shape.
            InvalidInput: an impossible number of steps or learning rate, an unknown optimizer, one of the task that
                raised, or samples that do not fit the model.
            WorkAbandoned: `abandon` was set.
        """
        name, rate = local.optimizer
        if local_steps < 1 or not rate > 0:
            raise InvalidInput(f"{local_steps} local steps at learning rate {rate}: both must be above 0")
        if name not in LOCAL_OPTIMIZERS:
            raise UnknownName("local optimizer", name, LOCAL_OPTIMIZERS)
        began = time.perf_counter()
        work = _LocalWork(batches, local_steps, local, key, micro_batch, after_step, abandon)
        self.model.load(parameters)
        changing = slice(self.model.parameter_count if local_steps == 1 else 0, None)
        self._start[changing] = self.model.values[changing]
        steps = self._run(work, parameters)
        self._write_update(local_steps, changing)
        loss_after = self._loss_after(work) if local_steps > 1 else None
        return Update(self._out.numpy(), tuple(steps), time.perf_counter() - began, loss_after)

    def _run(self, work: "_LocalWork", parameters: Flat) -> list[Step]:
        """Run all steps, with gradients applied during the backward pass if the model allows it."""
        steps: list[Step] = []
        optimizer, settings, _ = work.local
        plain = optimizer.name == "sgd" and settings.keeps_gradients and work.micro_batch is None
        if plain and work.local_steps > 1 and self._can_fuse(work.batches):
            try:
                with FusedSgd(self.model, optimizer.learning_rate) as fused:
                    self._run_steps(work, steps, fused)
                return steps
            except (AppliedTwiceError, RuntimeError) as error:
                self._fusible = False
                log.info("this model cannot apply gradients during the backward pass", error=type(error).__name__)
            self.model.load(parameters)
        self._run_steps(work, steps, None)
        return steps

    def _run_steps(self, work: "_LocalWork", steps: list[Step], fused: FusedSgd | None) -> None:
        """Run all steps and fill `steps`; those that it already has, from a failed attempt, are not reported again."""
        reported = len(steps)
        apply = self._step_of(work.local) if work.local_steps > 1 and fused is None else None
        with self._seeded(work.key):
            for index in range(work.local_steps):
                if work.abandon is not None and work.abandon.is_set():
                    raise WorkAbandoned(f"abandoned after {index} of {work.local_steps} steps")
                step = self.gradient(*work.batches(index), step=index, micro_batch=work.micro_batch, fused=fused)
                self._clip(step.grad_norm, work.local.settings.clip_norm)
                if apply is not None:
                    step = self._applied(step, apply)
                if index < reported:
                    steps[index] = step
                    continue
                steps.append(step)
                work.after_step(step)

    def _applied(self, step: Step, apply: ApplyStep) -> Step:
        """Apply the gradients, and return the step with the time that it took."""
        began = self._now()
        apply()
        return replace(step, optimizer_time=self._now() - began)

    def _clip(self, norm: float, most: float | None) -> None:
        """Scale the gradients down to a norm of `most`."""
        if most is not None and norm > most:
            self.model.gradients.mul_(most / norm)

    def _step_of(self, local: LocalTraining) -> ApplyStep:
        """Return the function that applies the gradients of a step to the parameters."""
        step = step_of(local, self.model, self.task)
        weight = local.settings.proximal
        if not weight:
            return step
        parameters, gradients = self.model.parameters.detach(), self.model.gradients
        start = self._start[: self.model.parameter_count]

        def pulled_back() -> None:
            """Add the gradient of μ/2·|x - x₀|² (Li et al., "Federated optimization in heterogeneous networks")."""
            gradients.add_(parameters, alpha=weight).sub_(start, alpha=weight)
            step()

        return pulled_back

    def _write_update(self, local_steps: int, changing: slice) -> None:
        """Write the change of the part `changing`, and with one step the gradients, to the buffer of the update."""
        model = self.model
        out = self._out if self.device.type == "cpu" else self._start
        torch.sub(model.values[changing], self._start[changing], out=out[changing])
        if local_steps == 1:
            out[: model.parameter_count] = model.gradients  # whose norm is known to be finite
        if not math.isfinite(float(torch.linalg.vector_norm(out[changing]))):
            last = local_steps - 1
            raise NonFiniteUpdate(f"the change of the parameters is not finite after step {last}", last)
        if out is not self._out:
            self._out.copy_(out)

    def _loss_after(self, work: "_LocalWork") -> float | None:
        """Return the loss of the first batch with the present parameters and the random numbers of the first step.

        The difference to the loss before is what the work was worth, without the noise between batches.
        """
        inputs, targets = work.batches(0)
        loss = 0.0
        try:
            with self._seeded(work.key):
                for x, y in _micro_batches(inputs, targets, work.micro_batch):
                    loss += float(self._forward(x, y)[0].detach()) * len(x) / len(inputs)
        except HyperGPUError:  # the work itself is done
            return None
        return loss

    def measure_activations(self, inputs: Inputs, targets: Tensor) -> float:
        """Return the memory of one sample between forward and backward: the sample and the tensors that autograd saves.

        Each storage counts once; that of the model's own tensors does not count.
        """
        own = {each.untyped_storage().data_ptr() for each in (self.model.values, *self.model.reduced)}
        saved: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        x, y = inputs.to(self.device), targets.to(self.device)
        with self._trial("measure"), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            self._forward(x, y)
        for part in (*tensors(x), y):
            saved[part.untyped_storage().data_ptr()] = part.numel() * part.element_size()
        return sum(saved.values()) / len(x)

    def time_step(self, inputs: Inputs, targets: Tensor) -> Timing:
        """Return the duration of one forward and backward pass over a batch on the calling thread."""
        with self._trial("time"):
            wall, cpu = self._now(), time.thread_time()
            self.gradient(inputs, targets)
            return Timing(time.thread_time() - cpu, self._now() - wall)

    def samples(self, indices: Indices, data: Data | None = None) -> tuple[Inputs, Tensor]:
        """Return samples by index, on the device: of `data`, by default the task's training samples."""
        return fetch(self.task.train if data is None else data, indices, self.device, self.task.collate)

    def _forward(self, inputs: Inputs, targets: Tensor) -> tuple[Tensor, float | None]:
        """Return the mean loss, with its graph, and the metric of a batch; the user's code runs only here."""
        self.model.publish()
        try:
            with self._autocast():
                outputs = call(self.model.module, inputs.to(self.device, non_blocking=True))
            outputs, targets = from_reduced(outputs), targets.to(self.device, non_blocking=True)
            loss = self.task.loss(outputs, targets)
            if loss.ndim or not loss.requires_grad:
                fault = f"has shape {tuple(loss.shape)}" if loss.ndim else "does not depend on any parameter"
                raise ValueError(f"the loss {fault}; it must be the mean over the batch")
            metric = self._score(outputs, targets)
        except Exception as error:
            if is_out_of_memory(error):
                raise self._out_of_memory(len(inputs)) from error
            raise InvalidInput(
                f"task {self.task.name!r} does not take samples of shape {shapes(inputs)} and targets of shape "
                f"{tuple(targets.shape)}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            ) from error
        return loss, metric

    def _score(self, outputs: Tensor, targets: Tensor) -> float | None:
        """Return the metric of a batch; None if it is undefined or failed. The first failure is reported."""
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
        """Return whether this model's parameters may change during the backward pass, tried once."""
        if self.model.reduced:
            return False  # a step changes the master copies, which the module gets later
        if self._fusible is None:
            batch = batches(0)
            try:
                with self._trial("fuse"), Rehearsal(self.model) as rehearsal:
                    self.gradient(*batch, fused=rehearsal)
                self._fusible = True
            except Exception:  # the user's code fed with NaN; an error of its own will recur without
                self._fusible = False
        return self._fusible

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.is_half else nullcontext()

    @contextmanager
    def _trial(self, name: str) -> Iterator[None]:
        """Run with separate random numbers, and restore all values: a forward pass changes BatchNorm's statistics."""
        values = self.model.values.clone()
        try:
            with self._seeded((name,)):
                yield
        finally:
            self.model.put_buffers_back()
            self.model.values.copy_(values)

    @contextmanager
    def _seeded(self, key: tuple[str | int, ...]) -> Iterator[None]:
        """Seed the model's random numbers, and restore the global generators."""
        with seeded(KeyedRandom(self.seed, "train", *key).bits(0) >> 1, self.device):
            yield

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _micro_batches(inputs: Inputs, targets: Tensor, micro_batch: int | None) -> Iterator[tuple[Inputs, Tensor]]:
    """Split a batch into equal parts of at most `micro_batch` samples; None leaves it whole."""
    parts = math.ceil(len(inputs) / micro_batch) if micro_batch else 1
    return zip(inputs.chunk(parts), targets.chunk(parts), strict=True)
