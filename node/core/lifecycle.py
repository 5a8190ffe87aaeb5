"""The life cycle of a node as a pure state machine: `LifeCycle.handle(event)` returns the effects to carry out.

Two drivers run it: `node/agent.py` in real time and `hypergpu/simulation/node.py` in virtual time. One operation runs
at a time: an effect other than StartGrace replaces the operation before it, whose late events the driver drops.

    joining → preparing → idle → pulling → training → pushing → idle …

From every state the node may go to backing_off and back, or to leaving.
"""

from collections.abc import Callable
from typing import Any, Final, Generic

from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.node.core.events import (
    AbandonRequested,
    AskProgress,
    AwaitNextRun,
    BackOff,
    BackoffExpired,
    Distrusted,
    Effect,
    Event,
    Exit,
    Failed,
    GraceExpired,
    Leave,
    Left,
    NoWork,
    Prepare,
    Prepared,
    ProgressKnown,
    Pull,
    Push,
    Pushed,
    Register,
    Registered,
    RegistrationRequested,
    Return,
    Returned,
    RunFinished,
    Started,
    StartGrace,
    StopRequested,
    Train,
    Trained,
    Work,
    WorkAnnounced,
    WorkReceived,
)
from hypergpu.node.core.failures import Failure, failure_of
from hypergpu.node.core.states import State

SHUTTING_DOWN: Final = "shutting_down"
"""Reason of the work that a node returns because it stops."""
MAX_REASON_LENGTH: Final = 200
MAX_SHUTDOWN_ATTEMPTS: Final = 4
"""Failures in a row after which a stopping node gives its update up and leaves. On a link that loses one RPC in ten,
that happens to one update in ten thousand."""

# Looking an enum's member up is slow, and the simulator handles millions of events.
_JOINING: Final = State.JOINING
_PREPARING: Final = State.PREPARING
_IDLE: Final = State.IDLE
_PULLING: Final = State.PULLING
_TRAINING: Final = State.TRAINING
_PUSHING: Final = State.PUSHING
_BACKING_OFF: Final = State.BACKING_OFF
_LEAVING: Final = State.LEAVING

_REGISTER: Final = Register()
_PREPARE: Final = Prepare()
_PULL: Final = Pull()
_NO_FAILURE: Final = Failed(Exception())


class LifeCycle(Generic[Work]):
    """The life cycle of one process of a node.

    Args:
        draws: random numbers for the jitter of backoffs.
        base: upper bound of the first backoff in seconds; it doubles with each failure in a row.
        cap: upper bound of every backoff in seconds.

    Attributes:
        state: what the node is doing.
        work: the work unit that it holds.
        has_joined: whether it has completed a registration.
    """

    __slots__ = (
        "_after_backoff", "_base", "_cap", "_draws", "_exit_error", "_failures", "_last_failure", "_stopping", "_waits",
        "has_joined", "state", "work",
    )  # fmt: skip

    def __init__(self, draws: KeyedRandom, *, base: float = 0.1, cap: float = 5.0) -> None:
        self.state = _JOINING
        self.work: Work | None = None
        self.has_joined = False
        self._draws, self._base, self._cap = draws, base, cap
        self._waits = 0
        self._failures = 0
        self._stopping = ""
        self._after_backoff: Effect[Work] = _REGISTER
        self._last_failure = _NO_FAILURE
        self._exit_error: Exception | None = None

    def handle(self, event: Event[Work]) -> list[Effect[Work]]:
        """Return the effects of an event, in order; none if the event does not matter in the current state."""
        if self.state is _LEAVING:
            return [Exit(self._exit_error)] if isinstance(event, (Left, Failed)) else []
        return _HANDLERS[event.__class__](self, event)

    # ------------------------------------------------------------ results of operations

    def _on_started(self, _: Started) -> list[Effect[Work]]:
        return [_REGISTER]

    def _on_registered(self, _: Registered) -> list[Effect[Work]]:
        self.state = _PREPARING
        return [_PREPARE]

    def _on_prepared(self, event: Prepared) -> list[Effect[Work]]:
        if event.announce:
            self.state = _JOINING
            return [_REGISTER]
        self.has_joined = True
        self._failures = 0
        return self._idle()

    def _on_no_work(self, _: NoWork) -> list[Effect[Work]]:
        self._failures = 0
        return self._idle()

    def _on_announced(self, event: WorkAnnounced[Work]) -> list[Effect[Work]]:
        self.state, self.work = _PULLING, event.work
        return []

    def _on_received(self, event: WorkReceived[Work]) -> list[Effect[Work]]:
        self.state, self.work = _TRAINING, event.work
        return [Train(event.work)]

    def _on_trained(self, _: Trained) -> list[Effect[Work]]:
        if self.work is None:
            return []
        self.state, self._failures = _PUSHING, 0
        return [Push(self.work, 0)]

    def _on_progress(self, event: ProgressKnown) -> list[Effect[Work]]:
        if event.accepted:
            return self._on_pushed()
        return [] if self.work is None else [Push(self.work, event.next_offset)]

    def _on_pushed(self, _: Pushed | None = None) -> list[Effect[Work]]:
        self._failures = 0
        return self._next()

    def _on_returned(self, _: Returned) -> list[Effect[Work]]:
        self.work = None
        return self._next() if self._stopping else self._back_off(_PULL, Failure.BAD_WORK)

    def _on_failed(self, event: Failed) -> list[Effect[Work]]:
        self._failures += 1
        self._last_failure = event
        failure = failure_of(event.error, self.state, has_joined=self.has_joined)
        match failure:
            case Failure.FATAL:
                return self._die(event)
            case Failure.UNKNOWN_NODE:
                self.work = None
                return self._back_off(_REGISTER, failure)
            case Failure.STALE:
                self.work = None
                return self._back_off(_PULL, failure)
            case Failure.BAD_WORK if self.work is not None:
                return [Return(self.work, event.kind, event.detail)]
            case _:
                return self._back_off(self._retry(), failure)

    def _on_backoff_expired(self, _: BackoffExpired) -> list[Effect[Work]]:
        after = self._after_backoff
        if isinstance(after, Pull):
            return self._idle()
        self.state = _PUSHING if isinstance(after, AskProgress) else _JOINING
        return [after]

    # ------------------------------------------------------------ requests

    def _on_registration_requested(self, _: RegistrationRequested) -> list[Effect[Work]]:
        registering = self.state is _JOINING or self.state is _PREPARING
        if registering or (self.state is _BACKING_OFF and isinstance(self._after_backoff, Register)):
            return []
        self.state, self.work = _JOINING, None
        return self._leave(self._stopping) if self._stopping else [_REGISTER]

    def _on_abandon_requested(self, event: AbandonRequested[Work]) -> list[Effect[Work]]:
        # The request may refer to work that was finished while it was on its way.
        return self._next() if self.work is not None and self.work is event.work else []

    def _on_run_finished(self, event: RunFinished) -> list[Effect[Work]]:
        if not event.coordinator_stays or self._stopping:
            return self._leave(event.reason)
        self._idle()
        return [AwaitNextRun(event.reason)]

    def _on_distrusted(self, event: Distrusted) -> list[Effect[Work]]:
        self._exit_error = event.error
        return self._leave(f"{type(event.error).__name__}: {event.error}"[:MAX_REASON_LENGTH])

    def _on_stop_requested(self, event: StopRequested) -> list[Effect[Work]]:
        if self._stopping:
            return []
        self._stopping = event.reason
        state, after = self.state, self._after_backoff
        if state is _JOINING or (state is _BACKING_OFF and isinstance(after, Register)):
            self.state = _LEAVING
            return [Exit()]
        if self.work is None:
            return self._leave(event.reason)
        if state is _TRAINING or state is _PUSHING or (state is _BACKING_OFF and isinstance(after, AskProgress)):
            return [StartGrace()]
        work, self.work = self.work, None  # assigned, and its parameters are still on their way
        return [Return(work, SHUTTING_DOWN, event.reason)]

    def _on_grace_expired(self, _: GraceExpired) -> list[Effect[Work]]:
        work, self.work = self.work, None
        return [] if work is None else [Return(work, SHUTTING_DOWN, "the grace period is over")]

    def _on_left(self, _: Left) -> list[Effect[Work]]:
        return []

    # ------------------------------------------------------------ transitions

    def _idle(self) -> list[Effect[Work]]:
        self.state, self.work, self._after_backoff = _IDLE, None, _PULL
        return [_PULL]

    def _next(self) -> list[Effect[Work]]:
        return self._leave(self._stopping) if self._stopping else self._idle()

    def _retry(self) -> Effect[Work]:
        """Return the operation that tries again what failed."""
        if self.state is _JOINING or self.state is _PREPARING:
            return _REGISTER
        return AskProgress(self.work) if self.state is _PUSHING and self.work is not None else _PULL

    def _back_off(self, then: Effect[Work], failure: Failure) -> list[Effect[Work]]:
        """Wait before `then`: exponential backoff with full jitter (Brooker, AWS Architecture Blog, 2015)."""
        if self._stopping and (not isinstance(then, AskProgress) or self._failures >= MAX_SHUTDOWN_ATTEMPTS):
            return self._leave(self._stopping)
        bound = min(self._cap, self._base * 2.0 ** min(self._failures - 1, 30))
        seconds = bound * self._draws.uniform(self._waits)
        self._waits += 1
        self.state, self._after_backoff = _BACKING_OFF, then
        return [BackOff(seconds, self._failures, failure, self._last_failure)]

    def _die(self, event: Failed) -> list[Effect[Work]]:
        """Exit with the error; first inform a coordinator that counts on the node because it has registered."""
        if self.state is not _PREPARING:
            return [Exit(event.error)]
        self._exit_error = event.error
        return self._leave(f"{event.kind}: {event.detail}"[:MAX_REASON_LENGTH])

    def _leave(self, reason: str) -> list[Effect[Work]]:
        self.state, self.work = _LEAVING, None
        return [Leave(reason)]


_HANDLERS: Final[dict[type, Callable[[Any, Any], list[Any]]]] = {
    Started: LifeCycle._on_started,
    Registered: LifeCycle._on_registered,
    Prepared: LifeCycle._on_prepared,
    WorkAnnounced: LifeCycle._on_announced,
    WorkReceived: LifeCycle._on_received,
    NoWork: LifeCycle._on_no_work,
    Trained: LifeCycle._on_trained,
    ProgressKnown: LifeCycle._on_progress,
    Pushed: LifeCycle._on_pushed,
    Returned: LifeCycle._on_returned,
    Failed: LifeCycle._on_failed,
    BackoffExpired: LifeCycle._on_backoff_expired,
    RegistrationRequested: LifeCycle._on_registration_requested,
    AbandonRequested: LifeCycle._on_abandon_requested,
    RunFinished: LifeCycle._on_run_finished,
    Distrusted: LifeCycle._on_distrusted,
    StopRequested: LifeCycle._on_stop_requested,
    GraceExpired: LifeCycle._on_grace_expired,
    Left: LifeCycle._on_left,
}
