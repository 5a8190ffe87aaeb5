"""Events and effects of a node's life cycle: plain data without behaviour."""

from typing import Generic, TypeVar

from hypergpu.common.message import message
from hypergpu.node.core.failures import Failure

Work = TypeVar("Work")
"""A work unit, as the driver represents it."""


# ---------------------------------------------------------------- events


@message
class Started:
    """The process has started."""


@message
class Registered:
    """The coordinator accepted the registration."""


@message
class Prepared:
    """The model and the data of the run are ready."""

    announce: bool
    """True if they give the node something to register that it could not register before."""


@message
class WorkAnnounced(Generic[Work]):
    """A work unit was assigned; its parameters follow."""

    work: Work


@message
class WorkReceived(Generic[Work]):
    """A work unit is complete with its parameters."""

    work: Work


@message
class NoWork:
    """The coordinator had no work within the time waited."""


@message
class Trained:
    """The update is ready."""


@message
class ProgressKnown:
    """The coordinator replied how much of the update it holds."""

    accepted: bool
    """True if it has accepted the whole update."""
    next_offset: int
    """First byte that it lacks."""


@message
class Pushed:
    """The coordinator replied to the update: it needs no more of it."""


@message
class Returned:
    """The work was returned, or the coordinator could not be informed."""


@message
class Failed:
    """The running operation raised an error."""

    error: Exception

    @property
    def kind(self) -> str:
        """Name of the error's type."""
        return type(self.error).__name__

    @property
    def detail(self) -> str:
        """Message of the error."""
        return str(self.error) or self.kind


@message
class BackoffExpired:
    """The backoff is over."""


@message
class RegistrationRequested:
    """The coordinator replied to a heartbeat that it does not know the node."""


@message
class AbandonRequested(Generic[Work]):
    """The coordinator replied to a heartbeat that it no longer needs the work."""

    work: Work | None
    """Work that the node held when it sent the heartbeat."""


@message
class RunFinished:
    """The run is over."""

    reason: str
    coordinator_stays: bool = False
    """True if the coordinator may begin another run."""


@message
class Distrusted:
    """The coordinator has shown that its record cannot be trusted: the node works for it no more."""

    error: Exception


@message
class StopRequested:
    """The process was asked to stop, by a signal for example."""

    reason: str


@message
class GraceExpired:
    """The time to finish the work after StopRequested is over."""


@message
class Left:
    """The coordinator was informed that the node leaves, or could not be."""


Event = (
    Started
    | Registered
    | Prepared
    | WorkAnnounced[Work]
    | WorkReceived[Work]
    | NoWork
    | Trained
    | ProgressKnown
    | Pushed
    | Returned
    | Failed
    | BackoffExpired
    | RegistrationRequested
    | AbandonRequested[Work]
    | RunFinished
    | Distrusted
    | StopRequested
    | GraceExpired
    | Left
)


# ---------------------------------------------------------------- effects


@message
class Register:
    """Register with the coordinator. Result: Registered or Failed."""


@message
class Prepare:
    """Load the data and build the model of the run. Result: Prepared or Failed."""


@message
class Pull:
    """Ask for work. Result: WorkAnnounced and WorkReceived, NoWork, RunFinished or Failed."""


@message
class Train(Generic[Work]):
    """Do the work. Result: Trained or Failed."""

    work: Work


@message
class Push(Generic[Work]):
    """Send the update from byte `offset` on. Result: Pushed or Failed."""

    work: Work
    offset: int


@message
class AskProgress(Generic[Work]):
    """Ask how much of the update the coordinator holds. Result: ProgressKnown or Failed."""

    work: Work


@message
class Return(Generic[Work]):
    """Return the work to the coordinator. Result: Returned."""

    work: Work
    kind: str
    detail: str


@message
class BackOff:
    """Wait. Result: BackoffExpired."""

    seconds: float
    attempt: int
    """Failures in a row."""
    failure: Failure
    because: Failed


@message
class AwaitNextRun:
    """Wait for a heartbeat period. Result: NoWork."""

    reason: str


@message
class StartGrace:
    """Send GraceExpired after the grace period. Not an operation: the current one continues."""


@message
class Leave:
    """Inform the coordinator that the node leaves. Result: Left or Failed."""

    reason: str


@message
class Exit:
    """End the process, with `error` if there is one."""

    error: Exception | None = None


Effect = (
    Register
    | Prepare
    | Pull
    | Train[Work]
    | Push[Work]
    | AskProgress[Work]
    | Return[Work]
    | BackOff
    | AwaitNextRun
    | StartGrace
    | Leave
    | Exit
)
