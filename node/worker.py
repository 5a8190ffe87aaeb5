"""The computing part of a node: a task's model on a device, real or simulated, that does work units."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog
import torch

from hypergpu.common.clock import Clock, monotonic
from hypergpu.common.config import SystemConfig
from hypergpu.common.data_report import DataReport
from hypergpu.common.errors import InvalidInput
from hypergpu.common.identity import TaskIdentity
from hypergpu.common.node_terms import NodeTerms
from hypergpu.common.retry import retry
from hypergpu.common.step_times import StepTimes
from hypergpu.common.tensors import Flat, Manifest
from hypergpu.node.calibration import step_times as step_times_of_machine
from hypergpu.node.core.compute import ComputeModel, Lateness
from hypergpu.node.core.gpu import GPUSpecs, specs_from
from hypergpu.node.core.memory import MemoryModel, require_batch_size
from hypergpu.node.core.metrics_collector import MetricsCollector
from hypergpu.node.device import detect, numerics
from hypergpu.node.optimizers import LocalTraining
from hypergpu.node.step_timing import quick_step_times
from hypergpu.node.trainer import Step, Trainer, Update
from hypergpu.tasks import Task, load_task
from hypergpu.tasks.identity import identity_of
from hypergpu.tasks.inputs import Inputs
from hypergpu.tasks.local_samples import data_report, require_partition, with_local_samples
from hypergpu.tasks.partition import LOCAL, LocalPartition, Partition, ShardOrder, partition
from hypergpu.tasks.samples import count, labels

log = structlog.get_logger()

_MEASURED_SAMPLES = 16
"""Samples of the measurement of activations: enough for BatchNorm, few enough for any card."""


@dataclass
class _PreparedTask:
    """A task's model and what was measured of it."""

    trainer: Trainer
    run: tuple[str, int, str]
    """Name of the task, seed, and partition."""
    data_report: DataReport | None = None
    """Report about the samples that the node alone holds; None if it gives none."""
    identity: TaskIdentity | None = None
    """Identity of the untrained model and the data; None if it was not asked for before training."""
    memory: MemoryModel | None = None
    card: "SimulatedCard | None" = None
    """None on a real device, and before the measurement."""
    step_times: StepTimes | None = None
    """Time of its steps; None before the measurement, and where a step takes long."""
    partition: tuple[tuple[Any, ...], Partition] | None = None
    """The last partition, with its scheme, number of shards, seed and alpha."""


class SimulatedCard:
    """Makes steps on this machine take as long as on another card.

    Args:
        specs: the simulated card.
        compute: its step times.
        clock: time that throttling and stragglers are based on.
    """

    def __init__(self, specs: GPUSpecs, compute: ComputeModel, clock: Clock) -> None:
        self.compute = compute
        self._specs, self._clock = specs, clock
        self._lateness = Lateness()

    def wait(self, number: int, step: Step, elapsed_seconds: float, sleep: Callable[[float], object]) -> None:
        """Sleep for the rest of step `number` if the simulated card would need longer than `elapsed_seconds`."""
        simulated = self.compute.step_seconds(number, step.samples, self._clock(), step.optimizer_time)
        late = self._lateness.add(elapsed_seconds, simulated)
        if late is not None:
            log.warning(
                "this machine is too slow or too busy to simulate the card: real steps take longer than simulated ones",
                gpu=self._specs.name,
                real_seconds=late[0],
                simulated_seconds=late[1],
                batch_size=step.samples,
                fix="run fewer nodes here, or simulate a slower card",
            )
        if simulated > elapsed_seconds:
            sleep(simulated - elapsed_seconds)


class Worker:
    """A task's model on a device: prepares it, measures it, trains it, and records each step.

    Args:
        node_id: unique in the cluster.
        gpu_specs: name of a preset, a mapping (see `specs_from`) or `GPUSpecs`; `auto` is the real machine.
        config: settings of the node and the run.
        task: task to train; by default the one that `config.training.task` or `prepare` names.
        metrics: receives a record of each step.
        sleep: waits as a slower card would; called with seconds.
        clock: time that throttling and stragglers are based on.
        timer: measures real steps.
        step_times: returns the step times of the fastest preset, given a trainer and the memory of one sample.

    Raises:
        InvalidInput: an empty node id, or invalid specs (UnknownName for an unknown preset).
    """

    def __init__(
        self,
        node_id: str,
        gpu_specs: GPUSpecs | str | Mapping[str, Any] = "auto",
        config: SystemConfig | None = None,
        *,
        task: Task | None = None,
        metrics: MetricsCollector | None = None,
        sleep: Callable[[float], object] = time.sleep,
        clock: Clock = monotonic,
        timer: Clock = time.perf_counter,
        step_times: Callable[[Trainer, float], StepTimes] = step_times_of_machine,
    ) -> None:
        if not node_id or not isinstance(node_id, str):
            raise InvalidInput(f"a node needs a name, not {node_id!r}")
        if config is not None and not isinstance(config, SystemConfig):
            raise InvalidInput(f"{node_id}: config must be a SystemConfig, not a {type(config).__name__}")
        self.config = config or SystemConfig()
        self.specs = detect() if gpu_specs == "auto" else specs_from(gpu_specs)
        self.metrics = metrics or MetricsCollector(node_id, self.config.node.history_size)
        self.steps = 0
        """Steps so far; the number of the next one."""
        self.last_error = ""
        """Error of the last step; empty if it succeeded."""
        self.timer = timer
        self._task = task
        self._sleep, self._clock, self._step_times = sleep, clock, step_times
        self._prepared: _PreparedTask | None = None

    @property
    def node_id(self) -> str:
        """Name of the node."""
        return self.metrics.node_id

    @property
    def is_prepared(self) -> bool:
        """True if the model has been made."""
        return self._prepared is not None

    @property
    def trainer(self) -> Trainer:
        """The model on its device, made on first use."""
        return self._current().trainer

    @property
    def manifest(self) -> Manifest:
        """Tensors of the model's flat buffer."""
        return self.trainer.model.manifest

    @property
    def compute(self) -> ComputeModel | None:
        """Step times of the simulated card, to throttle or slow down; None on a real one, or before `measure`."""
        card = self._prepared.card if self._prepared else None
        return card.compute if card else None

    @property
    def identity(self) -> TaskIdentity | None:
        """Identity of the data and the model, to compare with the coordinator's; None before `prepare`."""
        return self._prepared.identity if self._prepared else None

    @property
    def data_report(self) -> DataReport | None:
        """Report about the samples that this node alone holds; None before `prepare`, and if it gives none."""
        return self._prepared.data_report if self._prepared else None

    @property
    def numerics(self) -> str:
        """Kind of the machine, by what its rounding depends on; empty before `prepare`."""
        trainer = self._prepared.trainer if self._prepared else None
        return numerics(trainer.device, "bfloat16" if trainer.is_half else "float32") if trainer else ""

    @property
    def terms(self) -> NodeTerms:
        """Price and priority class of the node."""
        return NodeTerms(self.config.node.price_per_hour, self.config.node.priority)

    @property
    def largest_batch(self) -> int | None:
        """Most samples that fit the card; None before `measure`."""
        memory = self._prepared.memory if self._prepared else None
        return memory.largest_batch(self.specs) if memory else None

    @property
    def step_times(self) -> StepTimes | None:
        """Time of its steps, to announce to the coordinator; None before `measure`, and where a step takes long."""
        return self._prepared.step_times if self._prepared else None

    def prepare(self, task: str, seed: int, partition: str = "iid") -> None:
        """Make the model of a run and measure it, unless that was done already.

        Args:
            task: name of the task.
            seed: seed of the run.
            partition: of the training samples; with `local`, those that the task gives this node alone are loaded.

        Raises:
            UnknownName, InvalidInput: a task that cannot be loaded, or that has no samples for this node.
            OutOfMemory: not even one sample fits the card.
        """
        prepared = self._prepared
        if prepared is None or prepared.run != (task, seed, partition) or prepared.identity is None:
            prepared = self._make(task, seed, partition)  # anew if it exists: the identity is of the untrained model
            trainer, is_local = prepared.trainer, partition == LOCAL
            prepared.identity = identity_of(trainer.task, trainer.model, seed, is_local=is_local)
        self.measure()

    def measure(self) -> MemoryModel:
        """Measure activations and step time on a few samples, once; return the memory that training needs.

        Raises:
            OutOfMemory: not even one sample fits the card.
        """
        prepared = self._current()
        if prepared.memory is not None:
            return prepared.memory
        trainer = prepared.trainer
        few = trainer.samples(range(min(_MEASURED_SAMPLES, count(trainer.task.train))))
        memory = MemoryModel(trainer.model.manifest.total_bytes, trainer.measure_activations(*few))
        memory.require(1, self.specs)
        trainer.time_step(*few)  # the first pass of a process is slow, and would be taken for the node's speed
        if self.specs.simulated:
            times = self._step_times(trainer, memory.activation_bytes)
            compute = ComputeModel(
                self.specs,
                seconds_per_step=times.seconds_per_step,
                seconds_per_sample=times.seconds_per_sample,
                spread=self.config.node.compute_spread,
                seed=self.config.training.seed,
                node_id=self.node_id,
            )
            prepared.card = SimulatedCard(self.specs, compute, self._clock)
            prepared.step_times = compute.step_times
        else:
            prepared.step_times = self._timed(trainer, memory.largest_batch(self.specs))
        prepared.memory = memory
        return memory

    def shard(self, scheme: str, index: int, shards: int, seed: int, alpha: float) -> ShardOrder:
        """Return the order of the samples of one shard, or with the scheme `local` of the node's own samples.

        Raises:
            InvalidInput: an index outside the range, or a partition that is impossible for these samples.
        """
        if not 0 <= index < shards:
            raise InvalidInput(f"shard {index} is outside the range: 0 to {shards - 1}")
        prepared = self._current()
        train = prepared.trainer.task.train
        if scheme == LOCAL:
            return ShardOrder(LocalPartition(count(train), self.node_id, seed), 0)
        key = (scheme, shards, seed, alpha)
        if prepared.partition is None or prepared.partition[0] != key:
            samples = count(train) if scheme == "iid" else labels(train)
            prepared.partition = (key, partition(scheme, samples, shards, seed, alpha=alpha))
        return ShardOrder(prepared.partition[1], index)

    def work(
        self,
        parameters: Flat,
        order: ShardOrder,
        cursor: int,
        *,
        batch_size: int,
        local_steps: int,
        local: LocalTraining,
        key: tuple[str | int, ...],
        abandon: threading.Event | None = None,
    ) -> Update:
        """Do a work unit, see `Trainer.work`: at the pace of a simulated card, in parts where a batch does not fit.

        Args:
            parameters: shape (manifest.size,).
            order: samples of the shard, from `cursor` on.
            cursor: samples of the shard that were used before.
            batch_size: samples per step.
            local_steps: at least 1.
            local: how each step changes the parameters.
            key: identifies the work for its random numbers.
            abandon: ends the work at the next step, or the next wait, when it is set.

        Raises:
            InvalidInput: an impossible batch size, number of steps or learning rate, or an unknown optimizer.
            Unavailable: the samples cannot be read; three attempts were made.
            NonFiniteUpdate, ProtocolError, WorkAbandoned: see `Trainer.work`.
        """
        require_batch_size(batch_size)
        trainer = self.trainer
        sleep: Callable[[float], object] = abandon.wait if abandon else self._sleep
        began = self.timer()

        def batches(index: int) -> tuple[Inputs, torch.Tensor]:
            nonlocal began
            began = self.timer()
            indices = order.take(cursor + index * batch_size, batch_size)
            return retry(lambda: trainer.samples(indices), sleep)

        def after_step(step: Step) -> None:
            self.pace(step, self.timer() - began, sleep)
            self.record(step, self.timer() - began)

        with self._keeping_last_error():
            return trainer.work(
                parameters,
                batches,
                local_steps=local_steps,
                local=local,
                key=key,
                micro_batch=self.micro_batch(batch_size, accumulate=True),
                after_step=after_step,
                abandon=abandon,
            )

    def read(self, take: Callable[[], tuple[Inputs, torch.Tensor]]) -> tuple[Inputs, torch.Tensor]:
        """Return the samples that `take` reads, retried while their source is out of order."""
        return retry(take, self._sleep)

    def pace(self, step: Step, elapsed_seconds: float, sleep: Callable[[float], object] | None = None) -> None:
        """Wait until the simulated card would be done with a step that took `elapsed_seconds`."""
        card = self._prepared.card if self._prepared else None
        if card is not None:
            card.wait(self.steps, step, elapsed_seconds, sleep or self._sleep)

    def record(self, step: Step, step_time: float) -> dict[str, float | None]:
        """Record a step, and return its metrics by name."""
        self.metrics.record_training_step(
            self.steps,
            step.loss,
            step.grad_norm,
            step_time,
            step.metric,
            step.forward_time,
            step.backward_time,
            step.samples,
        )
        metrics: dict[str, float | None] = {
            "step": self.steps,
            "loss": step.loss,
            "accuracy": step.metric,
            "grad_norm": step.grad_norm,
            "samples": step.samples,
            "batch_size": step.samples,
            "step_time": step_time,
            "forward_time": step.forward_time,
            "backward_time": step.backward_time,
        }
        self.steps += 1
        self.last_error = ""
        return metrics

    def micro_batch(self, batch_size: int, *, accumulate: bool) -> int | None:
        """Return the size of the parts of a batch that exceeds the card's memory; None if it fits.

        Raises:
            OutOfMemory: the batch does not fit, and is not to be accumulated.
        """
        memory = self.measure()
        if not accumulate:
            memory.require(batch_size, self.specs)
        largest = memory.largest_batch(self.specs)
        return None if batch_size <= largest else largest

    @contextmanager
    def _keeping_last_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.last_error = str(error)
            raise
        self.last_error = ""

    def _timed(self, trainer: Trainer, most_samples: int) -> StepTimes | None:
        samples = count(trainer.task.train)

        def time_step(batch_size: int) -> float:
            return trainer.time_step(*trainer.samples(range(batch_size))).wall_seconds

        return quick_step_times(time_step, min(samples, most_samples))

    def _current(self) -> _PreparedTask:
        if self._prepared is not None:
            return self._prepared
        training = self.config.training
        return self._make(training.task, training.seed, training.partition)

    def _make(self, task: str, seed: int, partition: str) -> _PreparedTask:
        device = "cuda" if not self.specs.simulated and torch.cuda.is_available() else "cpu"
        loaded, report = self._task or load_task(task, seed), None
        if partition == LOCAL:
            loaded = with_local_samples(loaded, self.node_id, seed)
            report = data_report(loaded.train, self.config.node.report_data)
        else:
            require_partition(loaded, partition)
        trainer = Trainer(loaded, seed, device, self.config.node.precision)
        self._prepared = prepared = _PreparedTask(trainer, (task, seed, partition), report)
        return prepared
