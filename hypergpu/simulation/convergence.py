"""A model of convergence, for clusters too large for real gradients.

Training is a path whose length is counted in full steps, s: a step on the whole gradient counts 1, one on B samples

    efficiency(B) = 1 / (1 + φ / B)                                 φ = the gradient noise scale, in samples

(McCandlish et al., "An empirical model of large-batch training", 2018, eq. 2.7). A round of k local steps at learning
rate η over nodes whose batches add up to B is k · η/η₀ · efficiency(B) long. Along the path, loss and metric follow
power laws with an offset, the usual shape of learning curves (Hestness et al., "Deep learning scaling is predictable,
empirically", 2017):

    loss(s) = L∞ + (L₀ - L∞) · (1 + s/τ)^-α          metric(s) = M∞ - (M∞ - M₀) · (1 + s/σ)^-β

Nodes that train alone for k steps drift apart. With `drift_steps` d, k local steps are worth k / (1 + k/d), as in
`coordinator.core.batching.goodput`; without it they are worth k.

A codec's noise ε (see `PRIOR_NOISE`) adds to that of the gradients: with φₙ = φ·K/B on each of K nodes, efficiency is
1 / (1 + φ/B + ε·(1 + φₙ)/K). With error feedback, a share ε of an update is delivered later instead.

What it leaves out: data that differs between shards, and divergence. The constants come
from real runs: `hypergpu fit digits`.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated

from pydantic import Field

from hypergpu.common.codecs import find_codec
from hypergpu.common.config import TrainingConfig
from hypergpu.common.config.section import ConfigSection
from hypergpu.common.config.whole import Bytes
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.common.metric import ACCURACY, LOSS, MetricSpec
from hypergpu.common.tensors import Payload
from hypergpu.coordinator.core.adaptation.codecs.noise import PRIOR_NOISE
from hypergpu.coordinator.core.batching.goodput import steps_progress
from hypergpu.coordinator.core.model.aggregation import staleness_weight
from hypergpu.coordinator.core.model.fragment_sendings import sendings_of
from hypergpu.coordinator.core.model.outgoing import Sending
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.simulation.accepted_updates import AcceptedUpdates, ModelledUpdate
from hypergpu.simulation.momentum import ModelledFragments

Positive = Annotated[float, Field(gt=0)]


class Convergence(ConfigSection):
    """The constants of one task; the formulas are above."""

    model_bytes: Bytes
    """Size of the flat buffer that is sent."""
    learning_rate: Positive
    """η₀, at which they were fitted."""
    noise_scale: Positive
    """φ, in samples."""
    loss_start: Positive
    """L₀."""
    loss_floor: Positive
    """L∞."""
    loss_scale: Positive
    """τ."""
    loss_power: Positive
    """α."""
    metric_start: float | None = None
    """M₀; left out of a task that is judged by its loss alone."""
    metric_limit: float | None = None
    """M∞, above M₀ or below it."""
    metric_scale: Positive = 1.0
    """σ."""
    metric_power: Positive = 1.0
    """β."""
    loss_spread: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of the training loss of one sample, relative to the loss."""
    drift_steps: Annotated[float, Field(ge=0)] = 0.0
    """d, local steps of a round at which half of their worth is lost; 0 = nothing is lost."""

    def worth(self, steps: int) -> float:
        """Full steps that so many local steps of a round are worth on the whole gradient."""
        return steps_progress(steps, self.drift_steps) if self.drift_steps else steps

    def loss(self, path: float) -> float:
        """Held-out loss after a path of full steps."""
        missing = self.loss_start - self.loss_floor
        return self.loss_floor + missing * math.pow(1 + path / self.loss_scale, -self.loss_power)

    def metric(self, path: float) -> float | None:
        """Held-out metric after a path of full steps; None if the task has none."""
        if self.metric_start is None or self.metric_limit is None:
            return None
        missing = self.metric_limit - self.metric_start
        return self.metric_limit - missing * math.pow(1 + path / self.metric_scale, -self.metric_power)

    def progress(self, steps: float, samples_per_step: float, learning_rate: float, codec_noise: float = 0.0) -> float:
        """Full steps that `steps` local steps are worth; `codec_noise` is relative to the squared gradient."""
        noise = self.noise_scale / samples_per_step + codec_noise
        return steps * learning_rate / self.learning_rate / (1 + noise)


FITTED: Mapping[str, Convergence] = {
    # Root mean square error over 6 runs of 60 rounds: 0.15 of log loss, 0.015 of accuracy.
    "digits": Convergence(
        model_bytes=76_840,
        learning_rate=0.1,
        noise_scale=28.7,
        loss_start=3.27,
        loss_floor=0.0869,
        loss_scale=4.15,
        loss_power=1.43,
        metric_start=0.06,
        metric_limit=0.986,
        metric_scale=1.64,
        metric_power=0.974,
        loss_spread=3.56,
    ),
    # Over 6 runs of 60 rounds: 0.13 of log loss, 0.057 of accuracy. An exponential, without the slow beginning.
    "digit_sums": Convergence(
        model_bytes=101_672,
        learning_rate=0.1,
        noise_scale=80.2,
        loss_start=2.37,
        loss_floor=1.94e-05,
        loss_scale=1.33e7,
        loss_power=3.42e4,
        metric_start=0.102,
        metric_limit=1.0,
        metric_scale=4.315e8,
        metric_power=1.287e6,
        loss_spread=2.18,
    ),
    # Over 6 runs of 40 rounds: 0.19 of log loss, 0.033 of accuracy.
    "mnist5k": Convergence(
        model_bytes=457_256,
        learning_rate=0.1,
        noise_scale=25.2,
        loss_start=2.3,
        loss_floor=0.124,
        loss_scale=90.5,
        loss_power=4.71,
        metric_start=0.142,
        metric_limit=0.965,
        metric_scale=177.0,
        metric_power=9.29,
        loss_spread=10.3,
    ),
    # Over 6 runs of 40 rounds: 0.005 of log loss, 0.004 of accuracy. So few rounds don't show where it ends.
    "chars": Convergence(
        model_bytes=564_864,
        learning_rate=0.1,
        noise_scale=0.925,
        loss_start=4.76,
        loss_floor=1.29,
        loss_scale=2.2,
        loss_power=0.231,
        metric_start=0.0123,
        metric_limit=0.755,
        metric_scale=1.71,
        metric_power=0.113,
        loss_spread=0.215,
    ),
}
"""Constants by task."""


class ConvergenceBackend:
    """Training by the model of convergence (see `training_backend.TrainingBackend`)."""

    def __init__(self, config: TrainingConfig, convergence: Convergence, metric: MetricSpec = ACCURACY) -> None:
        self._model = convergence
        self.metric = LOSS if convergence.metric(0.0) is None else metric
        """Metric of the model."""
        self.sendings = sendings_of(config)
        """Planner of the form in which parameters are sent."""
        self._draws = KeyedRandom(config.seed, "convergence")
        self._noises: tuple[int, list[float]] = (0, [])  # a round, and those of its shards
        self._path = self._kept = 0.0
        self._fragments = ModelledFragments(config.fragments, overlap=config.overlap)
        self._loss = self._model.loss(0.0)
        self._losses: dict[tuple[float, int, float], tuple[float, float]] = {}
        self._last = ModelledUpdate()
        self._accepted = AcceptedUpdates(convergence.noise_scale)

    @property
    def model_bytes(self) -> int:
        """Size of the flat buffer that is sent."""
        return self._model.model_bytes

    def payload_bytes(self, codec: str, fragments: tuple[int, ...] = ()) -> int:
        """Return the size of parameters or an update in a codec; nothing is left exact, and fragments are equal."""
        values = -(-self.model_bytes // 4)
        if fragments:
            values = -(-values * len(fragments) // self._fragments.count)
        return find_codec(codec).encoded_bytes(values)

    def payload(self, sending: Sending) -> None:
        """Return None: a curve has one place for all nodes."""

    def received(self, node: str, sending: Sending, payload: Payload | None) -> None:
        """Do nothing."""

    def assigned(self, order: ev.WorkAssigned) -> None:
        """Do nothing."""

    def begun(self, order: ev.WorkAssigned) -> None:
        """Do nothing."""

    def computed(self, order: ev.WorkAssigned) -> None:
        """Do nothing."""

    def begin_round(self, number: int, nodes: Sequence[str] = ()) -> None:
        """Count a version of the parameters, which a curve has not."""
        self._fragments.begin_round(number)
        self.sendings.begin_round(number)

    def process_started(self, node: str) -> None:
        """Forget the residual of a node."""
        self._accepted.forget(node)

    @property
    def others(self) -> Mapping[str, float | None]:
        """None: a modelled task has one metric."""
        return {}

    @property
    def metric_fault(self) -> str:
        """Error of the metric; a curve has none."""
        return ""

    def data_report(self, node: str) -> None:
        """Return None: the model knows no samples that one node alone holds."""

    @property
    def samples(self) -> int:
        """Number of training samples: as many as there are shards."""
        return 1 << 62

    @property
    def step_sketch(self) -> None:
        """Nothing: there are no updates to be compared."""
        return None

    @property
    def update_norms(self) -> tuple[float, float] | None:
        """Norms of the last step; a curve has none."""
        return None

    def train(self, order: ev.WorkAssigned, compute_seconds: float = 0.0) -> ev.UpdateArrived:
        """Return the update of a work unit."""
        model = self._model
        steps, batch_size, learning_rate = order.local_steps, order.batch_size, order.learning_rate
        rounds = self._fragments.rounds_apart
        samples, worth = batch_size * steps, model.worth(steps * rounds) / rounds
        work = worth, batch_size, learning_rate
        full_steps = worth * learning_rate / model.learning_rate
        codec = order.codecs.update
        self._last = ModelledUpdate(order.node, steps, full_steps, batch_size, codec)
        noise = model.loss_spread * self._noise(order)
        before = self._loss * (1 + noise / batch_size**0.5)
        losses = self._losses.get(work)
        if losses is None:  # the same for all nodes with as much work
            progress = model.progress(*work)
            losses = model.loss(self._path + 0.5 * progress), model.loss(self._path + progress)
            self._losses[work] = losses
        midway, end = losses
        after = before * end / self._loss
        return ev.UpdateArrived(
            order.node,
            order.round,
            order.attempt,
            samples,
            midway * (1 + noise / samples**0.5),
            compute_seconds,
            loss_before=before,
            grad_norm=before,
            loss_after=after,
            codec=codec,
            noise=PRIOR_NOISE[codec],
        )

    def _noise(self, order: ev.WorkAssigned) -> float:
        """Return the noise of a work unit, drawn for all shards of its round at once."""
        number, noises = self._noises
        if number != order.round or order.shard.index >= len(noises):
            noises = self._draws.normals(order.round << 20, order.shard.count)
            self._noises = order.round, noises
        return noises[order.shard.index]

    def keep_parameters(self, wanted: Collection[tuple[int, str]]) -> None:
        """Do nothing: a late update leads as far as it weighs, wherever it began."""

    def add(self, weight: int, late: tuple[int, int] | None = None) -> None:
        """Count an accepted update; a late one leads less far."""
        if late is not None:
            self._last = self._last._replace(full_steps=self._last.full_steps * staleness_weight(late[1]))
        self._accepted.add(self._last, weight)

    def gain(self) -> None:
        """Nothing: there are no updates."""

    def discard(self) -> None:
        """Forget the updates of an abandoned round."""
        self._accepted.discard()

    def step(
        self,
        momentum: float | None = None,
        learning_rate: float | None = None,
        momentum_every: int = 1,
        spoiled_by: Sequence[str] = (),
    ) -> bool:
        """Advance along the curve by the accepted samples, and by momentum as far as the last rounds went.

        The learning rate changes nothing here: `train` has counted full steps at the rate of each order.
        """
        mean = self._accepted.mean()
        if mean is not None:
            fresh = self._model.progress(mean.full_steps, mean.samples_per_step, self._model.learning_rate, mean.noise)
            self._path += self._fragments.momentum.move(fresh, momentum or 0.0, momentum_every)
            self._loss = self._model.loss(self._path)
            self._losses.clear()
        self.discard()
        return True

    @property
    def step_fault(self) -> str:
        """Return nothing: a curve takes every step."""
        return ""

    def keep(self) -> None:
        """Keep the place on the curve."""
        self._kept = self._path

    def revert(self) -> None:
        """Return to the place that was kept last."""
        self._path, self._fragments = self._kept, self._fragments.begun_anew()
        self.sendings.revert()
        self._loss = self._model.loss(self._path)
        self._losses.clear()

    def evaluate(self) -> tuple[float, float | None]:
        """Return loss and metric at the present place on the curve."""
        return self._loss, self._model.metric(self._path)
