"""The life of a node as a pure state machine: `handle(event)` gives the effects that the agent runs.

One operation runs at a time: an effect in `OPERATIONS` replaces the one before it, whose late events the agent drops.

    joining → idle → pulling → training → pushing → idle …      and from anywhere to backing_off and back, or to leaving
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from hypergpu.common.keyed_random import KeyedRandom

Work = TypeVar("Work")
"""Whatever the shell calls a unit of work."""

SHUTTING_DOWN = "shutting_down"


class State(StrEnum):
    """Where a node is in its life."""

    JOINING = "joining"
    IDLE = "idle"
    PULLING = "pulling"
    TRAINING = "training"
    PUSHING = "pushing"
    BACKING_OFF = "backing_off"
    LEAVING = "leaving"


class Failure(StrEnum):
    """What a failed call means for what comes next."""

    TRANSIENT = "transient"
    """Trying again may help."""
    UNKNOWN_NODE = "unknown_node"
    """The coordinator does not know the node: register again."""
    STALE = "stale"
    """The work is over: fetch the current one."""
    BAD_WORK = "bad_work"
    """The work cannot be done or its update is refused: hand it back with the reason."""
    FATAL = "fatal"
    """No try can help: wrong token, wrong task."""


# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Started:
    """The process is up."""


@dataclass(frozen=True, slots=True)
class Registered:
    """The coordinator took the node in."""


@dataclass(frozen=True, slots=True)
class OrderArrived(Generic[Work]):
    """A unit of work was announced; its parameters follow."""

    work: Work


@dataclass(frozen=True, slots=True)
class WorkArrived(Generic[Work]):
    """A unit of work is here with all of its parameters."""

    work: Work


@dataclass(frozen=True, slots=True)
class NoWork:
    """There was none within the time waited."""


@dataclass(frozen=True, slots=True)
class Trained:
    """The update is ready."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """The coordinator has the update, or has no more use for it."""


@dataclass(frozen=True, slots=True)
class Returned:
    """The work was handed back, or could not be."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The running operation failed."""

    failure: Failure
    kind: str
    """The error's type."""
    detail: str


@dataclass(frozen=True, slots=True)
class BackoffOver:
    """The wait is over."""


@dataclass(frozen=True, slots=True)
class AskedToRegister:
    """By the coordinator, in answer to a heartbeat: it restarted, or lost the node."""


@dataclass(frozen=True, slots=True)
class AskedToAbandon:
    """The current work is no longer wanted."""


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The run is over."""

    reason: str


@dataclass(frozen=True, slots=True)
class StopAsked:
    """SIGTERM or Ctrl-C."""

    reason: str


@dataclass(frozen=True, slots=True)
class GraceOver:
    """The time to finish after `StopAsked` is over."""


@dataclass(frozen=True, slots=True)
class Left:
    """The coordinator knows that the node is gone, or could not be told."""


Event = (
    Started
    | Registered
    | OrderArrived[Work]
    | WorkArrived[Work]
    | NoWork
    | Trained
    | Pushed
    | Returned
    | Failed
    | BackoffOver
    | AskedToRegister
    | AskedToAbandon
    | RunEnded
    | StopAsked
    | GraceOver
    | Left
)


# ---------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class Register:
    """Register, in answer to which comes Registered or Failed."""


@dataclass(frozen=True, slots=True)
class Pull:
    """Ask for work: OrderArrived and WorkArrived, NoWork, RunEnded or Failed."""


@dataclass(frozen=True, slots=True)
class Train(Generic[Work]):
    """Do the work: Trained or Failed."""

    work: Work


@dataclass(frozen=True, slots=True)
class Push(Generic[Work]):
    """Send the update, or what is missing of it: Pushed or Failed."""

    work: Work
    resume: bool
    """Whether an earlier try may have left a part of it there."""


@dataclass(frozen=True, slots=True)
class Return(Generic[Work]):
    """Hand the work back: Returned."""

    work: Work
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class BackOff:
    """Wait: BackoffOver."""

    seconds: float
    attempt: int
    """Failures in a row."""
    because: Failed


@dataclass(frozen=True, slots=True)
class StartGrace:
    """Send GraceOver when the grace period is over. Not an operation: the work goes on."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Say goodbye: Left."""

    reason: str


@dataclass(frozen=True, slots=True)
class Exit:
    """End; `error` is empty where all went well."""

    error: str = ""


Effect = Register | Pull | Train[Work] | Push[Work] | Return[Work] | BackOff | StartGrace | Leave | Exit


LAST_TRIES = 4
"""Failures in a row after which a node that is to stop takes the coordinator for dead, and goes with its update unsent:
on a link that loses one RPC in ten that is a mistake once in ten thousand times, and costs one update of one node."""


class LifeCycle(Generic[Work]):
    """The life of one node.

    Args:
        draws: the stream of the jitter of waits.
        base: longest first wait in seconds; it doubles with each failure in a row.
        cap: longest wait.
    """

    def __init__(self, draws: KeyedRandom, *, base: float = 0.1, cap: float = 5.0) -> None:
        self.state = State.JOINING
        self.work: Work | None = None
        self._draws, self._base, self._cap = draws, base, cap
        self._waits = 0
        self._failures = 0
        self._stopping = ""
        self._after: Effect[Work] = Register()
        self._because = Failed(Failure.TRANSIENT, "", "")

    def handle(self, event: Event[Work]) -> list[Effect[Work]]:  # noqa: PLR0911, PLR0912  (one case per event)
        """The effects of `event`, in order. An event that the state has no use for has none."""
        if self.state is State.LEAVING:
            return self._leaving(event)
        match event:
            case Started():
                return [Register()]
            case Registered():
                self._failures = 0
                return self._idle()
            case NoWork():
                self._failures = 0
                return self._idle()
            case OrderArrived(work):
                self.state, self.work = State.PULLING, work
            case WorkArrived(work):
                self.state, self.work = State.TRAINING, work
                return [Train(work)]
            case Trained() if self.work is not None:
                self.state, self._failures = State.PUSHING, 0
                return [Push(self.work, resume=False)]
            case Pushed():
                self._failures = 0
                return self._next()
            case Returned():
                self.work = None
                return self._next() if self._stopping else self._wait(Pull(), self._because)
            case Failed():
                return self._failed(event)
            case BackoffOver():
                return self._resume()
            case AskedToRegister() if self.state is not State.JOINING and self._after != Register():
                self.state, self.work = State.JOINING, None
                return self._leave(self._stopping) if self._stopping else [Register()]
            case AskedToAbandon() if self.work is not None:
                return self._next()
            case RunEnded(reason):
                return self._leave(reason)
            case StopAsked(reason):
                return self._stop(reason)
            case GraceOver() if self.work is not None:
                work, self.work = self.work, None
                return [Return(work, SHUTTING_DOWN, "the grace period is over")]
            case _:
                pass
        return []

    def _idle(self) -> list[Effect[Work]]:
        self.state, self.work, self._after = State.IDLE, None, Pull()
        return [Pull()]

    def _next(self) -> list[Effect[Work]]:
        return self._leave(self._stopping) if self._stopping else self._idle()

    def _failed(self, event: Failed) -> list[Effect[Work]]:
        self._failures += 1
        self._because = event
        match event.failure:
            case Failure.FATAL:
                return [Exit(event.detail)]
            case Failure.UNKNOWN_NODE:
                self.work = None
                return self._wait(Register(), event)
            case Failure.STALE:
                self.work = None
                return self._wait(Pull(), event)
            case Failure.BAD_WORK if self.work is not None:
                return [Return(self.work, event.kind, event.detail)]
            case _:
                return self._wait(self._again(), event)

    def _again(self) -> Effect[Work]:
        match self.state:
            case State.JOINING:
                return Register()
            case State.PUSHING if self.work is not None:
                return Push(self.work, resume=True)
            case _:
                return Pull()

    def _wait(self, then: Effect[Work], because: Failed) -> list[Effect[Work]]:
        """Back off before `then`: exponential, with full jitter (Brooker, AWS Architecture Blog, 2015)."""
        if self._stopping and (not isinstance(then, Push) or self._failures >= LAST_TRIES):
            return self._leave(self._stopping)
        bound = min(self._cap, self._base * 2.0 ** min(self._failures - 1, 30))
        seconds = bound * self._draws.uniform(self._waits)
        self._waits += 1
        self.state, self._after = State.BACKING_OFF, then
        return [BackOff(seconds, self._failures, because)]

    def _resume(self) -> list[Effect[Work]]:
        match self._after:
            case Push():
                self.state = State.PUSHING
            case Register():
                self.state = State.JOINING
            case _:
                return self._idle()
        return [self._after]

    def _stop(self, reason: str) -> list[Effect[Work]]:
        if self._stopping:
            return []
        self._stopping = reason
        pushing = self.state is State.BACKING_OFF and isinstance(self._after, Push)
        if self.work is not None and (self.state in {State.TRAINING, State.PUSHING} or pushing):
            return [StartGrace()]
        if self.state is State.JOINING or (self.state is State.BACKING_OFF and self._after == Register()):
            self.state = State.LEAVING
            return [Exit()]
        if self.work is not None:  # ordered, and its parameters still on their way
            work, self.work = self.work, None
            return [Return(work, SHUTTING_DOWN, reason)]
        return self._leave(reason)

    def _leave(self, reason: str) -> list[Effect[Work]]:
        self.state, self.work = State.LEAVING, None
        return [Leave(reason)]

    def _leaving(self, event: Event[Work]) -> list[Effect[Work]]:
        return [Exit()] if isinstance(event, (Left, Failed)) else []
