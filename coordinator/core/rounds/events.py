"""Events that the round machine handles, and effects that it asks its driver to carry out. Plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from typing import Any, Final

from hypergpu.common.connections import ONE_EACH, Connections
from hypergpu.common.data_report import DataReport
from hypergpu.common.message import message
from hypergpu.common.node_terms import FREE, NodeTerms
from hypergpu.common.transfer_codecs import NO_CODECS, TransferCodecs
from hypergpu.coordinator.core.decisions import Decision
from hypergpu.coordinator.core.model.sketch import Sketch
from hypergpu.coordinator.core.overrides import NodeOverride
from hypergpu.coordinator.core.rehearsal import RehearsalRequest, RehearsalResult
from hypergpu.coordinator.core.rounds.usefulness import Useful


class UpdateStatus(StrEnum):
    """Status of an update."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    """Accepted before, and not applied again."""
    LATE = "late"
    """Its round has closed, and it is too stale for a later one: counted, not applied."""
    STALE = "stale"
    """Not assigned: an unknown node, a later round, or another run."""
    REFUSED = "refused"
    """Its norm is out of bounds: not applied, and nothing more is expected of the node in this round."""
    COMPARED = "compared"
    """Computed to check the update of another node: compared, not applied."""


class CloseReason(StrEnum):
    """Reason for closing a round."""

    ALL_CONTRIBUTED = "all_contributed"
    SURVIVORS_CONTRIBUTED = "survivors_contributed"
    """All remaining nodes have contributed; the others are lost, have left or have returned their work."""
    ENOUGH_CONTRIBUTED = "enough_contributed"
    """The share of the nodes that closes a round has contributed."""
    QUORUM_AT_DEADLINE = "quorum_at_deadline"
    BELOW_QUORUM = "below_quorum"
    """The deadline passed after its last extension."""


class FinishReason(StrEnum):
    """Reason for ending the run."""

    ROUNDS_DONE = "rounds_done"
    TARGET_REACHED = "target_reached"
    NO_IMPROVEMENT = "no_improvement"
    """No model was better for as many evaluations as `training.patience` allows."""
    STOPPED = "stopped"
    DIVERGED = "diverged"
    """The loss on held-out data was not finite several times in a row."""
    FAILED = "failed"
    """The run cannot continue: the same error on every node, or one in the task or in the coordinator."""


COMPLETE: Final = frozenset({FinishReason.ROUNDS_DONE, FinishReason.TARGET_REACHED, FinishReason.NO_IMPROVEMENT})
"""Reasons that end a run as its user wanted."""


# ---------------------------------------------------------------- events


@message
class NodeJoined:
    """A node registered, for the first time or again."""

    node: str
    incarnation: str = ""
    largest_batch: int = 0
    """Largest batch in its memory, in samples; 0 = unknown."""
    info: Mapping[str, str] = field(default_factory=dict)
    """Further properties of the node, passed through."""
    has_same_task: bool = False
    """True if its data and model are known to equal those of the coordinator."""
    terms: NodeTerms = FREE
    data: DataReport | None = None
    """Its report of the samples that it alone holds; None if it gives none."""


@message
class NodeLeft:
    """A node left."""

    node: str
    reason: str = ""


@message
class NodeLost:
    """A node is known to be gone. With `lost_after_seconds`, the machine notices silence itself."""

    node: str
    reason: str = "no sign of life"


@message
class WorkRequested:
    """A node waits for work, until it gets some or `RequestEnded`."""

    node: str


@message
class RequestEnded:
    """A node stopped waiting; it will ask again."""

    node: str


@message
class UpdateArrived:
    """An update arrived, finite and of the right layout; it is not yet part of the mean."""

    node: str
    round: int
    attempt: int
    samples: int
    loss: float
    compute_seconds: float
    loss_before: float = 0.0
    grad_norm: float = 0.0
    norm: float | None = None
    """Euclidean norm of the update; None = not measured."""
    loss_after: float | None = None
    """Training loss of the first batch after the last step; None = not measured."""
    codec: str = "none"
    noise: float = 0.0
    """|decoded - exact|² ÷ |exact|² of the update: what its codec costs in precision."""
    optimizer_share: float = 0.0
    """Share of the computing that the steps of the optimizer took, beside the gradients."""
    sketch: Sketch | None = field(default=None, compare=False)
    """Sketch of the update; None = not measured."""
    received_share: float = 1.0
    """Share of its payload that was received; below 1 if its round had closed before."""
    receipt: Mapping[str, Any] | None = field(default=None, compare=False)
    """Receipt for the ledger; None where updates do not travel, and of one that did not arrive whole."""


@message
class WorkReturned:
    """A node returned its work, or sent an unusable update."""

    node: str
    round: int
    attempt: int
    reason: str
    detail: str = ""


@message
class Evaluated:
    """The server took the step of a closed round; the figures are None if no evaluation was due."""

    round: int
    loss: float | None = None
    metric: float | None = None
    update_norms: tuple[float, float] | None = None
    """(mean of |update|² over the nodes, |mean update|²); None = not measured."""
    others: Mapping[str, float | None] = field(default_factory=dict)
    """Further metrics by name."""
    step: Sketch | None = field(default=None, compare=False)
    """Sketch of the step; None if it was skipped, or not measured."""


@message
class EvaluationFailed:
    """The step or the evaluation of a closed round failed: the run cannot continue."""

    round: int
    detail: str
    stepped: bool
    """True if the step was taken."""


@message
class Tick:
    """Time has passed; due at the time of the last `SetTimer`."""


@message
class Pause:
    """Open no further round until `Resume`; an open one is finished."""


@message
class Resume:
    """Open rounds again."""


@message
class Stop:
    """End the run; a closing round is finished first."""

    reason: str = ""


@message
class Suspend:
    """Open no further round: the coordinator is shutting down, and a later process continues the run."""


@message
class Fail:
    """End the run at once: the coordinator cannot continue."""

    detail: str


@message
class OverrideSet:
    """A user includes a node in every round, excludes it, or leaves it to the selection."""

    node: str
    override: NodeOverride


@message
class GainMeasured:
    """The gain of an update on held-out data was measured."""

    node: str
    round: int
    loss_before: float
    """Loss of the parameters that it belongs to."""
    loss_after: float
    """Loss after a step of it alone."""


@message
class Rehearsed:
    """A rehearsal is done, or has failed."""

    result: RehearsalResult


Event = (
    NodeJoined
    | NodeLeft
    | NodeLost
    | WorkRequested
    | RequestEnded
    | UpdateArrived
    | WorkReturned
    | Evaluated
    | EvaluationFailed
    | Tick
    | Pause
    | Resume
    | Stop
    | Suspend
    | Fail
    | OverrideSet
    | GainMeasured
    | Rehearsed
)


# ---------------------------------------------------------------- effects


@message
class Shard:
    """Shard `index` of `count`, starting at sample `cursor`."""

    index: int
    count: int
    cursor: int
    owner: str = ""
    """Node that alone holds its samples; empty if any node may train on them."""


@message
class StartRound:
    """A round opens: these nodes get work on the current parameters."""

    round: int
    nodes: Sequence[str]
    deadline_at: float


@message
class Repeated:
    """Earlier order that a work unit repeats, so that its update can be compared."""

    round: int
    """Round of the order, by which its random numbers are drawn."""
    codec: str
    """Codec in which its node received the parameters; the same values are sent again."""


@message
class WorkAssigned:
    """Send this work unit to the node, which waits for it."""

    round: int
    node: str
    attempt: int
    batch_size: int
    local_steps: int
    learning_rate: float
    local_optimizer: str
    shard: Shard
    deadline_at: float
    codecs: TransferCodecs = NO_CODECS
    trial: bool = False
    """True if the update is only measured, and does not enter the model."""
    accepted_round: int = 0
    """Latest round whose update of this node was accepted; 0 = none."""
    connections: Connections = ONE_EACH
    fragment: int | None = None
    """Number of the fragment that the update holds; None = the whole model."""
    repeats: Repeated | None = None
    """Order that this one repeats; None = it is work of its round."""

    @property
    def drawn_round(self) -> int:
        """Round by which the random numbers of the work are drawn."""
        return self.round if self.repeats is None else self.repeats.round

    @property
    def kept_parameters(self) -> tuple[int, str] | None:
        """Round and codec of the parameters of an earlier round that the work begins with; None = those of now."""
        return None if self.repeats is None else (self.repeats.round, self.repeats.codec)

    @property
    def fragments(self) -> tuple[int, ...]:
        """Numbers of the fragments that the update holds; empty = the whole model."""
        return () if self.fragment is None else (self.fragment,)


@message
class UpdateReply:
    """Answer one `UpdateArrived`; an accepted update enters the mean with `weight` samples, or not at all with 0."""

    node: str
    round: int
    status: UpdateStatus
    weight: int = 0
    detail: str = ""
    staleness: int = 0
    """τ of an accepted update: the round that counts it less its own."""
    measured: bool = False
    """Its gain on held-out data is to be measured; answer with `GainMeasured`, unless there is no time for it."""

    @property
    def late(self) -> tuple[int, int] | None:
        """Round and staleness of an update that counts late; None for others."""
        return (self.round, self.staleness) if self.staleness else None


@message
class LateUpdate:
    """Update that a later round counts than its own."""

    node: str
    round: int
    """Round of the work unit."""
    staleness: int
    """τ: the round that counts it less its own."""
    samples: int
    weight: float
    """Weight of an update that is in time / √(1+τ)."""
    loss: float
    compute_seconds: float


@message
class Contribution:
    """Contribution of one selected node to a round."""

    node: str
    success: bool
    samples: int = 0
    batch_size: int = 0
    compute_seconds: float = 0.0
    waiting_seconds: float = 0.0
    """Time from the assignment to the accepted update, less computing; without an update, the time waited for it."""
    loss: float = 0.0
    loss_before: float = 0.0
    """Training loss of the first batch before any step."""
    loss_after: float | None = None
    """Training loss of the same batch after the last step; None = not measured."""
    trial_failed: bool = False
    """The node tried a learning rate that made its loss worse, or not finite."""
    late: bool = False
    """It was still working, or on the way to ask for its work, when the round closed."""
    measured: bool = True
    """True if its waiting time measures its link. False if its process restarted, or it returned its work."""
    awaited: bool = True
    """True if the round waited for it."""
    codec: str = "none"
    """Codec that was ordered for its update."""
    noise: float = 0.0
    """Noise of that codec; 0 without an update."""
    parameters_codec: str = "none"
    """Codec that was ordered for its parameters."""
    connections: Connections = ONE_EACH
    """Connections that were ordered for its transfers."""
    upload_seconds: float = 0.0
    """Part of `waiting_seconds` from the offer of the update until it had arrived; 0 without an update."""
    optimizer_share: float = 0.0
    """Share of the computing that the steps of the optimizer took."""
    local_steps: int = 1


@message
class CloseRound:
    """Take the server's step on the mean of the accepted updates, evaluate if due, and answer with `Evaluated`."""

    round: int
    contributions: Sequence[Contribution]
    reason: CloseReason
    seconds: float
    samples: int
    loss: float
    """Mean training loss over the samples that were used."""
    evaluate: bool
    restarts: tuple[int, float] = (0, 0.0)
    """Nodes that restarted since the last round closed, and the node-seconds since."""
    server_momentum: float | None = None
    """Momentum of the step; None = as configured."""
    momentum_every: int = 1
    """Steps after which momentum is applied once."""
    local_steps: int = 1
    learning_rate: float = 0.0
    """Rate of the local steps; where nodes send gradients (one local step), of the server's step."""
    local_optimizer: str = "sgd"
    late: Sequence[LateUpdate] = ()
    """Updates of earlier rounds that are part of the mean."""
    spoiled_by: Sequence[str] = ()
    """Nodes whose updates may not be used, although they are part of the mean."""
    useful: Sequence[Useful] = ()
    """Usefulness of the updates that counted, as far as it was measured."""

    @property
    def step(self) -> tuple[float | None, float, int]:
        """Momentum, learning rate and delay of momentum of the server's step."""
        return self.server_momentum, self.learning_rate, self.momentum_every


@message
class AbandonRound:
    """No node contributed: discard staged updates. The same round opens again later."""

    round: int
    why: str
    fault: str = ""
    """Kind of error for which every node returned its work; empty if they differ."""
    fault_detail: str = ""


@message
class KeepModel:
    """Keep the model of this round as the one to return to."""

    round: int


@message
class RevertModel:
    """Return to the model that was kept last, or to the initial one."""

    round: int


@message
class Rehearse:
    """Run settings in virtual time, beside the run, and answer with `Rehearsed`; a driver may leave it undone."""

    request: RehearsalRequest


@message
class SetTimer:
    """Send a `Tick` at this time; replaces the previous timer."""

    at: float


@message
class RunOver:
    """Answer a node that waits for work: the run is over."""

    node: str


@message
class Finish:
    """The run is over."""

    reason: FinishReason
    detail: str = ""


@message
class RunEvent:
    """Entry of the run's event log: a line for people, fields for programs."""

    kind: str
    round: int
    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    decision: Decision | None = None


Effect = (
    StartRound
    | WorkAssigned
    | UpdateReply
    | CloseRound
    | AbandonRound
    | KeepModel
    | RevertModel
    | Rehearse
    | SetTimer
    | RunOver
    | Finish
    | RunEvent
)
