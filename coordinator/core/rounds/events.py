"""What the round machine is told (events) and what it wants done (effects). Plain data, no behaviour."""

from collections.abc import Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from typing import Any

from hypergpu.common.message import message
from hypergpu.coordinator.core.decisions import Decision
from hypergpu.coordinator.core.overrides import NodeOverride


class UpdateStatus(StrEnum):
    """What became of an update."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    """It had been accepted before, and is not applied again."""
    LATE = "late"
    """Its round was over: counted, not applied."""
    STALE = "stale"
    """Nobody ordered it: another run, a round to come, a node that is not known."""
    REFUSED = "refused"
    """Its norm is far above those of the others: not applied, and the node is out of the round."""


class CloseReason(StrEnum):
    """Why a round ended."""

    ALL_CONTRIBUTED = "all_contributed"
    SURVIVORS_CONTRIBUTED = "survivors_contributed"
    """Everyone who is still there has; the others died, left or gave up."""
    QUORUM_AT_DEADLINE = "quorum_at_deadline"
    BELOW_QUORUM = "below_quorum"
    """The deadline was extended as often as it may be."""


class FinishReason(StrEnum):
    """Why the run ended."""

    ROUNDS_DONE = "rounds_done"
    TARGET_REACHED = "target_reached"
    STOPPED = "stopped"
    DIVERGED = "diverged"
    """The loss on held-out data was not finite, time after time."""
    FAILED = "failed"
    """The run cannot go on: an error that all nodes share, or one in the task or in the coordinator."""


# ---------------------------------------------------------------- events


@message
class NodeJoined:
    """A node registered, for the first time or again."""

    node: str
    incarnation: str = ""
    largest_batch: int = 0
    """Samples that its card holds; 0 = not known."""
    info: Mapping[str, str] = field(default_factory=dict)
    """What else it said about itself; carried, not read."""
    has_same_task: bool = False
    """Whether it has shown that its data and model are the coordinator's."""


@message
class NodeSeen:
    """A sign of life."""

    node: str


@message
class NodeLeft:
    """A node said good-bye."""

    node: str
    reason: str = ""


@message
class NodeLost:
    """A node is known to be gone. Silence is noticed by the machine itself, where it was given a limit."""

    node: str
    reason: str = "no sign of life"


@message
class WorkRequested:
    """A node waits for its next unit; it stays waiting until it gets one or `RequestEnded`."""

    node: str


@message
class RequestEnded:
    """A node stopped waiting: it will ask again."""

    node: str


@message
class UpdateArrived:
    """A whole update is here, finite and of the right layout; not yet part of the mean."""

    node: str
    round: int
    attempt: int
    samples: int
    loss: float
    compute_seconds: float
    loss_before: float = 0.0
    grad_norm: float = 0.0
    norm: float | None = None
    """Euclidean norm of the update; None where it was not measured."""


@message
class WorkReturned:
    """A node gave its work up, or sent something that can't be used."""

    node: str
    round: int
    reason: str
    detail: str = ""


@message
class Evaluated:
    """The step of a closed round is taken; the figures are None where no evaluation was due."""

    round: int
    loss: float | None = None
    metric: float | None = None
    update_norms: tuple[float, float] | None = None
    """(mean of |update|² over the nodes, |mean update|²)."""


@message
class EvaluationFailed:
    """The step or the evaluation of a closed round raised an error: the run cannot go on."""

    round: int
    detail: str
    stepped: bool
    """Whether the step was taken."""


@message
class Tick:
    """Time has passed: sent at the latest at the time of the last `SetTimer`."""


@message
class Pause:
    """No new round until `Resume`; a running one is finished."""


@message
class Resume:
    """Rounds may start again."""


@message
class Stop:
    """End the run; a round that is being evaluated is finished first."""

    reason: str = ""


@message
class Suspend:
    """Begin no further round: the coordinator is about to end, and a later one goes on."""


@message
class Fail:
    """End the run at once: the coordinator met an error that it cannot survive."""

    detail: str


@message
class OverrideSet:
    """A user forces a node into or out of every round."""

    node: str
    override: NodeOverride


Event = (
    NodeJoined
    | NodeSeen
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
)


# ---------------------------------------------------------------- effects


@message
class Shard:
    """Shard `index` of `count`, from sample `cursor` on."""

    index: int
    count: int
    cursor: int


@message
class StartRound:
    """A round begins: these nodes will be given work on the current parameters."""

    round: int
    nodes: Sequence[str]
    deadline_at: float


@message
class WorkAssigned:
    """Hand this unit of work to the node, which is waiting for it."""

    round: int
    node: str
    attempt: int
    batch_size: int
    local_steps: int
    learning_rate: float
    shard: Shard
    deadline_at: float


@message
class UpdateReply:
    """The answer to one `UpdateArrived`; an accepted one goes into the mean with `weight`."""

    node: str
    round: int
    status: UpdateStatus
    weight: int = 0
    detail: str = ""


@message
class Contribution:
    """What one selected node did in a round."""

    node: str
    success: bool
    samples: int = 0
    batch_size: int = 0
    compute_seconds: float = 0.0
    waiting_seconds: float = 0.0
    """From the unit to the accepted update, less the computing; where none came, the time it was waited for."""
    loss: float = 0.0
    loss_before: float = 0.0
    late: bool = False
    """It was still at work when the round ended: it loses the round, not its place."""
    measured: bool = True
    """Its waiting tells of its link: not so where its process ended meanwhile, or it gave its work up."""


@message
class CloseRound:
    """Take the server's step on the mean of the accepted updates, evaluate if asked to, answer with `Evaluated`."""

    round: int
    contributions: Sequence[Contribution]
    reason: CloseReason
    seconds: float
    samples: int
    loss: float
    """Training loss: the mean over the samples that were used."""
    evaluate: bool
    ended: tuple[int, float] = (0, 0.0)
    """Processes of nodes that ended since the last round was closed, and the time since, summed over the nodes."""


@message
class AbandonRound:
    """Nobody contributed and nobody can: forget what was staged. The same round starts again later."""

    round: int
    why: str
    fault: str = ""
    """Kind of error that every node gave its work up for; empty where they differ."""
    fault_detail: str = ""


@message
class KeepModel:
    """The model evaluated well: remember it as the one to return to."""

    round: int


@message
class RevertModel:
    """The model did not evaluate: return to the one that was kept last, or to the first."""

    round: int


@message
class SetTimer:
    """Send a `Tick` at this time; replaces the timer before it."""

    at: float


@message
class RunOver:
    """A node that asks for work is told that there is none any more."""

    node: str


@message
class Finish:
    """The run is over."""

    reason: FinishReason
    detail: str = ""


@message
class RunEvent:
    """Something worth keeping: a line for people, fields for programs."""

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
    | SetTimer
    | RunOver
    | Finish
    | RunEvent
)
