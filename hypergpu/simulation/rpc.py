"""RPCs in virtual time: messages in both directions over a node's link, until they arrive or the RPC fails."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from hypergpu.common.tensors import CHUNK_BYTES
from hypergpu.common.transfer_meter import Transfer, TransferMeter
from hypergpu.netsim_proxy.link.conditions import Blockage
from hypergpu.netsim_proxy.link.events import DisconnectMode, NetworkEvent
from hypergpu.netsim_proxy.link.link import Link
from hypergpu.netsim_proxy.link.outcomes import DOWN, UP, Blocked, Cause, Deliver, Direction, Fail, LinkRpc
from hypergpu.netsim_proxy.link.striping import LEAST_PIECE_BYTES, longest_piece_bytes
from hypergpu.simulation import message_sizes
from hypergpu.simulation.virtual_time import VirtualTime

PIECE_BYTES: Final = CHUNK_BYTES
"""Longest piece that is offered to the link at once. The rest follows as the queue has room, so events act on it."""
SILENCE_SECONDS: Final = 20.0
"""Seconds after which gRPC's keepalive gives up a silent connection: a ping each 10 s, and 10 s to answer it."""

_TRANSFERS_KEPT: Final = 4
Failed = Callable[["SimulatedRpc"], None]
"""Handler of an RPC that failed as UNAVAILABLE, at the client."""
Arrived = Callable[["SimulatedRpc"], None]
"""Handler of an arrived message."""
Uploaded = Callable[[Transfer], None]
"""Handler of the measurement of an upload that has arrived, or that ended early."""


class ConnectionNumbers:
    """Numbers of a node's open connections on its link; each new connection has a new number.

    Attributes:
        first: connection of transfers; further ones may share them.
        control: connection of heartbeats and other small calls, which never wait behind a transfer.
    """

    __slots__ = ("_dialled", "_further", "_link", "control", "first")

    def __init__(self, link: Link) -> None:
        self._link = link
        self.first, self.control = 0, 1
        self._dialled = 1
        self._further: list[int] = []  # those that share transfers, beside the first

    @property
    def all(self) -> tuple[int, ...]:
        """All open connections."""
        return (self.first, *self._further, self.control)

    def share(self, count: int) -> list[int]:
        """Return `count` connections for a transfer; those that are not open yet are dialled."""
        while len(self._further) < count - 1:
            self._further.append(self._dial())
        return [self.first, *self._further[: count - 1]]

    def redial(self, number: int) -> int:
        """Drop a connection and dial again; return the number of the new one."""
        self._link.disconnect(number)
        again = self._dial()
        self._further = [again if each == number else each for each in self._further]
        if number == self.control:
            self.control = again
        if number == self.first:
            self.first = again
        return again

    def close(self) -> None:
        """Drop all connections; a new process of the node dials two."""
        for number in self._further:
            self._link.disconnect(number)
        self._further.clear()
        self.redial(self.first)
        self.redial(self.control)

    def _dial(self) -> int:
        self._dialled += 1
        return self._dialled


class LatestTransfers:
    """Times in which the latest long messages of a node were on their way: one each way, and those before them."""

    __slots__ = ("_latest",)

    def __init__(self) -> None:
        self._latest: list[tuple[object, float, float]] = []

    def begin(self, rpc: object, now: float, arrives_at: float = math.inf) -> None:
        """Note that a long message of an RPC is on its way from now on, until a time that may not be known yet."""
        self._latest.append((rpc, now, arrives_at))
        del self._latest[:-_TRANSFERS_KEPT]

    def end(self, rpc: object, at: float) -> None:
        """Note when the long message of an RPC has arrived, or that it does not go on."""
        for index, (owner, began, arrived) in enumerate(self._latest):
            if owner is rpc and arrived == math.inf:
                self._latest[index] = owner, began, at

    def any_between(self, begin: float, end: float) -> bool:
        """Return whether a long message was on its way between these times."""
        return any(began < end and begin < arrived for _, began, arrived in self._latest)


class SimulatedConnection:
    """A node's connection over its link, and those that share its transfers.

    Attributes:
        numbers: numbers of the open connections on the link.
        before_piece: called before a piece of a shared transfer is offered to the link.
        messages: sent so far, in both directions.
        work: RPC that is open for the node's work; heartbeats have RPCs of their own.
        background: RPCs whose transfers go on beside it.
        downloaded: measurement of the latest download, until it is reported.
        uploaded: receives the measurement of each upload.
        transfers: when the latest long messages were on their way.
    """

    __slots__ = (
        "_is_limited", "background", "before_piece", "clock", "downloaded", "link", "messages", "numbers", "time",
        "transfers", "uploaded", "work",
    )  # fmt: skip

    def __init__(self, time: VirtualTime, link: Link) -> None:
        self.time = time
        self.clock = time.clock
        self.link = link
        self.numbers = ConnectionNumbers(link)
        self.before_piece: Callable[[], None] = lambda: None
        self.messages = 0
        self.work: SimulatedRpc | None = None
        self.background: list[SimulatedRpc] = []
        self._is_limited = link.limits_connections  # asked after each event, not with each RPC
        self.transfers = LatestTransfers()
        self.downloaded: Transfer | None = None
        self.uploaded: Uploaded = lambda transfer: None

    def call(self, failed: Failed) -> "SimulatedRpc":
        """Begin an RPC of the node's work."""
        self.work = rpc = SimulatedRpc(self, self.link.begin(self.clock.now, self.numbers.first), failed)
        if self._is_limited:
            self._close_in_time(self.numbers.first)
        return rpc

    def call_beside(self, failed: Failed) -> "SimulatedRpc":
        """Begin a small RPC of the node's work, which never waits behind a transfer."""
        self.work = rpc = SimulatedRpc(self, self.link.begin(self.clock.now, self.numbers.control), failed)
        if self._is_limited:
            self._close_in_time(self.numbers.control)
        return rpc

    def begin(self, number: int) -> LinkRpc:
        """Begin an RPC that shares a transfer, on one of its connections."""
        if self._is_limited:
            self._close_in_time(number)
        return self.link.begin(self.clock.now, number)

    def happened(self, event: NetworkEvent) -> None:
        """Handle an event on the link: retry what waited, fail what cannot continue."""
        now = self.time.now
        self._is_limited = self.link.limits_connections
        both, blocked = self.link.blocked(now), self._blocked(now)
        numbers = self.numbers.all
        for number in numbers:
            self._close_in_time(number)
        if both is not None and both.reset:
            self._drop(numbers)
        elif event.mode == DisconnectMode.HALF_OPEN or (blocked is not None and blocked.cause != Cause.FLAPPING):
            self.time.at(now + SILENCE_SECONDS, self._are_they_dead, numbers, event.mode)
        for rpc in self._open:
            rpc.go_on()

    @property
    def _open(self) -> "list[SimulatedRpc]":
        return [*([self.work] if self.work is not None else []), *self.background]

    @property
    def is_uploading(self) -> bool:
        """True if parts of an update arrive, each soon after the one before."""
        return any(rpc.is_uploading for rpc in self._open)

    def leave_in_background(self, rpc: "SimulatedRpc") -> None:
        """Let the transfer of an RPC go on beside the node's work."""
        if self.work is rpc:
            self.work = None
        self.background.append(rpc)

    def end_background(self) -> None:
        """Close the RPCs that go on beside the node's work."""
        for rpc in list(self.background):
            rpc.close()

    def _are_they_dead(self, numbers: tuple[int, ...], mode: str) -> None:
        if mode == DisconnectMode.HALF_OPEN or self._blocked(self.time.now):
            self._drop(numbers)

    def _blocked(self, now: float) -> Blockage | None:
        """Return what blocks at least one direction, so that no ping is answered; None = nothing."""
        up, down = (self.link.blocked(now, direction) for direction in Direction)
        return up or down

    def _close_in_time(self, number: int) -> None:
        """Plan the end of a connection that may not last."""
        closes_at = self.link.closes_at(number, self.time.now)
        if closes_at < math.inf:
            self.time.at(closes_at, self._close_if_due, number)

    def _close_if_due(self, number: int) -> None:
        now = self.time.now
        if now >= self.link.closes_at(number, now):
            self._drop((number,))

    def _drop(self, numbers: tuple[int, ...]) -> None:
        """Break those of some connections that are still open."""
        broken = [number for number in numbers if number in self.numbers.all]
        for rpc in self._open:
            rpc.connections_broke(broken)
        for number in broken:
            if number in self.numbers.all:
                self.numbers.redial(number)


class SimulatedRpc:
    """An RPC: a request, then its answer. A failure ends both. `about` is for its owner: what it is about."""

    __slots__ = (
        "_arrived",
        "_began_at",
        "_direction",
        "_left",
        "_parts",
        "_pieces",
        "about",
        "connection",
        "failed",
        "link_rpc",
        "over",
    )

    def __init__(self, connection: SimulatedConnection, link_rpc: LinkRpc, failed: Failed) -> None:
        self.connection = connection
        self.link_rpc = link_rpc
        self.failed = failed
        self.over = False
        self.about: Any = None
        self._left = 0
        self._pieces: list[tuple[float, int]] | None = None  # of a message that is sent in pieces
        self._arrived: Arrived | None = None
        self._began_at = 0.0
        self._parts: list[tuple[float, int]] | None = None  # arrivals of a long message that was not measured yet

    def send(self, direction: Direction, nbytes: int, messages: int, arrived: Arrived) -> None:
        """Send all messages of one direction, of `nbytes` together; `arrived(self)` runs when the last has arrived."""
        connection = self.connection
        self._arrived = arrived
        connection.messages += messages
        link = connection.link
        if nbytes <= LEAST_PIECE_BYTES or (nbytes <= PIECE_BYTES and not link.shares_access):
            # Nearly all: decided without a detour.
            verdict = link.offer(connection.clock.now, direction, nbytes, self.link_rpc, end=True)
            if isinstance(verdict, Deliver):
                if messages > 1:
                    connection.transfers.begin(self, connection.clock.now, verdict.at)
                    self._direction = direction
                    self._note_part(verdict.at, nbytes)
                connection.time.at(verdict.at, self._deliver)
                return
        else:
            verdict = None
        if messages > 1:
            connection.transfers.begin(self, connection.clock.now)
        self._direction, self._left, self._pieces = direction, nbytes, []
        if verdict is None:
            self.go_on()
        else:
            self._refused(verdict)

    def go_on(self) -> None:
        """Offer what is left, as far as the queue has room and the link lets it pass."""
        connection = self.connection
        link, now, pieces = connection.link, connection.time.now, self._pieces
        while pieces is not None and self._left > 0 and not self.over:
            room_at = link.room_at(now, self._direction, connection.numbers.first)
            if room_at > now:
                connection.time.at(room_at, self.go_on)
                return
            piece = min(self._left, longest_piece_bytes(link, self._direction, PIECE_BYTES))
            last = piece == self._left
            verdict = link.offer(now, self._direction, piece, self.link_rpc, end=last)
            if not isinstance(verdict, Deliver):
                self._refused(verdict)
                return
            self._left -= piece
            pieces.append((verdict.at, piece))
            self._note_part(verdict.at, piece)
            if last:
                connection.transfers.end(self, verdict.at)
                connection.time.at(verdict.at, self._deliver)

    @property
    def is_uploading(self) -> bool:
        """True if parts of a long message to the coordinator arrive, each soon after the one before."""
        if not self._pieces or self.over or self._direction is not UP:
            return False
        now = self.connection.clock.now
        return any(at <= now < at + SILENCE_SECONDS for at, _ in self._pieces)

    @property
    def arrived_bytes(self) -> int:
        """Bytes of a long message that have arrived so far, 0 of one that fits in a single piece."""
        now = self.connection.clock.now
        return sum(nbytes for at, nbytes in self._pieces or () if at <= now)

    def arrived_payload_bytes(self, header_bytes: int) -> int:
        """Return the payload behind a header that has arrived in whole chunks."""
        return message_sizes.bytes_in_chunks(self.arrived_bytes - header_bytes)

    def _note_part(self, arrives_at: float, nbytes: int) -> None:
        """Note when a piece arrives; before the first one, when its first byte does."""
        if self._parts is None:
            link = self.connection.link
            self._began_at = self.connection.clock.now + link.one_way_seconds(self._direction, self.link_rpc)
            self._parts = []
        self._parts.append((arrives_at, nbytes))

    def _measure(self) -> None:
        """Report the rate at which the pieces of a long message have arrived so far."""
        if self._parts is None:
            return
        measured, self._parts = _measured(self._began_at, self._parts, self.connection.clock.now), None
        if self._direction is DOWN:
            self.connection.downloaded = measured
        elif measured is not None:
            self.connection.uploaded(measured)

    def close(self) -> None:
        """Close the RPC, whether it succeeded or its result is no longer needed."""
        self.over = True
        self._arrived = None
        connection = self.connection
        if self._pieces is not None:
            connection.transfers.end(self, connection.clock.now)
        if connection.work is self:
            connection.work = None
        elif connection.background and self in connection.background:
            connection.background.remove(self)
        self._measure()

    def fail(self, reconnect: bool = False) -> None:
        """Report the failure to the client."""
        if not self.over:
            self.close()
            if reconnect:
                self.connection.numbers.redial(self.link_rpc.connection)
            self.failed(self)

    def connections_broke(self, numbers: Sequence[int]) -> None:
        """Fail if the connection of the RPC is one of those that broke."""
        if self.link_rpc.connection in numbers:
            self.fail(reconnect=True)

    def _deliver(self) -> None:
        self._measure()
        if self._arrived is not None:
            self._arrived(self)

    def _refused(self, verdict: Fail | Blocked) -> None:
        """Handle a refusal: the RPC failed, or nothing passes at the moment."""
        if isinstance(verdict, Fail):
            self._left = 0
            self.connection.time.at(verdict.at, self.fail, verdict.cause != Cause.LOSS)
        elif verdict.until < math.inf:
            self.connection.time.at(verdict.until, self.go_on)


def _measured(began_at: float, parts: list[tuple[float, int]], now: float) -> Transfer | None:
    """Return the measurement of the pieces that have arrived by `now`; the first byte came at `began_at`."""
    if len(parts) == 1:  # nearly all: what a meter says of a single piece
        at, nbytes = parts[0]
        return Transfer(nbytes, at - began_at) if began_at <= at <= now else None
    meter = TransferMeter(began_at)
    for at, nbytes in parts:
        if at <= now:
            meter.piece(nbytes, at)
    return meter.measured
