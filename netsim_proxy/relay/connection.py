"""One client connection and its one connection to the upstream: who opens, numbers, loses and ends streams."""

import asyncio
import contextlib
import math
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog

from hypergpu.common.clock import monotonic
from hypergpu.netsim_proxy.io.link_registry import LinkRegistry
from hypergpu.netsim_proxy.io.pacer import Pacer
from hypergpu.netsim_proxy.link.outcomes import Exchange
from hypergpu.netsim_proxy.relay import http2
from hypergpu.netsim_proxy.relay.frame_reader import FrameReader
from hypergpu.netsim_proxy.relay.frame_writer import FrameWriter
from hypergpu.netsim_proxy.relay.header_blocks import MAX_BLOCK_BYTES, failure
from hypergpu.netsim_proxy.relay.http2 import Http2Error
from hypergpu.netsim_proxy.relay.paced_link import DIRECTIONS, DOWN, UP, PacedLink
from hypergpu.netsim_proxy.relay.streams import Stream

UNAVAILABLE: Final = 14
RESOURCE_EXHAUSTED: Final = 8
LINGER_SECONDS: Final = 1.0
"""How long a peer may take to close a connection that we have ended, before it is cut."""
_HELD_SECONDS: Final = 0.1
"""Time until a connection that drains looks again whether the link still holds something of it."""
_EVERY_STREAM: Final = 0x7FFFFFFF
_FORGOTTEN_SECONDS: Final = 900.0
"""How long Linux tries to send to a peer that does not answer."""

log = structlog.get_logger()


class ConnectionPair:
    """The pair of connections, and the streams on them."""

    def __init__(
        self,
        ports: LinkRegistry,
        pacer: Pacer,
        number: int,
        on_closed: Callable[["ConnectionPair"], None],
        link: str = "",
    ) -> None:
        self.number = number
        self._link = link  # of calls that name none
        self.by_id: dict[int, Stream] = {}
        self.by_upstream_id: dict[int, Stream] = {}
        self.renumbered = 0  # streams that have had another number: then none passes as it was read
        self.port: PacedLink | None = None  # of the first stream: connection frames travel on its link
        self.exchange: Exchange | None = None  # what they are offered as
        self.outlets = (FrameWriter(pacer), FrameWriter(pacer))
        self.lanes = (
            FrameReader(self, UP, self.outlets[UP], self.outlets[DOWN]),
            FrameReader(self, DOWN, self.outlets[DOWN], self.outlets[UP]),
        )
        self.pacer = pacer
        self.host = ""  # of the client
        self._ports, self._on_closed = ports, on_closed
        self._used: set[PacedLink] = set()
        self.last_seen_id = 0
        self._last_id = 0  # of those that were opened
        self._last_upstream_id = 0
        self._last_forgotten_id = 0  # of those that have ended
        self._last_welcome_id = _EVERY_STREAM  # as the upstream's GOAWAY says
        self.upstream_goes = False  # it has sent GOAWAY
        self.max_streams = math.inf  # that the upstream takes at a time
        self._leaving: list[float] = []  # when it hears of the end of streams that are over for the client
        self._losing = 0  # streams that the link has lost, and whose ends have not been told
        self._draining = False
        self.closed = False
        self._silent = False

    def attach(self, client: asyncio.Transport, upstream: asyncio.Transport) -> None:
        """Both connections are up; nothing has been read from the upstream yet."""
        self.lanes[UP].source = self.outlets[DOWN].sink = client
        self.lanes[DOWN].source = self.outlets[UP].sink = upstream
        upstream.write(http2.PREFACE)

    # What the lanes ask

    def may_open(self, stream_id: int) -> bool:
        """Whether a request with this number is new, and still welcome; it has been seen from now on."""
        new = stream_id > self.last_seen_id
        self.last_seen_id = max(self.last_seen_id, stream_id)
        return new and not self._draining

    def open(self, stream_id: int, node_id: str | None) -> Stream:
        """A request begins, on the link of `node_id`."""
        port = self._ports.of(node_id or self._link)
        if self.port is None:
            self._ports.hosts.joined(self.host, port.name)
            self.port, self.exchange = port, port.link.connect(monotonic(), self.number)
        self._last_id = stream_id
        stream = self.by_id[stream_id] = Stream(stream_id, port, port.link.begin(monotonic(), self.number))
        if port not in self._used:
            self._used.add(port)
            port.join(self)
        return stream

    def in_turn(self, stream: Stream, at: float) -> float:
        """When frames that are due at `at` may reach an upstream that takes so many streams at a time and no more.

        The client opens a stream where another has ended for it; the upstream must hear of that end before.
        """
        if not stream.ready_at[UP]:
            now = monotonic()
            self._leaving = [end for end in self._leaving if end > now]
            if len(self.by_id) + len(self._leaving) > self.max_streams:
                at = max(at, *self._leaving, 0.0)
        if stream.id not in self.by_id:
            self._leaving.append(at)
        return at

    def assign(self, stream: Stream) -> None:
        """Give a stream its number on the upstream's connection: its own where that still rises."""
        number = stream.id if stream.id > self._last_upstream_id else self._last_upstream_id + 2
        self._last_upstream_id = stream.upstream_id = number
        self.renumbered += number != stream.id
        if stream.id in self.by_id:
            self.by_upstream_id[number] = stream

    def ended(self, stream: Stream, way: int, reset: bool) -> None:
        """One direction of a stream has been read to its end, or, with `reset`, its sender wants no more of it."""
        stream.ended[way] = True
        stream.reset[way] |= reset
        if reset or stream.ended[1 - way]:
            self._forget(stream)

    def lose(self, stream: Stream, at: float, cause: str) -> None:
        """The link has lost an RPC: nothing more of it passes, and both ends learn of it at `at`."""
        if not stream.lost:
            stream.lost = True
            self._losing += 1
            message = f"netsim: RPC lost on link {stream.port.name} ({cause})"
            self.pacer.at(max(at, stream.ready_at[DOWN]), self._fail_lost, stream, message)

    def refuse_block(self, stream_id: int, stream: Stream | None, way: int, end: bool) -> None:
        """End the one stream whose header block is too large, as a server or client with such a limit does."""
        message = f"netsim: a header block of more than {MAX_BLOCK_BYTES} bytes"
        if stream is not None:
            self._fail(stream, message, RESOURCE_EXHAUSTED)
        elif way == UP and self.may_open(stream_id):
            block = failure(message, RESOURCE_EXHAUSTED, trailers=False)
            answer = http2.header_frames(stream_id, block, True, http2.DEFAULT_MAX_FRAME_BYTES)
            self.outlets[DOWN].send(answer if end else answer + http2.rst_stream(stream_id, http2.NO_ERROR))

    def goaway(self, lane: FrameReader, payload: bytes) -> None:
        """A peer ends the connection; the other one hears of it after all that was sent before."""
        if len(payload) < 8:
            raise Http2Error("GOAWAY without a last stream", http2.FRAME_SIZE_ERROR)
        if lane.way == UP:
            lane.control(self._pass_goaway_up, payload, waits=True)
            return
        self.upstream_goes = True
        last = int.from_bytes(payload[:4], "big") & _EVERY_STREAM
        own_last = last
        if self.renumbered and last != _EVERY_STREAM:
            # Reckoned now: streams that end while this is on its way are forgotten before the client hears of it.
            taken = (s.id for s in self.by_id.values() if 0 < s.upstream_id <= last)
            own_last = max(self._last_forgotten_id, *taken, 0)
        self._last_welcome_id = own_last = min(own_last, self._last_welcome_id)  # it may never rise
        lane.control(partial(self._pass_goaway, last, own_last), payload, waits=True)

    # What happens to the connections

    def received(self, way: int, data: bytes) -> None:
        """Bytes from the client (UP) or the upstream (DOWN)."""
        self.pacer.catch_up()
        if self.closed or self._silent:
            return
        try:
            self.lanes[way].feed(data)
        except Http2Error as error:
            who = "client" if way == UP else "upstream"
            log.warning("connection ended: not the HTTP/2 that we know", peer=who, reason=str(error))
            self.outlets[1 - way].send(http2.goaway(self._last_id, error.code, f"netsim: {error}"))
            if way == DOWN:
                self.fail_all(f"netsim: the upstream broke HTTP/2: {error}")
            self.close()
        self._close_if_drained()  # now that the end of the last stream has been offered too

    def client_lost(self) -> None:
        """The client is gone: the upstream hears of it when the link says, after what is on its way."""
        self.outlets[DOWN].closed = True
        self._leave_host()
        if self._silent:
            self.close()
        elif not self.closed:
            self._end_later(UP, self.close)

    def upstream_lost(self, message: str) -> None:
        """The upstream is gone. The client hears of it when the link says: what is on its way still arrives, then open
        streams fail with `message`."""
        if self._silent or self.closed:
            return
        self.outlets[UP].closed = True
        self._end_later(DOWN, partial(self._end_client, message))

    def _leave_host(self) -> None:
        if self.port is not None and self.host:
            self._ports.hosts.left(self.host, self.port.name)
            self.host = ""

    def _end_later(self, way: int, end: Callable[[], None]) -> None:
        """Call `end` when the end of a connection, sent now, arrives. One that never does is forgotten at last."""

        def arrived(_: bytes) -> None:
            self.pacer.at(max(monotonic(), self.outlets[way].latest_at) + self._close_delay_seconds(way), end)

        self.lanes[way].control(arrived, b"", waits=True)
        self.pacer.at(monotonic() + _FORGOTTEN_SECONDS, self.close)

    @property
    def is_established(self) -> bool:
        """Whether the upstream has begun to speak HTTP/2, so that the client's connection counts as ready."""
        return self.lanes[DOWN].is_settled

    def fail_all(self, message: str) -> None:
        """End every open stream at the client as UNAVAILABLE."""
        for stream in list(self.by_id.values()):
            self._fail(stream, message)

    def drain(self) -> None:
        """Take no new streams, and close when those that are open have ended."""
        if self._draining or self.closed:
            return
        self._draining = True
        self.outlets[DOWN].send(http2.goaway(self._last_id, http2.NO_ERROR, "netsim: draining"))
        self._close_if_drained()

    def fall_silent(self) -> None:
        """The upstream forgets the connection, and the client is not told."""
        if not self.closed and not self._silent:
            self._silent = True
            self.outlets[UP].closed = self.outlets[DOWN].closed = True
            end_transport(self.lanes[DOWN].source, reset=True)

    def close_after_delivery(self) -> None:
        """End both connections when what is on its way has arrived; nothing more is read."""
        if not self.closed:
            self._silent = True
            latest = max(outlet.latest_at for outlet in self.outlets)
            self.pacer.at(max(monotonic(), latest), self.close)

    def detach(self) -> None:
        """End the upstream's connection, and leave the client's to another."""
        self.lanes[UP].source = None
        self.close()

    def close(self, reset: bool = False) -> None:
        """End both connections; with `reset` at once, by TCP resets."""
        if self.closed:
            return
        self.closed = True
        self._leave_host()
        for outlet, lane in zip(self.outlets, self.lanes, strict=True):
            outlet.closed = True
            end_transport(lane.source, reset)
        for port in self._used:
            port.forget(self)
        self.by_id.clear()
        self.by_upstream_id.clear()
        self._on_closed(self)

    def _forget(self, stream: Stream) -> None:
        if self.by_id.pop(stream.id, None) is not None:
            if stream.upstream_id:
                self._last_forgotten_id = max(self._last_forgotten_id, stream.id)
            if self.max_streams < math.inf:
                self._leaving.append(stream.ready_at[UP])
            self.by_upstream_id.pop(stream.upstream_id, None)

    def _close_delay_seconds(self, way: int) -> float:
        return self.port.link.close_delay_seconds(DIRECTIONS[way]) if self.port is not None else 0.0

    def _close_if_drained(self) -> None:
        """Close when no stream is open and all that was read has been delivered."""
        if not self._draining or self.by_id or self._losing or self.closed:
            return
        now, latest = monotonic(), max(outlet.latest_at for outlet in self.outlets)
        if latest > now:
            self.pacer.at(latest, self._close_if_drained)
        elif not self._silent and any(lane.is_delivering for lane in self.lanes):
            self.pacer.at(now + _HELD_SECONDS, self._close_if_drained)
        else:
            self.close()

    def _fail_lost(self, stream: Stream, message: str) -> None:
        self._losing -= 1
        self._fail(stream, message)
        self._close_if_drained()

    def _fail(self, stream: Stream, message: str, status: int = UNAVAILABLE) -> None:
        if stream.failed or self.closed:
            return
        stream.lost = stream.failed = True
        if stream.upstream_id and not stream.reset[DOWN]:
            self.outlets[UP].send(http2.rst_stream(stream.upstream_id, http2.CANCEL))
        if not stream.reset[UP]:
            block = failure(message, status, trailers=stream.opened[DOWN])
            answer = http2.header_frames(stream.id, block, True, http2.DEFAULT_MAX_FRAME_BYTES)
            if not stream.ended[UP]:
                answer += http2.rst_stream(stream.id, http2.NO_ERROR)
            self.outlets[DOWN].send(answer)
        self._forget(stream)
        self._close_if_drained()

    def _end_client(self, message: str) -> None:
        if not self.is_established:
            self.close(reset=True)
            return
        self.fail_all(message)
        self.outlets[DOWN].send(http2.goaway(self._last_id, http2.NO_ERROR, message))
        self.close()

    def _pass_goaway_up(self, payload: bytes) -> None:
        self.outlets[UP].send(http2.frame(http2.GOAWAY, 0, 0, payload))

    def _pass_goaway(self, last_upstream_id: int, last_id: int, payload: bytes) -> None:
        """The upstream's GOAWAY in the client's numbers, where those may have another order."""
        for stream in list(self.by_id.values()) if last_id != _EVERY_STREAM else ():
            if stream.id <= last_id and not 0 < stream.upstream_id <= last_upstream_id:
                stream.lost = stream.failed = True
                self.outlets[DOWN].send(http2.rst_stream(stream.id, http2.REFUSED_STREAM))
                self._forget(stream)
        self.outlets[DOWN].send(http2.frame(http2.GOAWAY, 0, 0, struct.pack(">I", last_id) + payload[4:]))
        self._close_if_drained()


def end_transport(transport: asyncio.Transport | None, reset: bool) -> None:
    """End a connection when what was written has been sent, or, with `reset`, at once by a TCP reset."""
    if transport is None or transport.is_closing():
        return
    if reset:
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    elif transport.can_write_eof():
        # Closed at once, what the peer still sends would be answered with a reset, which outruns our last frames.
        transport.write_eof()
        transport.resume_reading()
        asyncio.get_running_loop().call_later(LINGER_SECONDS, transport.close)
    else:
        transport.close()
