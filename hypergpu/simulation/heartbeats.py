"""Heartbeats of a simulated node, sent late but dated correctly."""

import math
from typing import TYPE_CHECKING, Final

from hypergpu.coordinator.core.session import Directive
from hypergpu.netsim_proxy.link.outcomes import Blocked, Deliver, Direction, Fail
from hypergpu.node.core import events as life
from hypergpu.node.core.timeouts import heartbeat_timeout_seconds
from hypergpu.simulation import message_sizes
from hypergpu.simulation.virtual_time import VirtualTime

if TYPE_CHECKING:
    from hypergpu.coordinator.core.rounds.events import WorkAssigned
    from hypergpu.simulation.node import CoordinatorApi, SimulatedNode

_UP: Final = Direction.UP
_DOWN: Final = Direction.DOWN


_CONTINUE: Final = Directive.CONTINUE


class Heartbeats:
    """The heartbeats of one node.

    Most of them only prove that the node lives. They are sent in batches, by `flush`, when somebody looks or when the
    node does something else on its link: each keeps its time and its place in the order of the link's RPCs, and none
    needs an entry in the event queue. `watch` sends the next one on time, because its reply will matter.

    Attributes:
        next_at: when the next heartbeat is due; infinite before the first registration.
        period_seconds: from the end of one heartbeat to the next.
    """

    __slots__ = ("_api", "_loaded", "_node", "_rtt_ms", "_time", "_watching", "next_at", "period_seconds")

    def __init__(self, node: "SimulatedNode", time: VirtualTime, api: "CoordinatorApi", period_seconds: float) -> None:
        self.next_at = math.inf
        self.period_seconds = period_seconds
        self._node, self._time, self._api = node, time, api
        self._rtt_ms = 0.0
        self._loaded = False
        self._watching = False

    def start(self) -> None:
        """Send the first heartbeat in one period, if none is due."""
        if self.next_at == math.inf:
            self.next_at = self._time.clock.now + self.period_seconds

    def stop(self) -> None:
        """Send no more, until `start`."""
        self.next_at = math.inf

    def flush(self) -> None:
        """Send the heartbeats that were due until now."""
        now = self._time.clock.now
        while self.next_at <= now and self._node.running:
            self._send(self.next_at)

    def watch(self) -> None:
        """Send the next heartbeat at its exact time and follow the directive in its reply."""
        if self._node.running and not self._watching and self.next_at < math.inf:
            self._watching = True
            self._time.at(self.next_at, self._on_time, self._node.incarnation)

    def _on_time(self, incarnation: int) -> None:
        self._watching = False
        node = self._node
        if not node.running or node.incarnation != incarnation:
            return
        if self.next_at > self._time.now:  # sent by `flush` meanwhile
            self.watch()
            return
        work = node.work
        directive, known_at = self._send(self.next_at)
        if directive is None or (directive is _CONTINUE and self._api.is_straggler(node)):
            self.watch()
        elif directive is not _CONTINUE:
            self._time.at(known_at, self._follow, directive, work, incarnation)

    def _follow(self, directive: Directive, work: "WorkAssigned | None", incarnation: int) -> None:
        node = self._node
        if node.running and node.incarnation == incarnation:
            match directive:
                case Directive.REGISTER_AGAIN:
                    node.handle(life.RegistrationRequested())
                case Directive.ABANDON_WORK:
                    node.handle(life.AbandonRequested(work))
                case Directive.SHUT_DOWN:
                    node.handle(life.RunFinished("the run is over"))

    def _send(self, at: float) -> tuple[Directive | None, float]:
        """Send one heartbeat at `at`; return the directive in its reply, None if it failed, and when that is known."""
        directive, ended_at = self._exchange(at)
        self.next_at = ended_at + self.period_seconds
        return directive, ended_at

    def _exchange(self, at: float) -> tuple[Directive | None, float]:
        node, connection = self._node, self._node.connection
        link = connection.link
        node.attempts += 1
        connection.messages += 1
        rtt_ms, self._rtt_ms = self._rtt_ms, 0.0
        rpc = link.begin(at, connection.numbers.control)
        sent = link.offer(at, _UP, message_sizes.HEARTBEAT_BYTES, rpc, end=True)
        if not isinstance(sent, Deliver):
            node.failures += 1
            return None, self._known_at(at, sent)
        connection.messages += 1
        directive = self._api.heartbeat(node, sent.at, rtt_ms, self._loaded)
        # Offered now rather than when the request arrives, so that the link's clock does not run ahead of the node.
        answered = link.offer(at, _DOWN, message_sizes.REPLY_BYTES, rpc, end=True)
        if not isinstance(answered, Deliver):
            node.failures += 1
            return None, self._known_at(at, answered)
        rtt = sent.at - at + answered.at - at
        self._rtt_ms = 1000.0 * rtt
        self._loaded = connection.transfers.any_between(at, at + rtt)
        return directive, at + rtt

    def _known_at(self, at: float, refused: Fail | Blocked) -> float:
        """Return when the node knows that a heartbeat sent at `at` failed: it is told, or the RPC times out."""
        timeout = at + heartbeat_timeout_seconds(self.period_seconds)
        return min(refused.at, timeout) if isinstance(refused, Fail) else timeout
