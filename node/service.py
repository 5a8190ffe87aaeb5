"""GPUNodeService: a GPU worker as a library, real where there is a card and simulated where there is none."""

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from numbers import Integral
from typing import Any, NamedTuple

import structlog
import torch

from hypergpu.common.clock import Clock, monotonic
from hypergpu.common.config import SystemConfig
from hypergpu.common.errors import InvalidInput
from hypergpu.common.identity import TaskIdentity
from hypergpu.common.retry import retry
from hypergpu.common.tensors import Flat, Manifest
from hypergpu.node.batches import Batches
from hypergpu.node.calibration import step_times as step_times_of_machine
from hypergpu.node.core.compute import ComputeModel, Lateness, StepTimes
from hypergpu.node.core.gpu import GPUSpecs, specs_from
from hypergpu.node.core.memory import MemoryModel, require_batch_size
from hypergpu.node.core.metrics_collector import MetricsCollector
from hypergpu.node.device import UsageMeter, detect
from hypergpu.node.parameters import Parameters, flattened
from hypergpu.node.trainer import Step, Trainer, Update
from hypergpu.tasks import Task, load_task
from hypergpu.tasks.identity import identity_of
from hypergpu.tasks.partition import Partition, ShardOrder, partition
from hypergpu.tasks.samples import count, labels

log = structlog.get_logger()


class StepResult(NamedTuple):
    """What `train_step` gives back: unpacks as `gradients, metrics = node.train_step()`."""

    gradients: dict[str, Flat]
    """Of the mean loss, by the parameter's name; views into one flat buffer that is the caller's to keep."""
    metrics: dict[str, float | None]
    """`step`, `loss`, `accuracy` (the task's metric; None where it is undefined), `grad_norm`, `samples`;
    `step_time`, `forward_time`, `backward_time` in seconds."""


class GPUNodeService:
    """One worker: a model, a card, a stream of samples, and what was measured.

    >>> node = GPUNodeService("node_0", "T4", SystemConfig())
    >>> node.initialize(None, None, shard_id=0)
    >>> gradients, metrics = node.train_step()

    Args:
        node_id: unique in the cluster.
        gpu_specs: a preset's name, a mapping (see `specs_from`) or `GPUSpecs`; `auto` is the machine as it is.
        config: a `SystemConfig`; None is the default one.
        task: what to train; by default the one that `config.training.task` names.
        shard_count: of how many shards `shard_id` is one; needed where the node takes its samples from the task.
        sleep: waits as a slower card would; called with seconds.
        clock: in seconds; what throttling and stragglers are timed by.
        timer: in seconds; what real steps are timed by.
        step_times: gives the step times of the fastest preset, from a model and the memory that one sample takes.

    Raises:
        InvalidInput: an empty node id, or specs that don't hold (UnknownName for a preset that doesn't exist).
    """

    def __init__(
        self,
        node_id: str,
        gpu_specs: GPUSpecs | str | Mapping[str, Any] = "auto",
        config: SystemConfig | None = None,
        *,
        task: Task | None = None,
        shard_count: int | None = None,
        metrics: MetricsCollector | None = None,
        sleep: Callable[[float], object] = time.sleep,
        clock: Clock = monotonic,
        timer: Clock = time.perf_counter,
        step_times: Callable[[Trainer, float], StepTimes] = step_times_of_machine,
    ) -> None:
        if not node_id or not isinstance(node_id, str):
            raise InvalidInput(f"a node needs a name, not {node_id!r}")
        if config is not None and not isinstance(config, SystemConfig):
            raise InvalidInput(f"{node_id}: config is a SystemConfig, not a {type(config).__name__}")
        self.node_id = node_id
        self.config = config or SystemConfig()
        self.specs = detect() if gpu_specs == "auto" else specs_from(gpu_specs)
        self.metrics = metrics or MetricsCollector(node_id, self.config.node.history_size)
        self.batch_size: int | None = None
        """Samples of the next step; None takes batches as the loader gives them."""
        self._task, self._shard_count = task, shard_count
        self._sleep, self._clock, self._timer = sleep, clock, timer
        self._step_times, self._lateness = step_times, Lateness()
        self._usage = UsageMeter(self.specs)
        self._accumulate = False
        self._step = 0
        self._last_error = ""
        self._batches: Batches | None = None
        self._trainer: Trainer | None = None
        self._run: tuple[str, int] | None = None
        self._identity: TaskIdentity | None = None
        self._memory: MemoryModel | None = None
        self._compute: ComputeModel | None = None
        self._partition: tuple[tuple[Any, ...], Partition] | None = None

    def initialize(
        self,
        parameters: Parameters | None = None,
        data_loader: Iterable[Any] | None = None,
        shard_id: int = 0,
    ) -> None:
        """Make the model, measure it on this machine, and take parameters and samples.

        Args:
            parameters: as `update_parameters`; None keeps those that the seed gives.
            data_loader: a `DataLoader`, or any iterable of (inputs, targets); None takes shard `shard_id` of the task's
                training samples.
            shard_id: 0 to shard_count - 1.

        Raises:
            InvalidInput: a shard outside the range, a task or a loader that doesn't hold.
            ProtocolError: parameters that don't match the model.
            OutOfMemory: the batch size that was set, or not even one sample, does not fit the card.
        """
        whole = isinstance(shard_id, Integral) and not isinstance(shard_id, bool)
        shards = self._shard_count or (int(shard_id) + 1 if whole else 1)
        if not whole or not 0 <= shard_id < shards:
            bound = f"0 to {self._shard_count - 1}" if self._shard_count else "0 or above"
            raise InvalidInput(f"shard {shard_id!r} is outside the range: {bound}")
        trainer = self.trainer
        if data_loader is None:
            training = self.config.training
            order = self.shard(training.partition, shard_id, shards, training.seed, training.dirichlet_alpha)
            data_loader = self._own_samples(order)
        self._batches = Batches(data_loader)
        memory = self.measure()
        if self.batch_size is not None and not self._accumulate:
            memory.require(self.batch_size, self.specs)
        if parameters is not None:
            self.update_parameters(parameters)
        trainer.model.gradients.zero_()

    def train_step(self) -> StepResult:
        """One forward and backward pass: the gradients, and what was measured. The parameters stay as they are.

        Raises:
            InvalidInput: not initialised, or the data loader ended early or yields what the model does not take.
            Unavailable: the data loader's source is out of order; three attempts were made.
            OutOfMemory: a batch from the loader does not fit the card.
            NonFiniteUpdate: NaN or infinity; carries the step.
        """
        trainer = self.trainer
        if self._batches is None:
            raise InvalidInput(
                f"{self.node_id}: call initialize(parameters, data_loader, shard_id) before train_step()"
            )
        began = self._timer()
        try:
            batches = self._batches
            inputs, targets = retry(lambda: batches.take(self.batch_size), self._sleep)
            micro_batch = self._micro_batch(len(inputs), accumulate=self._accumulate)
            step = trainer.gradient(inputs, targets, step=self._step, micro_batch=micro_batch)
        except Exception as error:
            self._last_error = str(error)
            raise
        self.pace(step, self._timer() - began)
        metrics = self.record(step, self._timer() - began)
        model = trainer.model
        flat = model.gradients.to("cpu", copy=True).numpy()
        parameters = Manifest(
            tuple(tensor for tensor, start in model.manifest.offsets() if start < model.parameter_count)
        )
        return StepResult(parameters.views(flat), metrics)

    def update_parameters(self, parameters: Parameters) -> None:
        """Take new parameters.

        Args:
            parameters: by name (a `state_dict` will do), in the order of the model's manifest, as one flat buffer, or
                as a Module of the same shape.

        Raises:
            ProtocolError: missing, extra or wrongly shaped tensors, each named.
            NonFiniteUpdate: NaN or infinity among them.
        """
        model = self.trainer.model
        model.load(flattened(parameters, model))

    def update_batch_size(self, n: int, *, accumulate: bool = False) -> None:
        """Take `n` samples per step from now on.

        Args:
            n: at least 1.
            accumulate: train a batch beyond the card's memory in parts, which add up to the same gradient.

        Raises:
            InvalidInput: n < 1, or not a whole number.
            OutOfMemory: `n` samples don't fit and are not to be accumulated; carries the largest batch that fits.
        """
        require_batch_size(n)
        if self._memory is not None and not accumulate:
            self._memory.require(n, self.specs)
        self.batch_size, self._accumulate = int(n), accumulate

    def health_check(self) -> dict[str, Any]:
        """Whether the node can train: `healthy`, `status`, `reason`, and the state of its card."""
        usage = self._usage.read()
        self.metrics.record_resource_usage(usage.gpu_util, usage.memory_mb)
        status = "not initialized" if self._trainer is None else "failing" if self._last_error else "ready"
        return {
            "node_id": self.node_id,
            "healthy": status == "ready",
            "status": status,
            "reason": self._last_error,
            "gpu": self.specs.name,
            "simulated": self.specs.simulated,
            "device": str(self._trainer.device) if self._trainer else "",
            "gpu_util": usage.gpu_util,
            "memory_mb": usage.memory_mb,
            "memory_total_mb": self.specs.memory_mb,
            "steps": self._step,
            "batch_size": self.batch_size,
            "largest_batch": self.largest_batch,
            "anomalies": [anomaly.kind for anomaly in self.metrics.detect_anomalies()],
        }

    def get_metrics_summary(self) -> dict[str, Any]:
        """All that was measured: `training`, `network`, `resources`, `contribution`, `anomalies`."""
        return {
            "node_id": self.node_id,
            "gpu": self.specs.name,
            "training": self.metrics.get_training_summary(),
            "network": self.metrics.get_network_summary(),
            "resources": self.metrics.get_resource_summary(),
            "contribution": self.metrics.get_contribution_metrics(),
            "anomalies": [asdict(anomaly) for anomaly in self.metrics.detect_anomalies()],
        }

    # ------------------------------------------------------------ what the agent builds on

    @property
    def trainer(self) -> Trainer:
        """The model on its device, made when first asked for."""
        if self._trainer is None:
            self._make(self.config.training.task, self.config.training.seed)
            assert self._trainer is not None
        return self._trainer

    @property
    def compute(self) -> ComputeModel | None:
        """The simulated card, to throttle or slow down; None for a real one, or before `initialize`."""
        return self._compute

    @property
    def identity(self) -> TaskIdentity | None:
        """Figures of the data and the model, to be compared with the coordinator's; None before `prepare`."""
        return self._identity

    @property
    def largest_batch(self) -> int | None:
        """Samples that fit the card; None before `initialize`."""
        return self._memory.largest_batch(self.specs) if self._memory else None

    def prepare(self, task: str, seed: int) -> None:
        """Make the model of a run, and measure it; nothing is done where it is there already.

        Raises:
            UnknownName, InvalidInput: a task that cannot be loaded.
            OutOfMemory: not even one sample fits the card.
        """
        if self._run != (task, seed) or self._identity is None:
            self._make(task, seed)  # anew where it is there already: its identity is that of the untrained model
            self._identity = identity_of(self.trainer.task, self.trainer.model, seed)
        self.measure()

    def measure(self) -> MemoryModel:
        """Measure activations and step time on a few of the task's samples, once; what training takes of the card.

        Raises:
            OutOfMemory: not even one sample fits the card.
        """
        if self._memory is not None:
            return self._memory
        trainer = self.trainer
        few = trainer.samples(range(min(16, count(trainer.task.train))))
        model = trainer.model
        memory = MemoryModel(model.manifest.total_bytes, trainer.measure_activations(*few))
        memory.require(1, self.specs)
        if self.specs.simulated:
            times = self._step_times(trainer, memory.activation_bytes)
            self._lateness = Lateness()
            self._compute = ComputeModel(
                self.specs,
                seconds_per_step=times.seconds_per_step,
                seconds_per_sample=times.seconds_per_sample,
                spread=self.config.node.compute_spread,
                seed=self.config.training.seed,
                node_id=self.node_id,
            )
        self._memory = memory
        return memory

    def shard(self, scheme: str, index: int, shards: int, seed: int, alpha: float) -> ShardOrder:
        """The order of the samples of one shard.

        Raises:
            InvalidInput: an index outside the range, or a partition that does not work for these samples.
        """
        if not 0 <= index < shards:
            raise InvalidInput(f"shard {index} is outside the range: 0 to {shards - 1}")
        key = (scheme, shards, seed, alpha)
        if self._partition is None or self._partition[0] != key:
            train = self.trainer.task.train
            what = count(train) if scheme == "iid" else labels(train)
            self._partition = (key, partition(scheme, what, shards, seed, alpha=alpha))
        return ShardOrder(self._partition[1][index], seed, index)

    def work(
        self,
        parameters: Flat,
        order: ShardOrder,
        cursor: int,
        *,
        batch_size: int,
        local_steps: int,
        learning_rate: float,
        key: tuple[str | int, ...],
        abandon: threading.Event | None = None,
    ) -> Update:
        """A unit of work, as `Trainer.work`; waits as the simulated card would, and accumulates what does not fit.

        Raises:
            InvalidInput: batch size, steps or rate that can't work.
            Unavailable: the samples cannot be read; three attempts were made.
            NonFiniteUpdate, ProtocolError, Abandoned: as `Trainer.work`.
        """
        require_batch_size(batch_size)
        trainer = self.trainer
        began = self._timer()

        def batches(index: int) -> tuple[torch.Tensor, torch.Tensor]:
            nonlocal began
            began = self._timer()
            indices = order.take(cursor + index * batch_size, batch_size)
            return retry(lambda: trainer.samples(indices), abandon.wait if abandon else self._sleep)

        def after_step(step: Step) -> None:
            self.pace(step, self._timer() - began, abandon)
            self.record(step, self._timer() - began)

        try:
            update = trainer.work(
                parameters,
                batches,
                local_steps=local_steps,
                learning_rate=learning_rate,
                key=key,
                micro_batch=self._micro_batch(batch_size, accumulate=True),
                after_step=after_step,
                abandon=abandon,
            )
        except Exception as error:
            self._last_error = str(error)
            raise
        self._last_error = ""
        return update

    def pace(self, step: Step, elapsed: float, abandon: threading.Event | None = None) -> None:
        """Wait for what a simulated card would take beyond `elapsed` seconds."""
        if self._compute is None:
            return
        simulated = self._compute.step_seconds(self._step, step.samples, self._clock())
        late = self._lateness.add(elapsed, simulated)
        if late is not None:
            log.warning(
                "this machine is too slow or too busy to simulate the card: real steps take longer than simulated ones",
                gpu=self.specs.name,
                real_seconds=late[0],
                simulated_seconds=late[1],
                batch_size=step.samples,
                fix="run fewer nodes here, or simulate a slower card",
            )
        if simulated > elapsed:
            (self._sleep if abandon is None else abandon.wait)(simulated - elapsed)

    def record(self, step: Step, step_time: float) -> dict[str, float | None]:
        """Remember a step, and give it as a mapping."""
        self.metrics.record_training_step(
            self._step,
            step.loss,
            step.grad_norm,
            step_time,
            step.metric,
            step.forward_time,
            step.backward_time,
            step.samples,
        )
        metrics: dict[str, float | None] = {
            "step": self._step,
            "loss": step.loss,
            "accuracy": step.metric,
            "grad_norm": step.grad_norm,
            "samples": step.samples,
            "batch_size": step.samples,
            "step_time": step_time,
            "forward_time": step.forward_time,
            "backward_time": step.backward_time,
        }
        self._step += 1
        self._last_error = ""
        return metrics

    # ------------------------------------------------------------ inside

    def _make(self, task: str, seed: int) -> None:
        device = "cuda" if not self.specs.simulated and torch.cuda.is_available() else "cpu"
        self._trainer = Trainer(self._task or load_task(task, seed), seed, device, self.config.node.precision)
        self._identity = None
        self._run, self._memory, self._compute, self._partition = (task, seed), None, None, None

    def _micro_batch(self, batch_size: int, *, accumulate: bool) -> int | None:
        """The parts into which a batch beyond the card's memory is cut; None where it fits."""
        memory = self.measure()
        if not accumulate:
            memory.require(batch_size, self.specs)
        largest = memory.largest_batch(self.specs)
        return None if batch_size <= largest else largest

    def _own_samples(self, order: ShardOrder) -> Iterable[Any]:
        size = self.config.training.batch_size
        for cursor in itertools.count(step=size):
            yield self.trainer.samples(order.take(cursor, size))
