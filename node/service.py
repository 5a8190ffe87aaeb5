"""GPUNodeService: a GPU worker as a library, real or simulated, without a network."""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from numbers import Integral
from typing import Any, NamedTuple

from hypergpu.common.clock import Clock, monotonic
from hypergpu.common.config import SystemConfig
from hypergpu.common.errors import InvalidInput
from hypergpu.common.step_times import StepTimes
from hypergpu.common.tensors import Flat, Manifest
from hypergpu.node.batches import Batches
from hypergpu.node.calibration import step_times as step_times_of_machine
from hypergpu.node.core.gpu import GPUSpecs
from hypergpu.node.core.memory import require_batch_size
from hypergpu.node.core.metrics_collector import MetricsCollector
from hypergpu.node.device import UsageMeter
from hypergpu.node.parameters import Parameters, flattened
from hypergpu.node.trainer import Trainer
from hypergpu.node.worker import Worker
from hypergpu.tasks import Task
from hypergpu.tasks.partition import ShardOrder


class StepResult(NamedTuple):
    """Result of `train_step`; unpacks as `gradients, metrics = node.train_step()`."""

    gradients: dict[str, Flat]
    """Gradients of the mean loss by name of the parameter: views of one flat buffer that the caller owns."""
    metrics: dict[str, float | None]
    """`step`, `loss`, `accuracy` (the task's metric; None if it is undefined), `grad_norm`, `samples`;
    `step_time`, `forward_time`, `backward_time` in seconds."""


class GPUNodeService:
    """A GPU worker as a library: a model, a card, a stream of samples, and measurements.

    >>> node = GPUNodeService("node_0", "T4", SystemConfig())
    >>> node.initialize(None, None, shard_id=0)
    >>> gradients, metrics = node.train_step()

    Args:
        node_id: unique in the cluster.
        gpu_specs: name of a preset, a mapping (see `specs_from`) or `GPUSpecs`; `auto` is the real machine.
        config: a `SystemConfig`; None is the default one.
        task: task to train; by default the one that `config.training.task` names.
        shard_count: number of shards; needed if the node takes its samples from the task.
        metrics: collector to use; by default a new one.
        sleep: waits as a slower card would; called with seconds.
        clock: time in seconds that throttling and stragglers are based on.
        timer: time in seconds that measures real steps.
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
        shard_count: int | None = None,
        metrics: MetricsCollector | None = None,
        sleep: Callable[[float], object] = time.sleep,
        clock: Clock = monotonic,
        timer: Clock = time.perf_counter,
        step_times: Callable[[Trainer, float], StepTimes] = step_times_of_machine,
    ) -> None:
        self.worker = Worker(
            node_id,
            gpu_specs,
            config,
            task=task,
            metrics=metrics,
            sleep=sleep,
            clock=clock,
            timer=timer,
            step_times=step_times,
        )
        self.batch_size: int | None = None
        """Samples of the next step; None takes batches as the loader yields them."""
        self._shard_count = shard_count
        self._usage = UsageMeter(self.specs)
        self._accumulate = False
        self._batches: Batches | None = None

    @property
    def node_id(self) -> str:
        """Name of the node."""
        return self.worker.node_id

    @property
    def config(self) -> SystemConfig:
        """Settings of the node and the run."""
        return self.worker.config

    @property
    def specs(self) -> GPUSpecs:
        """The card, real or simulated."""
        return self.worker.specs

    @property
    def metrics(self) -> MetricsCollector:
        """History of steps, calls and usage."""
        return self.worker.metrics

    def initialize(
        self,
        parameters: Parameters | None = None,
        data_loader: Iterable[Any] | None = None,
        shard_id: int = 0,
    ) -> None:
        """Make the model, measure it on this machine, and set parameters and samples.

        Args:
            parameters: see `update_parameters`; None keeps the initial ones of the seed.
            data_loader: a `DataLoader`, or any iterable of (inputs, targets); None takes shard `shard_id` of the task's
                training samples.
            shard_id: 0 to shard_count - 1.

        Raises:
            InvalidInput: a shard outside the range, an invalid task or an invalid loader.
            ProtocolError: parameters that do not match the model.
            OutOfMemory: the current batch size, or even one sample, does not fit the card.
        """
        whole = isinstance(shard_id, Integral) and not isinstance(shard_id, bool)
        shards = self._shard_count or (int(shard_id) + 1 if whole else 1)
        if not whole or not 0 <= shard_id < shards:
            bound = f"0 to {self._shard_count - 1}" if self._shard_count else "0 or above"
            raise InvalidInput(f"shard {shard_id!r} is outside the range: {bound}")
        trainer = self.worker.trainer
        if data_loader is None:
            training = self.config.training
            order = self.worker.shard(training.partition, shard_id, shards, training.seed, training.dirichlet_alpha)
            data_loader = self._own_samples(order)
        self._batches = Batches(data_loader)
        memory = self.worker.measure()
        if self.batch_size is not None and not self._accumulate:
            memory.require(self.batch_size, self.specs)
        if parameters is not None:
            self.update_parameters(parameters)
        trainer.model.gradients.zero_()

    def train_step(self) -> StepResult:
        """Run one forward and backward pass and return gradients and metrics; the parameters do not change.

        Raises:
            InvalidInput: not initialised, or the data loader ended early or yields samples that do not fit the model.
            Unavailable: the data loader's source is out of order; three attempts were made.
            OutOfMemory: a batch from the loader does not fit the card.
            NonFiniteUpdate: NaN or infinity in the loss or the gradients; carries the step.
        """
        worker = self.worker
        if self._batches is None:
            raise InvalidInput(
                f"{self.node_id}: call initialize(parameters, data_loader, shard_id) before train_step()"
            )
        began = worker.timer()
        try:
            batches = self._batches
            inputs, targets = worker.read(lambda: batches.take(self.batch_size))
            micro_batch = worker.micro_batch(len(inputs), accumulate=self._accumulate)
            step = worker.trainer.gradient(inputs, targets, step=worker.steps, micro_batch=micro_batch)
        except Exception as error:
            worker.last_error = str(error)
            raise
        worker.pace(step, worker.timer() - began)
        metrics = worker.record(step, worker.timer() - began)
        model = worker.trainer.model
        flat = model.gradients.to("cpu", copy=True).numpy()
        parameters = Manifest(
            tuple(tensor for tensor, start in model.manifest.offsets() if start < model.parameter_count)
        )
        return StepResult(parameters.views(flat), metrics)

    def update_parameters(self, parameters: Parameters) -> None:
        """Set the parameters.

        Args:
            parameters: a mapping by name (such as a `state_dict`), a list in the order of the model's manifest, one
                flat buffer, or a Module of the same shape.

        Raises:
            ProtocolError: missing, unexpected or misshaped tensors; the message names them.
            NonFiniteUpdate: NaN or infinity in the parameters.
        """
        model = self.worker.trainer.model
        model.load(flattened(parameters, model))

    def update_batch_size(self, n: int, *, accumulate: bool = False) -> None:
        """Set the number of samples per step.

        Args:
            n: at least 1.
            accumulate: train a batch that exceeds the card's memory in parts that add up to the same gradient.

        Raises:
            InvalidInput: not a whole number of at least 1.
            OutOfMemory: the batch does not fit, and `accumulate` is false; carries the largest batch that fits.
        """
        require_batch_size(n)
        if self.worker.largest_batch is not None and not accumulate:
            self.worker.measure().require(n, self.specs)
        self.batch_size, self._accumulate = int(n), accumulate

    def health_check(self) -> dict[str, Any]:
        """Return whether the node can train (`healthy`, `status`, `reason`) and the state of its card."""
        usage = self._usage.read()
        self.metrics.record_resource_usage(usage.gpu_util, usage.memory_mb)
        worker = self.worker
        status = "not initialized" if not worker.is_prepared else "failing" if worker.last_error else "ready"
        return {
            "node_id": self.node_id,
            "healthy": status == "ready",
            "status": status,
            "reason": worker.last_error,
            "gpu": self.specs.name,
            "simulated": self.specs.simulated,
            "device": str(worker.trainer.device) if worker.is_prepared else "",
            "gpu_util": usage.gpu_util,
            "memory_mb": usage.memory_mb,
            "memory_total_mb": self.specs.memory_mb,
            "steps": worker.steps,
            "batch_size": self.batch_size,
            "largest_batch": worker.largest_batch,
            "anomalies": [anomaly.kind for anomaly in self.metrics.detect_anomalies()],
        }

    def get_metrics_summary(self) -> dict[str, Any]:
        """Return all measurements: `training`, `network`, `resources`, `contribution`, `anomalies`."""
        return {
            "node_id": self.node_id,
            "gpu": self.specs.name,
            "training": self.metrics.get_training_summary(),
            "network": self.metrics.get_network_summary(),
            "resources": self.metrics.get_resource_summary(),
            "contribution": self.metrics.get_contribution_metrics(),
            "anomalies": [asdict(anomaly) for anomaly in self.metrics.detect_anomalies()],
        }

    def _own_samples(self, order: ShardOrder) -> Iterable[Any]:
        size = self.config.training.batch_size
        for cursor in itertools.count(step=size):
            yield self.worker.trainer.samples(order.take(cursor, size))
