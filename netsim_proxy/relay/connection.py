"""Client connection and its connection to the upstream: opens, numbers, loses and ends streams.

No I/O: the driver passes in the bytes that were read and the time, carries out the effects on the agenda, and makes the
agenda's later calls when they are due.
"""

import math
import struct
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from hypergpu.netsim_proxy.link.outcomes import DOWN, UP, Direction, LinkRpc
from hypergpu.netsim_proxy.relay import http2
from hypergpu.netsim_proxy.relay.agenda import Agenda
from hypergpu.netsim_proxy.relay.effects import Close, Closed, ReportInvalidHttp2
from hypergpu.netsim_proxy.relay.frame_reader import FrameReader
from hypergpu.netsim_proxy.relay.frame_writer import FrameWriter
from hypergpu.netsim_proxy.relay.header_blocks import MAX_BLOCK_BYTES, failure
from hypergpu.netsim_proxy.relay.hosts import Hosts
from hypergpu.netsim_proxy.relay.http2 import Http2Error
from hypergpu.netsim_proxy.relay.paced_link import PacedLink
from hypergpu.netsim_proxy.relay.streams import Stream

UNAVAILABLE: Final = 14
RESOURCE_EXHAUSTED: Final = 8
_HELD_SECONDS: Final = 0.1
"""Time until a connection that drains looks again whether the link still holds something of it."""
_EVERY_STREAM: Final = 0x7FFFFFFF
_FORGOTTEN_SECONDS: Final = 900.0
"""Time for which Linux tries to send to a peer that does not answer."""


class Links(Protocol):
    """Links of a proxy, by name."""

    hosts: Hosts

    def find(self, now: float, name: str) -> PacedLink:
        """Return the link of this name, made if it is new; an empty name means the default link."""


class ConnectionPair:
    """Pair of connections, and the streams on them.

    Attributes:
        host: host of the client, while the connection counts for it.
        paced: link of the first stream; connection frames travel on it.
        link_rpc: RPC that connection frames are offered as.
        renumbered: number of streams with another id at the upstream; above 0, no frame passes as it was read.
        upstream_draining: whether the upstream has sent GOAWAY.
        max_streams: number of streams that the upstream takes at a time.
    """

    def __init__(self, links: Links, agenda: Agenda, number: int, link: str = "", host: str = "") -> None:
        self.number, self.host, self.agenda = number, host, agenda
        self._links = links
        self._link = link  # of calls that name none
        self.by_id: dict[int, Stream] = {}
        self.by_upstream_id: dict[int, Stream] = {}
        self.renumbered = 0
        self.paced: PacedLink | None = None
        self.link_rpc: LinkRpc | None = None
        up, down = FrameWriter(agenda, number, UP), FrameWriter(agenda, number, DOWN)
        self.writers = (up, down)
        self._to_upstream, self._to_client = self.writers
        self.readers = (FrameReader(self, UP, up, down), FrameReader(self, DOWN, down, up))
        self._used: set[PacedLink] = set()
        self.last_seen_id = 0
        self._last_id = 0  # of those that were opened
        self._last_upstream_id = 0
        self._last_forgotten_id = 0  # of those that have ended
        self._last_accepted_id = _EVERY_STREAM  # as the upstream's GOAWAY says
        self.upstream_draining = False
        self.max_streams = math.inf
        self._leaving: list[float] = []  # when it hears of the end of streams that are over for the client
        self._losing = 0  # streams that the link has lost, and whose ends have not been told
        self._draining = False
        self.closed = False
        self._silent = False

    def begin(self) -> None:
        """Greet the upstream: both connections are up."""
        self._to_upstream.write(http2.PREFACE)

    # What happens to the connections

    def handle(self, now: float, direction: Direction, data: bytes = b"") -> bool:
        """Handle bytes from the client (UP) or the upstream (DOWN).

        Return whether some of them are left. Then call again with the current time and without data, before any later
        data of this peer.
        """
        if self.closed or self._silent:
            return False
        try:
            if self.readers[direction.ordinal].feed(now, data):
                return True
        except Http2Error as error:
            self._end_invalid(now, direction, error)
        self._close_if_drained(now)  # now that the end of the last stream has been offered too
        return False

    def client_lost(self, now: float) -> None:
        """Tell the upstream that the client is gone, after the data on its way and the delay of the link."""
        self._to_client.closed = True
        self._leave_host()
        if self._silent:
            self.close(now)
        elif not self.closed:
            self._end_later(now, UP, self.close)

    def upstream_lost(self, now: float, message: str) -> None:
        """Tell the client that the upstream is gone, after the delay of the link.

        Data on its way still arrives; then open streams fail with `message`.
        """
        if self._silent or self.closed:
            return
        self._to_upstream.closed = True
        self._end_later(now, DOWN, partial(self._end_client, message=message))

    @property
    def is_established(self) -> bool:
        """True if the upstream has begun to speak HTTP/2, so that the client's connection counts as ready."""
        return self.readers[1].is_settled

    def opposite(self, reader: FrameReader) -> FrameReader:
        """Return the reader of the other direction."""
        return self.readers[1 - reader.direction.ordinal]

    def fail_all(self, now: float, message: str) -> None:
        """End every open stream at the client as UNAVAILABLE."""
        for stream in list(self.by_id.values()):
            self._fail(now, stream, message)

    def drain(self, now: float) -> None:
        """Refuse new streams, and close when the open ones have ended."""
        if self._draining or self.closed:
            return
        self._draining = True
        self._to_client.send(http2.goaway(self._last_id, http2.NO_ERROR, "netsim: draining"))
        self._close_if_drained(now)

    def black_hole(self, _now: float) -> None:
        """Reset the connection to the upstream without telling the client."""
        if not self.closed and not self._silent:
            self._silent = True
            self._to_upstream.closed = self._to_client.closed = True
            self.agenda.effects.append(Close(self.number, DOWN, reset=True))

    def close_after_delivery(self, now: float) -> None:
        """End both connections when the data on its way has arrived; read nothing more."""
        if not self.closed:
            self._silent = True
            latest = max(writer.latest_at for writer in self.writers)
            self.agenda.at(max(now, latest), self.close)

    def close(self, _now: float, reset: bool = False) -> None:
        """End both connections; with `reset` at once, by TCP resets."""
        if self.closed:
            return
        self.closed = True
        self._leave_host()
        for writer in self.writers:
            writer.closed = True
        effects = self.agenda.effects
        effects.append(Close(self.number, UP, reset))
        effects.append(Close(self.number, DOWN, reset))
        for paced in self._used:
            paced.forget(self)
        self.by_id.clear()
        self.by_upstream_id.clear()
        effects.append(Closed(self.number))

    # What the readers ask

    def may_open(self, stream_id: int) -> bool:
        """Return whether a request with this id is new and not refused by draining; note that it was seen."""
        new = stream_id > self.last_seen_id
        self.last_seen_id = max(self.last_seen_id, stream_id)
        return new and not self._draining

    def open(self, now: float, stream_id: int, node_id: str | None) -> Stream:
        """Begin a request, on the link of `node_id`."""
        paced = self._links.find(now, node_id or self._link)
        if self.paced is None:
            self._links.hosts.joined(self.host, paced.name)
            self.paced, self.link_rpc = paced, paced.link.connect(now, self.number)
        self._last_id = stream_id
        stream = self.by_id[stream_id] = Stream(stream_id, paced, paced.link.begin(now, self.number))
        if paced not in self._used:
            self._used.add(paced)
            paced.join(now, self)
        return stream

    def limit_streams(self, count: float) -> None:
        """Set the number of streams that the upstream takes at a time."""
        self.max_streams = count

    def wait_for_stream_slot(self, now: float, stream: Stream, at: float) -> float:
        """Return when frames that are due at `at` may reach an upstream with a limited number of streams.

        The client opens a stream when another has ended for it. The end must reach the upstream first.
        """
        if not stream.ready_at[0]:
            self._leaving = [end for end in self._leaving if end > now]
            if len(self.by_id) + len(self._leaving) > self.max_streams:
                at = max(at, *self._leaving, 0.0)
        if stream.id not in self.by_id:
            self._leaving.append(at)
        return at

    def assign(self, stream: Stream) -> None:
        """Give a stream its id on the upstream's connection: its own id, unless ids would no longer rise."""
        upstream_id = stream.id if stream.id > self._last_upstream_id else self._last_upstream_id + 2
        self._last_upstream_id = stream.upstream_id = upstream_id
        self.renumbered += upstream_id != stream.id
        if stream.id in self.by_id:
            self.by_upstream_id[upstream_id] = stream

    def ended(self, stream: Stream, direction: Direction, reset: bool) -> None:
        """Note the end of one direction of a stream; with `reset`, its sender cancelled it."""
        index = direction.ordinal
        stream.ended[index] = True
        stream.reset[index] |= reset
        if reset or stream.ended[1 - index]:
            self._forget(stream)

    def lose(self, stream: Stream, at: float, cause: str) -> None:
        """Pass nothing more of an RPC that the link has lost; both ends are told at `at`."""
        if not stream.lost:
            stream.lost = True
            self._losing += 1
            message = f"netsim: RPC lost on link {stream.paced.name} ({cause})"
            self.agenda.at(max(at, stream.ready_at[1]), self._fail_lost, stream, message)

    def refuse_block(self, now: float, stream_id: int, stream: Stream | None, direction: Direction, end: bool) -> None:
        """End the one stream whose header block is too large, as a server or client with a limit does."""
        message = f"netsim: a header block of more than {MAX_BLOCK_BYTES} bytes"
        if stream is not None:
            self._fail(now, stream, message, RESOURCE_EXHAUSTED)
        elif direction is UP and self.may_open(stream_id):
            block = failure(message, RESOURCE_EXHAUSTED, trailers=False)
            answer = http2.header_frames(stream_id, block, True, http2.DEFAULT_MAX_FRAME_BYTES)
            self._to_client.send(answer if end else answer + http2.rst_stream(stream_id, http2.NO_ERROR))

    def goaway(self, now: float, reader: FrameReader, payload: bytes) -> None:
        """Pass a GOAWAY on, after all frames that were sent before it.

        Raises:
            Http2Error: a payload that is too short.
        """
        if len(payload) < 8:
            raise Http2Error("GOAWAY without a last stream", http2.FRAME_SIZE_ERROR)
        if reader.direction is UP:
            reader.control(now, self._pass_goaway_up, payload, waits=True)
            return
        self.upstream_draining = True
        last = int.from_bytes(payload[:4], "big") & _EVERY_STREAM
        own_last = last
        if self.renumbered and last != _EVERY_STREAM:
            # Reckoned now: streams that end while this is on its way are forgotten before the client hears of it.
            taken = (s.id for s in self.by_id.values() if 0 < s.upstream_id <= last)
            own_last = max(self._last_forgotten_id, *taken, 0)
        self._last_accepted_id = own_last = min(own_last, self._last_accepted_id)  # it may never rise
        reader.control(now, partial(self._pass_goaway, last, own_last), payload, waits=True)

    def _end_invalid(self, now: float, direction: Direction, error: Http2Error) -> None:
        self.agenda.effects.append(ReportInvalidHttp2(self.number, direction, str(error)))
        sender = self.writers[1 - direction.ordinal]
        sender.send(http2.goaway(self._last_id, error.code, f"netsim: {error}"))
        if direction is DOWN:
            self.fail_all(now, f"netsim: the upstream broke HTTP/2: {error}")
        self.close(now)

    def _leave_host(self) -> None:
        if self.paced is not None and self.host:
            self._links.hosts.left(self.host, self.paced.name)
            self.host = ""

    def _end_later(self, now: float, direction: Direction, end: Callable[[float], None]) -> None:
        """Call `end` when the end of a connection, sent now, arrives; close after 15 minutes if it never does."""

        def arrived(_frames: bytes, now: float) -> None:
            latest_at = self.writers[direction.ordinal].latest_at
            self.agenda.at(max(now, latest_at) + self._close_delay_seconds(direction), end)

        self.readers[direction.ordinal].control(now, arrived, b"", waits=True)
        self.agenda.at(now + _FORGOTTEN_SECONDS, self.close)

    def _forget(self, stream: Stream) -> None:
        if self.by_id.pop(stream.id, None) is not None:
            if stream.upstream_id:
                self._last_forgotten_id = max(self._last_forgotten_id, stream.id)
            if self.max_streams < math.inf:
                self._leaving.append(stream.ready_at[0])
            self.by_upstream_id.pop(stream.upstream_id, None)

    def _close_delay_seconds(self, direction: Direction) -> float:
        return self.paced.link.close_delay_seconds(direction) if self.paced is not None else 0.0

    def _close_if_drained(self, now: float) -> None:
        """Close if no stream is open and all data has been delivered."""
        if not self._draining or self.by_id or self._losing or self.closed:
            return
        latest = max(writer.latest_at for writer in self.writers)
        if latest > now:
            self.agenda.at(latest, self._close_if_drained)
        elif not self._silent and any(reader.is_delivering for reader in self.readers):
            self.agenda.at(now + _HELD_SECONDS, self._close_if_drained)
        else:
            self.close(now)

    def _fail_lost(self, now: float, stream: Stream, message: str) -> None:
        self._losing -= 1
        self._fail(now, stream, message)
        self._close_if_drained(now)

    def _fail(self, now: float, stream: Stream, message: str, status: int = UNAVAILABLE) -> None:
        if stream.failed or self.closed:
            return
        stream.lost = stream.failed = True
        if stream.upstream_id and not stream.reset[1]:
            self._to_upstream.send(http2.rst_stream(stream.upstream_id, http2.CANCEL))
        if not stream.reset[0]:
            block = failure(message, status, trailers=stream.opened[1])
            answer = http2.header_frames(stream.id, block, True, http2.DEFAULT_MAX_FRAME_BYTES)
            if not stream.ended[0]:
                answer += http2.rst_stream(stream.id, http2.NO_ERROR)
            self._to_client.send(answer)
        self._forget(stream)
        self._close_if_drained(now)

    def _end_client(self, now: float, message: str) -> None:
        if not self.is_established:
            self.close(now, reset=True)
            return
        self.fail_all(now, message)
        self._to_client.send(http2.goaway(self._last_id, http2.NO_ERROR, message))
        self.close(now)

    def _pass_goaway_up(self, payload: bytes, _now: float) -> None:
        self._to_upstream.send(http2.frame(http2.GOAWAY, 0, 0, payload))

    def _pass_goaway(self, last_upstream_id: int, last_id: int, payload: bytes, now: float) -> None:
        """Pass the upstream's GOAWAY to the client, with the client's ids, whose order may differ."""
        for stream in list(self.by_id.values()) if last_id != _EVERY_STREAM else ():
            if stream.id <= last_id and not 0 < stream.upstream_id <= last_upstream_id:
                stream.lost = stream.failed = True
                self._to_client.send(http2.rst_stream(stream.id, http2.REFUSED_STREAM))
                self._forget(stream)
        self._to_client.send(http2.frame(http2.GOAWAY, 0, 0, struct.pack(">I", last_id) + payload[4:]))
        self._close_if_drained(now)
