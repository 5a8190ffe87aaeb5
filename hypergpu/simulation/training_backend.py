"""Interface to a model that is trained in virtual time."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from hypergpu.common.data_report import DataReport
from hypergpu.common.metric import MetricSpec
from hypergpu.common.tensors import Payload
from hypergpu.coordinator.core.model.fragment_sendings import ModelSendings
from hypergpu.coordinator.core.model.outgoing import Sending
from hypergpu.coordinator.core.model.sketch import Sketch
from hypergpu.coordinator.core.rounds import events as ev


class TrainingBackend(Protocol):
    """Turns work units into updates, applies updates to a model, and evaluates it."""

    @property
    def model_bytes(self) -> int:
        """Size of the flat buffer that is sent."""
        ...

    @property
    def metric(self) -> MetricSpec:
        """Metric of the model."""
        ...

    @property
    def samples(self) -> int:
        """Number of training samples that all nodes share."""
        ...

    def data_report(self, node: str) -> DataReport | None:
        """Return what a node reports of the samples that it alone holds; None if nothing."""
        ...

    @property
    def update_norms(self) -> tuple[float, float] | None:
        """Norms of the last step, as in `GlobalModel.update_norms`; None if they are unknown."""
        ...

    @property
    def step_sketch(self) -> Sketch | None:
        """Sketch of the last step; None if it was skipped, or is unknown."""
        ...

    def payload_bytes(self, codec: str, fragments: tuple[int, ...] = ()) -> int:
        """Return the size of parameters or an update in a codec; without `fragments`, of the whole model."""
        ...

    @property
    def sendings(self) -> ModelSendings:
        """Planner of the form in which parameters are sent."""
        ...

    def begin_round(self, number: int, nodes: Sequence[str] = ()) -> None:
        """Take the present parameters as those of the round of these nodes that opens."""
        ...

    def process_started(self, node: str) -> None:
        """Forget what the former process of a node kept in its memory."""
        ...

    def payload(self, sending: Sending) -> Payload | None:
        """Return the payload of a node, where it matters what each node holds: with more than one fragment."""
        ...

    def received(self, node: str, sending: Sending, payload: Payload | None) -> None:
        """Let a node hold what it has received."""
        ...

    def assigned(self, order: ev.WorkAssigned) -> None:
        """Note that a node is assigned a work unit."""
        ...

    def begun(self, order: ev.WorkAssigned) -> None:
        """Note that a node begins a work unit whose update is what it holds now; noted once for each."""
        ...

    def computed(self, order: ev.WorkAssigned) -> None:
        """Note that a node has done a work unit, whether or not its update will be needed; noted once for each."""
        ...

    def train(self, order: ev.WorkAssigned, compute_seconds: float = 0.0) -> ev.UpdateArrived:
        """Do a work unit on the current parameters; return the update of a node that computed for so long."""
        ...

    def keep_parameters(self, wanted: Collection[tuple[int, str]]) -> None:
        """Keep the parameters of these rounds, by codec, and no others; called before the step of the latest."""
        ...

    def add(self, weight: int, late: tuple[int, int] | None = None) -> None:
        """Take what was trained last into the round's mean; `late` is its round and staleness, if it is late."""
        ...

    def gain(self) -> ev.GainMeasured | None:
        """Return the gain on held-out data of what was trained last; None where there are no real updates."""
        ...

    def discard(self) -> None:
        """Forget the round's mean."""
        ...

    def step(
        self,
        momentum: float | None = None,
        learning_rate: float | None = None,
        momentum_every: int = 1,
        spoiled_by: Sequence[str] = (),
    ) -> bool:
        """Take the server's step on the mean; return False if it was skipped, for `step_fault`.

        Args:
            momentum: Momentum from this step on; None leaves it.
            learning_rate: Learning rate from this step on if nodes send gradients; None leaves it.
            momentum_every: Steps after which momentum is applied once.
            spoiled_by: Nodes whose updates may not be used.
        """
        ...

    @property
    def step_fault(self) -> str:
        """Reason for which the last step was skipped; empty if it was not."""
        ...

    def keep(self) -> None:
        """Remember the model as the one to return to."""
        ...

    def revert(self) -> None:
        """Return to the model that was kept last."""
        ...

    @property
    def metric_fault(self) -> str:
        """Reason for which the last evaluation gave no metric; empty if it gave one."""
        ...

    @property
    def others(self) -> Mapping[str, float | None]:
        """Further metrics of the last evaluation, by name."""
        ...

    def evaluate(self) -> tuple[float, float | None]:
        """Return loss and metric on held-out data; the metric is None where it is undefined."""
        ...
