"""A node in virtual time: what `node/agent.py` says on the wire, in the same order, without the waiting."""

import math
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final, NamedTuple, Protocol

from hypergpu.common.config import SystemConfig
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.netsim_proxy.link.outcomes import Deliver, Direction, Fail, Hold
from hypergpu.simulation import wire
from hypergpu.simulation.calls import Call, Line
from hypergpu.simulation.virtual_time import VirtualTime

UP: Final = Direction.UP
DOWN: Final = Direction.DOWN
LEAST_BEAT_PATIENCE_SECONDS: Final = 5.0
"""What an agent waits for the answer to a heartbeat, or two of its periods where they are longer."""


class Directive(Enum):
    """What the answer to a heartbeat asks for."""

    CONTINUE = "continue"
    REGISTER_AGAIN = "register_again"
    ABANDON_WORK = "abandon_work"


class Host(Protocol):
    """The coordinator as a node sees it: called when a request has arrived there."""

    def registered(self, node: "SimulatedNode") -> None:
        """Register arrived."""
        ...

    def work_requested(self, node: "SimulatedNode", call: Call) -> None:
        """PullWork arrived; the order is sent on `call` when there is one."""
        ...

    def request_ended(self, node: "SimulatedNode", call: Call) -> bool:
        """The long poll on `call` is over; False if that is answered already."""
        ...

    def is_over(self, order: ev.WorkAssigned) -> bool:
        """Whether the round of an order is over."""
        ...

    def has_accepted(self, order: ev.WorkAssigned) -> bool:
        """GetUploadProgress: whether the update of this order is in."""
        ...

    def update_arrived(self, node: "SimulatedNode", order: ev.WorkAssigned, seconds: float, call: Call) -> None:
        """A whole update arrived; the reply is sent on `call`."""
        ...

    def heard(self, node: "SimulatedNode", at: float, rtt_ms: float) -> Directive:
        """A heartbeat arrived at `at`; what its answer says."""
        ...


class Compute(Protocol):
    """How long computing takes."""

    def seconds(self, node_id: str, step: int, batch_size: int, steps: int, now: float) -> float:
        """Of `steps` steps on `batch_size` samples each, of which the first is the node's number `step`."""
        ...


class Start(NamedTuple):
    """When a node's process dials first, and what it then needs for its model and data."""

    joins_seconds: float = 0.0
    prepares_seconds: float = 0.0


class SimulatedNode:
    """One node, its line and its life: register, prepare, register again with what the card holds; then pull work,
    compute, push the update, and again.

    Heartbeats are caught up with when somebody looks, or when the node does something else on its link: they keep their
    times and their place in the order of the link's RPCs, but need no place on the heap.
    """

    __slots__ = (
        "_again", "_compute", "_computed_seconds", "_draws", "_failed_in_a_row", "_handling_seconds",
        "_heartbeat_seconds", "_host", "_next_beat", "_order", "_poll_until", "_polling", "_prepared",
        "_prepares_seconds", "_rtt_ms", "_settings", "_step", "_time", "_waits", "_watching", "_weight", "attempts",
        "failures", "incarnation", "info", "largest_batch", "last_seen", "line", "node_id", "running",
    )  # fmt: skip

    def __init__(
        self,
        node_id: str,
        line: Line,
        host: Host,
        time: VirtualTime,
        compute: Compute,
        *,
        seed: int,
        model_bytes: int,
        config: SystemConfig,
        info: Mapping[str, str],
        prepares_seconds: float = 0.0,
        handling_seconds: float = 0.0,
    ) -> None:
        self.node_id = node_id
        self.info = info
        """What it says about itself when it registers."""
        self.largest_batch = 0
        self.line = line
        self.running = False
        self.incarnation = 0
        self.attempts = self.failures = 0
        """RPCs that this process made, and those of them that failed."""
        self.last_seen = 0.0
        """When the coordinator last heard of it."""
        self._host, self._time, self._compute = host, time, compute
        self._heartbeat_seconds = config.server.heartbeat_seconds
        self._weight = wire.chunks_bytes(model_bytes), 1 + wire.chunk_count(model_bytes)
        """Of parameters or an update with what announces it: bytes of the chunks, messages in all."""
        self._settings = config.node
        self._draws = KeyedRandom(seed, "backoff", node_id)
        self._waits = self._failed_in_a_row = 0
        self._again: Callable[[], None] = self._register
        self._step = 0
        self._order: ev.WorkAssigned | None = None
        self._computed_seconds = 0.0
        self._next_beat = math.inf
        self._prepares_seconds, self._handling_seconds = prepares_seconds, handling_seconds
        self._prepared = False
        self._rtt_ms = 0.0
        self._watching = False
        self._poll_until = 0.0
        self._polling = False

    # ------------------------------------------------------------ life

    def start(self) -> None:
        """The process starts: it registers, and asks for work."""
        if not self.running:
            self.running = True
            self.incarnation += 1
            self.attempts = self.failures = 0
            self._next_beat, self._prepared = math.inf, False
            self._register()

    def crash(self) -> None:
        """The process ends without a word."""
        if self.running:
            self.catch_up()
            self.running = False
            self._order = None
            if self.line.work is not None:
                self.line.work.close()
            self.line.reconnect()

    def seen(self, at: float) -> None:
        """Something of it reached the coordinator at `at`, which may be still to come."""
        self.last_seen = at if at > self.last_seen else self.last_seen

    # ------------------------------------------------------------ RPCs, one after the other

    def _call(self, again: Callable[[], None]) -> Call:
        """Begin an RPC; should it fail, `again` follows after a while."""
        if self._next_beat <= self._time.clock.now:
            self.catch_up()
        self._again = again
        return self.line.call(self._failed)

    def _failed(self) -> None:
        self.attempts += 1
        self.failures += 1
        self._failed_in_a_row += 1
        # Full jitter below a bound that doubles, as the life cycle of the agent has it.
        settings = self._settings
        bound = min(
            settings.backoff_cap_seconds, settings.backoff_base_seconds * 2.0 ** min(self._failed_in_a_row - 1, 30)
        )
        seconds = bound * self._draws.uniform(self._waits)
        self._waits += 1
        self._time.at(self._time.now + seconds, self._retry, self._again, self.incarnation)

    def _retry(self, again: Callable[[], None], incarnation: int) -> None:
        if self.running and self.incarnation == incarnation and self.line.work is None and self._again == again:
            again()

    def _done(self, call: Call) -> None:
        call.close()
        self.attempts += 1
        self._failed_in_a_row = 0

    def _register(self) -> None:
        call = self._call(self._register)
        call.send(UP, wire.REGISTER_BYTES, 1, True, self._registered)

    def _registered(self, call: Call) -> None:
        self._host.registered(self)
        call.send(DOWN, wire.REGISTERED_BYTES, 1, True, self._welcomed)

    def _welcomed(self, call: Call) -> None:
        self._done(call)
        if self._prepared:
            self._pull()
            return
        now = self._time.now
        if self._next_beat == math.inf:
            self._next_beat = now + self._heartbeat_seconds
        self._time.at(now + self._prepares_seconds, self._is_prepared, self.incarnation)

    def _is_prepared(self, incarnation: int) -> None:
        if self.running and self.incarnation == incarnation:
            self._prepared = True
            self._register()

    def _pull(self) -> None:
        call = self._call(self._pull)
        call.send(UP, wire.REQUEST_BYTES, 1, True, self._asked)
        self._poll_until = self._time.clock.now + self._settings.pull_wait_seconds
        if not self._polling:  # one place on the heap for all polls: nearly none comes to its end
            self._polling = True
            self._time.at(self._poll_until, self._is_poll_over)

    def _asked(self, call: Call) -> None:
        self._host.work_requested(self, call)

    def _pull_next(self, call: Call) -> None:
        self._done(call)
        self._pull()

    def _is_poll_over(self) -> None:
        if self._time.now < self._poll_until:
            self._time.at(self._poll_until, self._is_poll_over)
            return
        self._polling = False
        call = self.line.work
        if call is not None and self._host.request_ended(self, call):
            call.send(DOWN, wire.REPLY_BYTES, 0, True, self._pull_next)

    def send_order(self, order: ev.WorkAssigned, call: Call) -> None:
        """The coordinator answers PullWork: the order, then the parameters."""
        nbytes, messages = self._weight
        call.about = order
        call.send(DOWN, wire.ORDER_BYTES + nbytes, messages, True, self._received)

    def send_away(self, call: Call) -> None:
        """The coordinator does not know the node any more: it has to register again."""
        call.send(DOWN, wire.REPLY_BYTES, 0, True, self._sent_away)

    def _sent_away(self, call: Call) -> None:
        self._done(call)
        self._register()

    def _received(self, call: Call) -> None:
        self._done(call)
        order: ev.WorkAssigned = call.about
        self._order = order
        now = self._time.clock.now
        seconds = self._compute.seconds(self.node_id, self._step, order.batch_size, order.local_steps, now)
        self._step += order.local_steps
        self._time.at(now + self._handling_seconds + seconds, self._computed, order, seconds)

    def _computed(self, order: ev.WorkAssigned, seconds: float) -> None:
        if self._order is order:
            self._computed_seconds = seconds
            self._push()

    def _push(self) -> None:
        order = self._order
        if order is None:
            return
        call = self._call(self._ask_progress)
        # Of a round that is over, the answer comes when the header is there.
        nbytes, messages = (0, 1) if self._host.is_over(order) else self._weight
        call.about = order
        call.send(UP, wire.HEADER_BYTES + nbytes, messages, True, self._push_arrived)

    def _push_arrived(self, call: Call) -> None:
        self._host.update_arrived(self, call.about, self._computed_seconds, call)

    def send_verdict(self, call: Call) -> None:
        """The coordinator answers PushUpdate, whatever the verdict: the node asks for the next order."""
        call.send(DOWN, wire.REPLY_BYTES, 1, True, self._pushed)

    def _pushed(self, call: Call) -> None:
        self._order = None
        self._pull_next(call)

    def _ask_progress(self) -> None:
        """A push failed: go on with it where the coordinator has it."""
        order = self._order
        if order is not None:
            call = self._call(self._ask_progress)
            call.about = order
            call.send(UP, wire.REQUEST_BYTES, 1, True, self._progress_asked)

    def _progress_asked(self, call: Call) -> None:
        told = self._pushed if self._host.has_accepted(call.about) else self._push_again
        call.send(DOWN, wire.REPLY_BYTES, 1, True, told)

    def _push_again(self, call: Call) -> None:
        self._done(call)
        self._push()

    # ------------------------------------------------------------ heartbeats

    def catch_up(self) -> None:
        """Send the heartbeats that were due until now."""
        now = self._time.clock.now
        while self._next_beat <= now and self.running:
            self._beat(self._next_beat)

    def watch(self) -> None:
        """Send the next heartbeat at its very time: its answer will tell the node to do something."""
        if self.running and not self._watching and self._next_beat < math.inf:
            self._watching = True
            self._time.at(self._next_beat, self._watched, self.incarnation)

    def _watched(self, incarnation: int) -> None:
        self._watching = False
        if not self.running or self.incarnation != incarnation:
            return
        if self._next_beat > self._time.now:  # caught up with meanwhile
            self.watch()
            return
        directive, told_at = self._beat(self._next_beat)
        if directive is None:
            self.watch()
        elif directive is not Directive.CONTINUE:
            self._time.at(told_at, self._obey, directive, self._order)

    def _beat(self, at: float) -> tuple[Directive | None, float]:
        """One heartbeat at `at`; the directive of its answer or None if it failed, and when that is known."""
        directive, ended_at = self._exchange_beat(at)
        self._next_beat = ended_at + self._heartbeat_seconds
        return directive, ended_at

    def _exchange_beat(self, at: float) -> tuple[Directive | None, float]:
        line, link = self.line, self.line.link
        self.attempts += 1
        line.messages += 1
        exchange = link.begin(at, line.connection)
        sent = link.offer(at, UP, wire.HEARTBEAT_BYTES, exchange, end=True)
        if not isinstance(sent, Deliver):
            self.failures += 1
            return None, self._known_at(at, sent)
        line.messages += 1
        directive = self._host.heard(self, sent.at, self._rtt_ms)
        # Offered now rather than at its time, so that the link's clock does not run ahead of the node.
        answered = link.offer(at, DOWN, wire.REPLY_BYTES, exchange, end=True)
        if not isinstance(answered, Deliver):
            self.failures += 1
            return None, self._known_at(at, answered)
        rtt = sent.at - at + answered.at - at
        self._rtt_ms = 1000.0 * rtt
        return directive, at + rtt

    def _known_at(self, at: float, refused: Fail | Hold) -> float:
        """When the node knows that a heartbeat of `at` failed: it is told, or has waited long enough."""
        patience = at + max(LEAST_BEAT_PATIENCE_SECONDS, 2 * self._heartbeat_seconds)
        return min(refused.at, patience) if isinstance(refused, Fail) else patience

    def _obey(self, directive: Directive, order: ev.WorkAssigned | None) -> None:
        if not self.running or not self._prepared:
            return
        call = self.line.work
        if directive is Directive.REGISTER_AGAIN:
            if call is not None:
                call.close()
            self._order = None
            self._register()
        elif order is not None and self._order is order:
            self._order = None
            if call is not None:
                call.close()
            self._pull()
