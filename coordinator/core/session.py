"""Session of a node with the coordinator: `Session.handle(request, now) -> reply, effects`.

Pure, with two drivers: `coordinator/engine.py` with the gRPC service in real time, `hypergpu/simulation/coordinator.py`
in virtual time. A driver carries the effects out in order, and sends the reply to the node. A reply that is an error is
sent as one, after the effects. A request that raises an error has no effects.
"""

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from enum import StrEnum
from typing import Any, Final, Generic, Protocol, TypeVar

from hypergpu.common.data_report import DataReport
from hypergpu.common.errors import (
    HyperGPUError,
    InvalidInput,
    NameInUse,
    NonFiniteUpdate,
    ProtocolError,
    StaleWork,
)
from hypergpu.common.identity import ADVICE, TaskIdentity, differences
from hypergpu.common.message import message
from hypergpu.common.metric import finite
from hypergpu.common.node_terms import FREE, NodeTerms
from hypergpu.common.step_times import StepTimes
from hypergpu.coordinator.core.leases import Leases
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.coordinator.core.rounds.work import WorkUnit

Reply = TypeVar("Reply")
Answer = tuple[Reply | HyperGPUError, Sequence[ev.Effect]]
"""Reply to a request, and the effects of the request."""

BUSY_STATES: Final = frozenset({"pulling", "training", "pushing"})
"""States in which a node works on something that it can abandon."""
MAX_DIFFERENCES: Final = 4
"""Differences between two tasks that an error names."""
MAX_DETAIL_LENGTH: Final = 256
_ACCEPTED_BEFORE: Final = ev.UpdateStatus.DUPLICATE
_STALE: Final = ev.UpdateStatus.STALE


class Directive(StrEnum):
    """Instruction to the node in the reply to a heartbeat."""

    CONTINUE = "continue"
    REGISTER_AGAIN = "register_again"
    """The coordinator does not know the node, or runs another run."""
    ABANDON_WORK = "abandon_work"
    """The round of the node's work is over."""
    SHUT_DOWN = "shut_down"
    """The run is over, and the coordinator ends."""


_CONTINUE: Final = Directive.CONTINUE
_REGISTER_AGAIN: Final = Directive.REGISTER_AGAIN
_ABANDON_WORK: Final = Directive.ABANDON_WORK
_SHUT_DOWN: Final = Directive.SHUT_DOWN


class LinkObserver(Protocol):
    """Observer of the nodes' links."""

    def register(self, node: "Register") -> None:
        """Note that a node joined, with what it says of itself."""
        ...

    def observe_heartbeat(self, node: str, report: Mapping[str, Any], rtt_ms: float, loaded: bool) -> None:
        """Note a heartbeat, the round trip of the one before it, and what the node counted itself."""
        ...

    def seen(self, node: str) -> None:
        """Note that a part of an upload of the node arrived."""
        ...

    def freeze(self, node: str) -> None:
        """Keep what is known of a node's link as it is."""
        ...


# ---------------------------------------------------------------- requests


class Request(Generic[Reply]):
    """A request that is answered with a `Reply`."""

    __slots__ = ()


@message
class Register(Request[None]):
    """Join the run, or announce more about a member."""

    node: str
    incarnation: str
    """Identifies the process."""
    largest_batch: int
    """Samples that fit the node's memory; 0 if unknown."""
    info: Mapping[str, str]
    identity: TaskIdentity | None
    """Identity of the task that the node loaded; None before it has loaded one."""
    terms: NodeTerms = FREE
    data: DataReport | None = None
    """The node's report of the samples that it alone holds; None if it gives none."""
    lease: str = ""
    """Secret of an earlier lease of the node; empty if it shows none."""
    step_times: StepTimes | None = None
    """Time of its steps, as the node has measured it; None if it has not."""


@message
class Heartbeat(Request[Directive]):
    """Prove that the node is alive."""

    node: str
    run_id: str
    state: str
    rtt_ms: float
    """Round trip of the heartbeat before it; 0 if that failed."""
    loaded: bool
    """True if a transfer of the node was in the way of the heartbeat before it."""
    report: Mapping[str, Any]


@message
class Pull(Request[None]):
    """Wait for work: a WorkAssigned or RunOver effect for the node, now or later."""

    node: str
    run_id: str


@message
class EndPull(Request[None]):
    """Stop waiting for work."""

    node: str


@message
class AskParameters(Request[None]):
    """Ask for more of the parameters of a work unit that was assigned."""

    node: str
    run_id: str
    round: int
    attempt: int


@message
class OfferUpdate(Request[ev.UpdateReply | None]):
    """Ask whether an update is needed before it is received. None: it is."""

    run_id: str
    update: ev.UpdateArrived


@message
class Update(Request[ev.UpdateReply]):
    """Deliver a whole update with its norm."""

    update: ev.UpdateArrived


@message
class RejectUpdate(Request[None]):
    """Reject an update that the driver cannot use."""

    update: ev.UpdateArrived
    error: HyperGPUError
    """Reason for the rejection."""


@message
class AskProgress(Request[bool]):
    """Ask whether an update has been accepted."""

    node: str
    run_id: str
    round: int


@message
class Return(Request[None]):
    """Return work that the node does not do."""

    node: str
    run_id: str
    round: int
    attempt: int
    reason: str
    detail: str


@message
class Leave(Request[None]):
    """Leave the run."""

    node: str
    run_id: str
    reason: str


# ---------------------------------------------------------------- the session


class Session:
    """The coordinator as its nodes see it.

    Args:
        run_id: identifies the run; a coordinator that starts again has another.
        machine: the rounds.
        links: receives what requests show of a node's link.
        identity: identity of the task; None = nodes need none.
        stays: whether the coordinator keeps answering after the end of the run.
        leases: leases of the nodes' names; None = every process is what it says, as in virtual time.
    """

    def __init__(
        self,
        run_id: str,
        machine: RoundMachine,
        links: LinkObserver,
        *,
        identity: TaskIdentity | None = None,
        stays: bool = False,
        leases: Leases | None = None,
    ) -> None:
        self.run_id = run_id
        self.leases = leases
        self._machine, self._links = machine, links
        self._identity, self._stays = identity, stays
        self._names = 0
        self._handlers: dict[type, Callable[[Any, float], Answer[Any]]] = {
            Register: self._on_register,
            Heartbeat: self._on_heartbeat,
            Pull: self._on_pull,
            EndPull: self._on_end_pull,
            AskParameters: self._on_ask_parameters,
            OfferUpdate: self._on_offer,
            Update: self._on_update,
            RejectUpdate: self._on_reject,
            AskProgress: self._on_ask_progress,
            Return: self._on_return,
            Leave: self._on_leave,
        }

    def handle(self, request: Request[Reply], now: float) -> Answer[Reply]:
        """Return the reply to a request, and its effects in order.

        Raises:
            StaleWork: the node is no member of this run.
            ProtocolError: the update is not in the ordered codec.
            InvalidInput: the node's task is not the coordinator's, or its incarnation is malformed.
            ResourceExhausted: no more nodes may register.
        """
        return self._handlers[request.__class__](request, now)

    # ------------------------------------------------------------ questions of the driver

    def free_name(self) -> str:
        """Return a name for a node that gave none."""
        while True:
            self._names += 1
            name = f"node_{self._names}"
            if self._machine.members.get(name) is None:
                return name

    def seen(self, node: str, now: float) -> None:
        """Note that a part of an upload arrived: heartbeats may wait behind it."""
        if self._machine.seen(node, now):
            self._links.seen(node)

    def is_member(self, node: str) -> bool:
        """Return whether the node is connected."""
        return node in self._machine.members.connected

    def needs_update(self, node: str, round_number: int) -> bool:
        """Return whether an update of the node for this round would be used."""
        return self._machine.wanted_unit(node, round_number) is not None

    @property
    def members(self) -> Set[str]:
        """Names of the connected nodes."""
        return self._machine.members.connected.keys()

    @property
    def stragglers(self) -> Set[str]:
        """Connected nodes that work on a round which is over."""
        return self._machine.members.stragglers.keys()

    def suspects(self, now: float) -> list[str]:
        """Return the nodes whose silence the next `Tick` at `now` judges."""
        return self._machine.members.suspects(now)

    # ------------------------------------------------------------ membership

    def _on_register(self, request: Register, now: float) -> Answer[None]:
        node = request.node
        if self.leases is not None:
            try:
                self.leases.require_free(node, request.incarnation, request.lease, now)
            except NameInUse as error:
                return error, self._contested(node, request.info.get("peer", ""), now)
        self._require_same_task(node, request.identity)
        gone = self._make_room(node, now)
        self._machine.members.admit(node)
        self._links.register(request)  # first: joining may begin a round with the node
        has_same_task = request.identity is not None
        joined = ev.NodeJoined(
            node, request.incarnation, request.largest_batch, request.info, has_same_task, request.terms, request.data
        )
        return None, [*gone, *self._machine.handle(joined, now)]

    def _make_room(self, node: str, now: float) -> Sequence[ev.Effect]:
        """Disconnect a node that never asked for work if a newcomer would not be admitted otherwise."""
        ghost = self._machine.members.ghost(node)
        if not ghost:
            return ()
        return self._machine.handle(ev.NodeLost(ghost, f"made room for {node}: it had never asked for work"), now)

    def _contested(self, node: str, address: str, now: float) -> Sequence[ev.Effect]:
        """Return the record of a process that wants the name of a connected node."""
        if self.leases is None or not self.leases.contest(node, address, now):
            return ()
        text = f"another process, at {address or 'an unknown address'}, wanted to register as {node}: it was refused"
        return (ev.RunEvent("name_contested", self._machine.round, text, {"node": node, "address": address}),)

    def _on_heartbeat(self, request: Heartbeat, now: float) -> Answer[Directive]:
        machine, node = self._machine, request.node
        if request.run_id != self.run_id or not machine.seen(node, now):
            return _REGISTER_AGAIN, ()
        self._links.observe_heartbeat(node, request.report, request.rtt_ms, request.loaded)
        if machine.finished and not self._stays:
            return _SHUT_DOWN, ()
        is_late = node in machine.members.stragglers and request.state in BUSY_STATES
        if is_late and not machine.may_finish(node, now):
            machine.abandon(node, request.state, _step_seconds(request.report), now)
            return _ABANDON_WORK, ()
        return _CONTINUE, ()

    def _on_leave(self, request: Leave, now: float) -> Answer[None]:
        self._require_run(request.run_id)
        if self._machine.members.get(request.node) is not None:
            self._links.freeze(request.node)
        return None, self._machine.handle(ev.NodeLeft(request.node, request.reason), now)

    # ------------------------------------------------------------ work

    def _on_pull(self, request: Pull, now: float) -> Answer[None]:
        self._require_run(request.run_id)
        member = self._machine.members.connected.get(request.node)
        if member is None:
            raise StaleWork(f"node {request.node!r} is not registered: register again")
        if self._identity is not None and not member.has_same_task:
            reason = "registered without the identity of its task: register again, with it"
            raise StaleWork(f"node {request.node!r} {reason}")
        return None, self._machine.handle(ev.WorkRequested(request.node), now)

    def _on_end_pull(self, request: EndPull, now: float) -> Answer[None]:
        return None, self._machine.handle(ev.RequestEnded(request.node), now)

    def _on_ask_parameters(self, request: AskParameters, now: float) -> Answer[None]:
        self._require_run(request.run_id)
        if not self._machine.is_assigned(request.node, request.round, request.attempt):
            raise StaleWork(f"round {request.round}, attempt {request.attempt}, is not work of {request.node} now")
        self.seen(request.node, now)
        return None, ()

    def _on_return(self, request: Return, now: float) -> Answer[None]:
        self._require_run(request.run_id)
        returned = ev.WorkReturned(request.node, request.round, request.attempt, request.reason, request.detail)
        return None, self._machine.handle(returned, now)

    # ------------------------------------------------------------ updates

    def _on_ask_progress(self, request: AskProgress, _: float) -> Answer[bool]:
        self._require_run(request.run_id)
        return self._machine.update_status(request.node, request.round) is _ACCEPTED_BEFORE, ()

    def _on_offer(self, request: OfferUpdate, now: float) -> Answer[ev.UpdateReply | None]:
        self._require_run(request.run_id)
        update = request.update
        unit = self._machine.wanted_unit(update.node, update.round)
        if unit is None:
            return self._take(replace(update, received_share=0.0), now)
        _require_codec(update, unit)
        self._machine.offered(update.node, now)
        return None, ()

    def _on_update(self, request: Update, now: float) -> Answer[ev.UpdateReply]:
        update = request.update
        unit = self._machine.wanted_unit(update.node, update.round)
        if unit is not None:
            _require_codec(update, unit)
            if not math.isfinite(update.loss) or (update.norm is not None and not math.isfinite(update.norm)):
                error = NonFiniteUpdate(f"the update of {update.node} for round {update.round} holds NaN or infinity")
                return error, self._reject(update, error, now)
        return self._take(update, now)

    def _on_reject(self, request: RejectUpdate, now: float) -> Answer[None]:
        return None, self._reject(request.update, request.error, now)

    def _take(self, update: ev.UpdateArrived, now: float) -> Answer[ev.UpdateReply]:
        reply, effects = self._machine.take_update(update, now)
        if reply.status is _STALE:
            return StaleWork(f"no such work was assigned: {reply.detail}"), effects
        return reply, effects

    def _reject(self, update: ev.UpdateArrived, error: HyperGPUError, now: float) -> Sequence[ev.Effect]:
        detail = str(error)[:MAX_DETAIL_LENGTH]
        returned = ev.WorkReturned(update.node, update.round, update.attempt, type(error).__name__, detail)
        return self._machine.handle(returned, now)

    # ------------------------------------------------------------ checks

    def _require_run(self, run_id: str) -> None:
        if run_id != self.run_id:
            raise StaleWork(f"unknown run {run_id[:80]!r} (current: {self.run_id!r}): register again")

    def _require_same_task(self, node: str, identity: TaskIdentity | None) -> None:
        if self._identity is None or identity is None:
            return  # the node does not know its task yet: it registers again when it does
        found = differences(self._identity, identity)
        if found:
            shown = "; ".join(found[:MAX_DIFFERENCES])
            raise InvalidInput(f"the task of {node} is another one than the coordinator's: {shown}. {ADVICE}")


def _require_codec(update: ev.UpdateArrived, unit: WorkUnit) -> None:
    ordered = unit.codecs.update
    if update.codec != ordered and update.codec not in unit.earlier_codecs:
        raise ProtocolError(f"an update of {update.node} in codec {update.codec}; the order says {ordered}")


def _step_seconds(report: Mapping[str, Any]) -> float:
    """Return the duration of a step that a node reports; 0 if it reports none."""
    performance = report.get("performance")
    reported = finite(performance.get("step_time")) if isinstance(performance, Mapping) else None
    return max(0.0, reported or 0.0)
