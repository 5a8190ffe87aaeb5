"""Training by real gradients, with the trainer that the nodes use and the model that the coordinator uses."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hypergpu.common.config import AggregationConfig, TrainingConfig
from hypergpu.common.config.compression import CompressionConfig
from hypergpu.common.data_report import DataReport, ReportedData
from hypergpu.common.local_optimizer import LocalOptimizer
from hypergpu.common.metric import MetricSpec
from hypergpu.common.tensors import Flat, Payload
from hypergpu.coordinator.core.model.fragment_sendings import ModelSendings, OutgoingModel, sendings_of
from hypergpu.coordinator.core.model.global_model import PLAIN_MEAN, GlobalModel
from hypergpu.coordinator.core.model.outgoing import Sending
from hypergpu.coordinator.core.model.robust_mean import robust_mean
from hypergpu.coordinator.core.model.sketch import Sketch
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.update_norms import FACTOR
from hypergpu.coordinator.gains import Gains
from hypergpu.coordinator.initial_model import initial_values
from hypergpu.node.core.update_encoder import EncodedUpdate, UpdateEncoder
from hypergpu.node.optimizers import KeptState
from hypergpu.node.trainer import Trainer, Update
from hypergpu.simulation.adversaries import Adversaries
from hypergpu.simulation.attacks import Byzantine
from hypergpu.simulation.compute import optimizer_share
from hypergpu.simulation.node_fragments import NodeFragments
from hypergpu.simulation.node_samples import NodeSamples
from hypergpu.simulation.scenario import ComputeTimes
from hypergpu.tasks import Evaluation, Task, build, evaluate, metric_of, spec_of
from hypergpu.tasks.inputs import Inputs
from hypergpu.tasks.own_type import with_own_type
from hypergpu.tasks.partition import Partition, ShardOrder, partition
from hypergpu.tasks.samples import count, labels
from hypergpu.tasks.saved import SavedModel

Batches = Callable[[int], tuple[Inputs, Tensor]]
"""Function that returns the samples of a step, and their labels."""


@dataclass(frozen=True, slots=True)
class _Memory:
    """Memory of a node's process between its work units."""

    encoder: UpdateEncoder
    """With its residual."""
    optimizer: KeptState
    fragments: NodeFragments | None
    """Values of the fragments; None where rounds synchronise the whole model."""


class _Sent:
    """Parameters as nodes receive them: of the open round, and of those that late units and spot checks begin with."""

    def __init__(self, model: GlobalModel, config: TrainingConfig) -> None:
        self.planner = sendings_of(config)
        self.kept: dict[tuple[int, str], Flat] = {}
        """Parameters by round and codec."""
        self._outgoing = OutgoingModel(model)
        self._payloads: dict[Sending, Payload] = {}

    def begin_round(self, number: int) -> None:
        """Encode the present parameters."""
        self._outgoing.begin_round(self.planner.begin_round(number))
        self._payloads.clear()

    def payload(self, sending: Sending) -> Payload:
        """Return the payload of a node, which stays as it is."""
        if sending not in self._payloads:
            self._payloads[sending] = self._outgoing.payload(sending).copy()
        return self._payloads[sending]

    def received(self, round_number: int, codec: str) -> Flat:
        """Return the parameters that the nodes of a round have after decoding."""
        values = self.kept.get((round_number, codec))
        return self._outgoing.received(codec) if values is None else values

    def keep(self, wanted: Collection[tuple[int, str]]) -> None:
        """Keep what the nodes of these rounds received, by codec, and nothing else."""
        kept = {key: values for key, values in self.kept.items() if key in wanted}
        new = {key: self._outgoing.received(key[1]).copy() for key in wanted if key not in kept}
        self.kept = kept | new


class GradientBackend:
    """Real gradients of a task, by the trainer that the nodes use; deterministic on one thread.

    A work unit is done when its update arrives and is wanted: what comes too late costs nothing. Until then the
    parameters of its round have not changed, or `keep_parameters` has kept them.

    Args:
        task: the task.
        config: its training.
        times: computing times, for the share that an optimizer has in them.
        reported: figures that nodes report of the samples that they alone hold.
        aggregation: how the updates of a round become one.
        attacks: attack of each hostile node.
    """

    def __init__(
        self,
        task: Task,
        config: TrainingConfig,
        times: ComputeTimes | None = None,
        *,
        reported: ReportedData = "none",
        aggregation: AggregationConfig = PLAIN_MEAN,
        attacks: Mapping[str, Byzantine] | None = None,
    ) -> None:
        self._config = config
        self._times = times or ComputeTimes()
        self._trainer = Trainer(task, config.seed, metric_failed=lambda _: None)  # evaluations report it
        model = self._trainer.model
        self.metric: MetricSpec = spec_of(metric_of(task, model.module))
        """Metric of the model."""
        self._evaluation: Evaluation | None = None
        self._model = GlobalModel(
            model.manifest, model.flat(), model.parameter_count, config, aggregation, secret=config.seed
        )
        if config.initial_model:
            saved = SavedModel(build(task, config.seed))
            self._model.restore(initial_values(Path(config.initial_model), saved), None)
        self._sent = _Sent(self._model, config)
        self._own = NodeSamples(task, config.seed, reported) if config.data_is_local else None
        self._adversaries = None
        if attacks:
            self._adversaries = Adversaries(attacks, partial(_aggregate, aggregation), config.seed, self._received)
        self._dealt: tuple[int, Partition, dict[int, ShardOrder]] | None = None
        """Number of shards, and their samples."""
        self._nodes: dict[str, _Memory] = {}
        self._trained: tuple[ev.UpdateArrived, EncodedUpdate] | None = None
        """Update that was trained last."""

    def compression(self, configured: CompressionConfig) -> CompressionConfig:
        """Return the settings of the model's transfers."""
        return with_own_type(configured, self._trainer.model)

    @property
    def model_bytes(self) -> int:
        """Size of the flat buffer that is sent."""
        return self._model.manifest.total_bytes

    def payload_bytes(self, codec: str, fragments: tuple[int, ...] = ()) -> int:
        """Return the size of parameters or an update in a codec; without `fragments`, of the whole model."""
        return self._model.payload_format(codec, fragments).payload_bytes

    @property
    def sendings(self) -> ModelSendings:
        """Planner of the form in which parameters are sent."""
        return self._sent.planner

    def begin_round(self, number: int, nodes: Sequence[str] = ()) -> None:
        """Encode the parameters of the round that opens."""
        self._model.begin_round(number, nodes)
        self._sent.begin_round(number)

    def payload(self, sending: Sending) -> Payload | None:
        """Return the payload of a node; None where all nodes hold the same."""
        return self._sent.payload(sending) if sending.fragments else None

    def received(self, node: str, sending: Sending, payload: Payload | None) -> None:
        """Let a node hold what it has received."""
        fragments = self._memory_of(node).fragments
        if fragments is not None and payload is not None:
            fragments.receive(sending, self._model.payload_format(sending.codec, sending.fragments), payload)

    def assigned(self, order: ev.WorkAssigned) -> None:
        """Let hostile nodes know what the others have to do."""
        if self._adversaries is not None:
            self._adversaries.assigned(order)

    def begun(self, order: ev.WorkAssigned) -> None:
        """Make the update of a work unit by what its node holds now."""
        fragments = self._memory_of(order.node).fragments
        if fragments is not None:
            fragments.begin(order)

    def computed(self, order: ev.WorkAssigned) -> None:
        """Train a work unit now where its node goes on with what it made of the other fragments."""
        fragments = self._memory_of(order.node).fragments
        if fragments is not None:
            fragments.compute(order, self._work)

    def process_started(self, node: str) -> None:
        """Forget the residual of a node, and the state of its optimizer."""
        self._nodes.pop(node, None)

    @property
    def samples(self) -> int:
        """Number of training samples that all nodes share."""
        return count(self._trainer.task.train)

    def data_report(self, node: str) -> DataReport | None:
        """Return what a node reports of the samples that it alone holds."""
        return self._own.report(node) if self._own else None

    @property
    def update_norms(self) -> tuple[float, float] | None:
        """Norms of the last step; None if they are unknown."""
        return self._model.update_norms

    @property
    def step_sketch(self) -> Sketch | None:
        """Sketch of the last step; None if it was skipped."""
        return self._model.step_sketch

    def train(self, order: ev.WorkAssigned, compute_seconds: float = 0.0) -> ev.UpdateArrived:
        """Train a work unit with real gradients, and encode its update as the node does."""
        memory = self._memory_of(order.node)
        if memory.fragments is not None:
            update, encoded = memory.fragments.result_of(order)
        else:
            update = self._update_of(order)
            encoded = memory.encoder.encode(
                update.flat,
                order.codecs.update,
                round_number=order.round,
                accepted_round=order.accepted_round,
                trial=order.trial,
            )
        norm, sketch = self._model.measure(encoded.payload, encoded.form.codec.name, order.round)
        arrived = ev.UpdateArrived(
            order.node,
            order.round,
            order.attempt,
            update.samples,
            update.loss,
            compute_seconds,
            loss_before=update.steps[0].loss,
            grad_norm=update.steps[-1].grad_norm,
            norm=norm,
            sketch=sketch,
            loss_after=update.loss_after,
            codec=order.codecs.update,
            noise=encoded.noise,
            optimizer_share=optimizer_share(self._times, order.batch_size, order.local_optimizer)
            if order.local_steps > 1
            else 0.0,
        )
        self._trained = arrived, encoded
        return arrived

    def _received(self, order: ev.WorkAssigned) -> Flat:
        return self._sent.received(*(order.kept_parameters or (order.round, order.codecs.parameters)))

    def _update_of(self, order: ev.WorkAssigned) -> Update:
        """Return what a node sends."""

        def work(unit: ev.WorkAssigned) -> Update:
            return self._work(unit, self._received(unit))

        return work(order) if self._adversaries is None else self._adversaries.update_of(order, work)

    def _work(self, order: ev.WorkAssigned, parameters: Flat) -> Update:
        """Take the local steps of a work unit."""
        kept = self._memory_of(order.node).optimizer
        optimizer = LocalOptimizer(order.local_optimizer, order.learning_rate)
        local = kept.local_training(optimizer, self._config.local_settings, order.accepted_round)
        update = self._trainer.work(
            parameters,
            self._batches_of(order),
            local_steps=order.local_steps,
            local=local,
            key=(order.drawn_round, order.shard.index),
        )
        kept.trained(local, order.round, trial=order.trial)
        return update

    def keep_parameters(self, wanted: Collection[tuple[int, str]]) -> None:
        """Keep what the nodes of these rounds received."""
        self._sent.keep(wanted)

    def add(self, weight: int, late: tuple[int, int] | None = None) -> None:
        """Add the update that was trained last to the mean."""
        if self._trained is not None:
            arrived, encoded = self._trained
            self._model.add(encoded.payload, encoded.form.codec.name, weight, late, arrived.node)

    def gain(self) -> ev.GainMeasured | None:
        """Return the gain of the update that was trained last."""
        if self._trained is None:
            return None
        arrived, encoded = self._trained
        gains = Gains(self._model, lambda values: self._evaluation_of(values).loss, lambda: 0.0)
        return gains.measure(arrived, encoded.payload)

    def discard(self) -> None:
        """Forget the updates of an abandoned round."""
        self._model.discard()

    def step(
        self,
        momentum: float | None = None,
        learning_rate: float | None = None,
        momentum_every: int = 1,
        spoiled_by: Sequence[str] = (),
    ) -> bool:
        """Take the server's step on the mean."""
        return self._model.step(momentum, learning_rate, momentum_every, spoiled_by)

    @property
    def step_fault(self) -> str:
        """Reason for which the last step was skipped; empty if it was not."""
        return self._model.step_fault

    def keep(self) -> None:
        """Keep the present parameters."""
        self._model.keep()

    def revert(self) -> None:
        """Restore the kept parameters."""
        self._model.revert()
        self._sent.planner.revert()

    def evaluate(self) -> tuple[float, float | None]:
        """Return loss and metric on held-out data."""
        self._evaluation = result = self._evaluation_of(self._model.values)
        return result.loss, result.metric

    def _evaluation_of(self, values: Flat) -> Evaluation:
        self._trainer.model.load(values)
        return evaluate(self._trainer.model.module, self._trainer.task, batch_size=self._config.batch_size)

    @property
    def metric_fault(self) -> str:
        """Error of a metric in the last evaluation, if it raised one."""
        return self._evaluation.fault if self._evaluation else ""

    @property
    def others(self) -> Mapping[str, float | None]:
        """Further metrics of the last evaluation."""
        return self._evaluation.others if self._evaluation else {}

    def _memory_of(self, node: str) -> "_Memory":
        memory = self._nodes.get(node)
        if memory is None:
            model, fragments = self._trainer.model, self._model.fragments
            encoder = UpdateEncoder(model.parameter_count, fragments.state_size)
            of_fragments = None if self._model.is_whole else NodeFragments(fragments, model.manifest.size)
            memory = self._nodes[node] = _Memory(encoder, KeptState(), of_fragments)
        return memory

    def _batches_of(self, order: ev.WorkAssigned) -> Batches:
        """Return what gives the samples of each step of a work unit."""
        trainer, size, cursor = self._trainer, order.batch_size, order.shard.cursor
        own = self._own
        if own is None:
            shard = self._order_of(order.shard)
            return self._with_labels_of(order, lambda step: trainer.samples(shard.take(cursor + step * size, size)))

        def batch(step: int) -> tuple[Inputs, Tensor]:
            data, indices = own.take(order.node, cursor + step * size, size)
            return trainer.samples(indices, data)

        return self._with_labels_of(order, batch)

    def _with_labels_of(self, order: ev.WorkAssigned, batch: Batches) -> Batches:
        """Return the samples of a work unit with the labels that its node learns."""
        adversaries = self._adversaries
        if adversaries is None or not adversaries.flips_labels(order):
            return batch

        def flipped(step: int) -> tuple[Inputs, Tensor]:
            inputs, labels = batch(step)
            return inputs, labels.max() - labels

        return flipped

    def _order_of(self, shard: ev.Shard) -> ShardOrder:
        config = self._config
        if self._dealt is None or self._dealt[0] != shard.count:
            train = self._trainer.task.train
            sizes = count(train) if config.shards_are_alike else labels(train)
            dealt = partition(config.partition, sizes, shard.count, config.seed, alpha=config.dirichlet_alpha)
            self._dealt = shard.count, dealt, {}
        _, dealt, orders = self._dealt
        order = orders.get(shard.index)
        if order is None:
            order = orders[shard.index] = ShardOrder(dealt, shard.index)
        return order


def _aggregate(aggregation: AggregationConfig, updates: Flat) -> Flat:
    """Return what the coordinator makes of updates that count the same, if none exceeds the bound of their norms."""
    if aggregation.is_robust:
        return robust_mean([update.copy() for update in updates], aggregation)
    norms = np.linalg.norm(updates, axis=1)
    if norms.max() > FACTOR * np.median(norms):  # it would be refused
        return np.asarray(updates[norms <= FACTOR * np.median(norms)].mean(axis=0), np.float32)
    return np.asarray(updates.mean(axis=0), np.float32)


def on_one_thread() -> None:
    """Let torch add in one order only, so that the same seed gives the same bytes."""
    torch.set_num_threads(1)
