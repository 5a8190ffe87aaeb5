"""Transfers over several connections in virtual time, as `node/uploading.py` and `node/downloading.py` make them.

The connections of a transfer share its chunks. A connection that breaks does not stop the others, and what it has lost
is sent again. After some breaks in a row it is given up, and the transfer fails when all are.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

from hypergpu.common.connections import FIRST_BACKOFF_SECONDS, MOST_FAILURES, MOST_FETCHES
from hypergpu.common.tensors import STRIPE_BYTES
from hypergpu.common.transfer_meter import TransferMeter
from hypergpu.netsim_proxy.link.outcomes import Blocked, Cause, Deliver, Direction, Fail, LinkRpc
from hypergpu.netsim_proxy.link.striping import SharedMessage, Stripe
from hypergpu.simulation import message_sizes
from hypergpu.simulation.rpc import SILENCE_SECONDS, Arrived, SimulatedRpc

_UP: Final = Direction.UP
_DOWN: Final = Direction.DOWN
_CALL_SECONDS: Final = 15.0
"""Timeout of a small call, as of a real node."""


class _Stream:
    """Part of one connection in a transfer.

    Attributes:
        number: number of the connection.
        stripe: what it sends at the moment; a new one after each break.
        arriving_bytes: payload of the chunks on their way.
        failures: breaks in a row.
        is_over: True if it sends no more.
        step: what it does next, when it can; None while it waits for something else.
        turn: number of its latest step; timers of earlier ones do nothing.
    """

    __slots__ = ("arriving_bytes", "failures", "is_over", "number", "step", "stripe", "turn")

    def __init__(self, number: int, rpc: LinkRpc, header_bytes: int) -> None:
        self.number = number
        self.stripe = Stripe(rpc, header_bytes)
        self.arriving_bytes = self.failures = self.turn = 0
        self.is_over = False
        self.step: Callable[[_Stream], None] | None = None


class StripedRpc(SimulatedRpc):
    """An RPC with a long message whose chunks several connections share. It takes the place of the one on the first.

    Args:
        rpc: RPC on the first connection, which has sent no long message yet.
        direction: direction of the message.
        nbytes: size of its payload, more than one chunk.
        header_bytes: bytes before the chunks: of each connection in an upload, of the first one in a download.
    """

    __slots__ = (
        "_arrived_at",
        "_arrived_bytes",
        "_fetches",
        "_header_bytes",
        "_lost_bytes",
        "_message",
        "_meter",
        "_nbytes",
        "_streams",
    )

    def __init__(self, rpc: SimulatedRpc, direction: Direction, nbytes: int, header_bytes: int) -> None:
        super().__init__(rpc.connection, rpc.link_rpc, rpc.failed)
        self.connection.work = self
        self._direction, self._nbytes, self._header_bytes = direction, nbytes, header_bytes
        self._message = SharedMessage(self.connection.link, direction, nbytes, message_sizes.chunks_bytes)
        self._streams: list[_Stream] = []
        self._meter: TransferMeter | None = None
        self._arrived_bytes = self._lost_bytes = self._fetches = 0
        self._arrived_at = 0.0

    def share(self, connections: int, arrived: Arrived) -> None:
        """Send the payload over several connections; `arrived(self)` runs when all of it has arrived."""
        connection = self.connection
        now, one_way = connection.clock.now, connection.link.one_way_seconds(self._direction, self.link_rpc)
        connection.messages += connections + math.ceil(self._nbytes / STRIPE_BYTES)
        connection.transfers.begin(self, now)
        self._arrived = arrived
        self._meter = TransferMeter(now + one_way)
        numbers = connection.numbers.share(connections)
        self._streams = [_Stream(number, self.link_rpc, self._header_bytes) for number in numbers]
        first, *others = self._streams
        for stream in others:
            # A node asks for chunks on the other connections when it has the order.
            connection.time.at(now + (one_way if self._direction is _DOWN else 0.0), self._open, stream, stream.turn)
        self._then(first, self._send)
        self._send(first)

    def go_on(self) -> None:
        """Let each connection offer what it can."""
        if self._is_complete:
            super().go_on()  # the reply
            return
        for stream in self._streams:
            if stream.step is not None:
                stream.step(stream)

    @property
    def is_uploading(self) -> bool:
        """True if parts of a long message to the coordinator arrive, each soon after the one before."""
        if self._direction is not _UP or self.over or not self._arrived_bytes:
            return False
        return self.connection.clock.now < self._arrived_at + SILENCE_SECONDS

    def arrived_payload_bytes(self, header_bytes: int) -> int:
        """Return the payload that has arrived in whole chunks."""
        return self._arrived_bytes

    def connections_broke(self, numbers: Sequence[int]) -> None:
        """Let the streams on these connections break."""
        if self._is_complete:
            super().connections_broke(numbers)
            return
        for stream in self._streams:
            if stream.number in numbers:
                self._broke(stream, stream.stripe, dials=True)

    # ------------------------------------------------------------ one stream

    def _then(self, stream: _Stream, step: Callable[[_Stream], None] | None) -> None:
        stream.step = step
        stream.turn += 1

    def _later(self, at: float, stream: _Stream) -> None:
        """Let a stream take its next step at a time."""
        stream.turn += 1
        self.connection.time.at(at, self._take_step, stream, stream.turn)

    def _take_step(self, stream: _Stream, turn: int) -> None:
        if not self.over and stream.turn == turn and stream.step is not None:
            stream.step(stream)

    def _open(self, stream: _Stream, turn: int) -> None:
        """Begin a stream on its connection, or begin it again."""
        if self.over or stream.turn != turn:
            return
        header_bytes = self._header_bytes if self._direction is _UP else 0
        stream.stripe = Stripe(self.connection.begin(stream.number), header_bytes)
        self._then(stream, self._send if self._direction is _UP else self._ask)
        self._take_step(stream, stream.turn)

    def _ask(self, stream: _Stream) -> None:
        """Ask the coordinator for chunks."""
        connection = self.connection
        verdict = connection.link.offer(
            connection.clock.now, _UP, message_sizes.REQUEST_BYTES, stream.stripe.rpc, end=True
        )
        if isinstance(verdict, Deliver):
            self._then(stream, None)
            connection.time.at(verdict.at, self._on_asked, stream, stream.turn)
        else:
            self._refused_to(stream, verdict)

    def _on_asked(self, stream: _Stream, turn: int) -> None:
        if not self.over and stream.turn == turn:
            self._then(stream, self._send)
            self._send(stream)

    def _send(self, stream: _Stream) -> None:
        """Offer the next piece when the connection has room, and go on when the others have had their turn."""
        connection, stripe = self.connection, stream.stripe
        link, now = connection.link, connection.clock.now
        room_at = link.room_at(now, self._direction, stream.number)
        if room_at > now:
            self._later(room_at, stream)
            return
        connection.before_piece()
        verdict = self._message.send(now, stripe)
        if verdict is None:
            self._end(stream)
            return
        if not isinstance(verdict, Deliver):
            self._refused_to(stream, verdict)
            return
        is_chunk_sent = not stripe.unsent_bytes
        if is_chunk_sent:
            stream.arriving_bytes += stripe.chunk_bytes
            connection.time.at(verdict.at, self._on_chunk, stream, stripe, stripe.chunk_bytes)
        if is_chunk_sent and self._fetches:
            self._then(stream, None)  # the next one is asked for when this one is there
        else:
            self._later(now, stream)

    def _on_chunk(self, stream: _Stream, stripe: Stripe, nbytes: int) -> None:
        if self.over or stream.stripe is not stripe:
            return
        now = self.connection.clock.now
        stream.arriving_bytes -= nbytes
        self._arrived_bytes += nbytes
        self._arrived_at = now
        if self._meter is not None:
            self._meter.piece(nbytes, now, connection=stream.number)
        if self._is_complete:
            self._complete(stream)
        elif self._fetches and self._message.waiting_bytes:
            self._then(stream, self._ask)
            self._ask(stream)
        elif self._fetches:
            self._end(stream)
        else:
            self._end_if_all_have()

    def _end(self, stream: _Stream) -> None:
        stream.is_over = True
        self._then(stream, None)
        self._end_if_all_have()

    def _refused_to(self, stream: _Stream, verdict: Fail | Blocked) -> None:
        """Handle a refusal: the stream broke, or nothing passes on it at the moment."""
        if isinstance(verdict, Fail):
            self._then(stream, None)
            dials = verdict.cause != Cause.LOSS
            self.connection.time.at(verdict.at, self._broke, stream, stream.stripe, dials)
        else:
            self._later(verdict.until, stream)

    def _broke(self, stream: _Stream, stripe: Stripe, dials: bool) -> None:
        """Give a broken stream's chunks to the others, and begin it again after a while."""
        if self.over or stream.stripe is not stripe:
            return
        connection = self.connection
        if dials:
            stream.number = connection.numbers.redial(stream.number)
        lost = stream.arriving_bytes + (stripe.chunk_bytes if stripe.unsent_bytes else 0)
        stream.stripe, stream.arriving_bytes = Stripe(stripe.rpc), 0
        if stream.is_over and not lost:
            return
        stream.is_over = False
        stream.failures += 1
        self._then(stream, None)
        known_at = connection.clock.now
        if self._direction is _DOWN:
            self._lost_bytes += lost
        else:
            known_at, answered = self._ask_missing()
            connection.time.at(known_at, self._take_back, lost if answered else 0)
        is_first = self._direction is _DOWN and stream is self._streams[0]
        if stream.failures == MOST_FAILURES or is_first:
            connection.time.at(known_at, self._give_up, stream, stream.turn)
        else:
            backoff = FIRST_BACKOFF_SECONDS * 2 ** (stream.failures - 1)
            connection.time.at(known_at + backoff, self._open, stream, stream.turn)

    def _give_up(self, stream: _Stream, turn: int) -> None:
        if not self.over and stream.turn == turn:
            self._end(stream)

    def _ask_missing(self) -> tuple[float, bool]:
        """Ask which chunks are missing; return when the node knows, and whether it got a reply."""
        connection = self.connection
        link, now = connection.link, connection.clock.now
        rpc, at = link.begin(now, connection.numbers.control), now
        for direction, nbytes in ((_UP, message_sizes.REQUEST_BYTES), (_DOWN, message_sizes.REPLY_BYTES)):
            verdict = link.offer(now, direction, nbytes, rpc, end=True)
            if isinstance(verdict, Blocked):
                return now + _CALL_SECONDS, False
            at += verdict.at - now
            if isinstance(verdict, Fail):
                return at, False
        return at, True

    def _take_back(self, nbytes: int) -> None:
        if not self.over:
            self._message.waiting_bytes += nbytes

    # ------------------------------------------------------------ the whole message

    @property
    def _is_complete(self) -> bool:
        return self._arrived_bytes == self._nbytes

    def _complete(self, last: _Stream) -> None:
        """Tell that everything has arrived; a reply goes over the stream that brought the last chunk."""
        for stream in self._streams:
            self._then(stream, None)
        self.connection.transfers.end(self, self.connection.clock.now)
        self.link_rpc = last.stripe.rpc
        self._deliver()

    def _end_if_all_have(self) -> None:
        """Fetch what is lost when all streams have ended; fail if that is not possible."""
        if not all(stream.is_over and not stream.arriving_bytes for stream in self._streams):
            return
        if self._direction is _UP or self._fetches == MOST_FETCHES:
            self.fail()
            return
        self._fetches += 1
        self._message.waiting_bytes += self._lost_bytes
        self._lost_bytes = 0
        for stream in self._streams[1:]:
            stream.is_over, stream.failures = False, 0
            self._then(stream, None)
            self._open(stream, stream.turn)

    def _measure(self) -> None:
        meter, self._meter = self._meter, None
        if meter is None:
            super()._measure()
        elif self._direction is _DOWN:
            self.connection.downloaded = meter.measured
        elif meter.measured is not None:
            self.connection.uploaded(meter.measured)

    def close(self) -> None:
        """Close the RPC, whether it succeeded or its result is no longer needed."""
        self.connection.transfers.end(self, self.connection.clock.now)
        super().close()
