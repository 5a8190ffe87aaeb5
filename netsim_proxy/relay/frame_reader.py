"""Reader of one direction of a connection: cuts the data into frames and offers them to the link of each stream.

Frames on a transparent link, with nothing queued before them, are written as they were read, in one write per read. All
others are offered to their link in runs: neighbouring frames of one stream.
"""

import math
from collections import deque
from collections.abc import Callable
from functools import partial
from struct import Struct
from typing import Final, Protocol

from hypergpu.netsim_proxy.link.outcomes import DOWN, UP, Deliver, Direction, Fail, LinkRpc
from hypergpu.netsim_proxy.relay import http2
from hypergpu.netsim_proxy.relay.agenda import Agenda
from hypergpu.netsim_proxy.relay.flow_control import FIRST_WINDOW_BYTES, WindowLimiter
from hypergpu.netsim_proxy.relay.frame_writer import FrameWriter
from hypergpu.netsim_proxy.relay.header_blocks import MAX_BLOCK_BYTES, NO_TABLE, HeaderBlocks, context_in, node_id_in
from hypergpu.netsim_proxy.relay.held_reader import HeldReader
from hypergpu.netsim_proxy.relay.http2 import FRAME_HEADER_BYTES, Http2Error
from hypergpu.netsim_proxy.relay.limits import Limits
from hypergpu.netsim_proxy.relay.ordering import MAX_BARRIERS, DeliveryOrder
from hypergpu.netsim_proxy.relay.paced_link import Connection, PacedLink
from hypergpu.netsim_proxy.relay.streams import Stream, Transit

_MAX_CONTINUATIONS: Final = 64
_ENDLESS_BLOCK_BYTES: Final = 1 << 20
"""A block above `MAX_BLOCK_BYTES` ends its stream, one above this its connection: it may never end."""
_FLOWING_SECONDS: Final = 0.1
_WINDOW_BYTES: Final = 4 << 20
"""Readers add to a window at the latest when half of it is used. More than this, or what the path holds, beyond that
half would only fill the memory of a slow reader: gRPC opens its windows to between two and eight times the path."""
_MAX_FRAME_BYTES: Final = 128 << 10
"""gRPC sends frames as large as the whole window where it may: too coarse for a bandwidth and for its own measuring."""
_SHORT_RUN_BYTES: Final = 16_384
_RUNS_AT_ONCE: Final = 4
"""Runs of frames, a few tens of microseconds each, between two looks at the clock: a burst of requests must not hold up
deliveries that are due meanwhile."""
_STREAM_ID: Final = 0x7FFFFFFF
_PLAIN_MASK: Final = http2.END_HEADERS | http2.PADDED | http2.HAS_PRIORITY
_Position = tuple[bytes, int, int, Stream | PacedLink | None]
"""Data, the first of its frames that go the same way, the next one, and that way."""
_unpack = Struct(">HBBBI").unpack_from


class Pair(Connection, Protocol):
    """Interface of `ConnectionPair` for its readers."""

    agenda: Agenda
    by_id: dict[int, Stream]
    by_upstream_id: dict[int, Stream]
    paced: PacedLink | None
    link_rpc: LinkRpc | None
    renumbered: int
    last_seen_id: int
    upstream_draining: bool
    max_streams: float
    closed: bool

    def may_open(self, stream_id: int) -> bool: ...  # noqa: D102

    def open(self, now: float, stream_id: int, node_id: str | None) -> Stream: ...  # noqa: D102

    def opposite(self, reader: "FrameReader") -> "FrameReader": ...  # noqa: D102

    def limit_streams(self, count: float) -> None: ...  # noqa: D102

    def wait_for_stream_slot(self, now: float, stream: Stream, at: float) -> float: ...  # noqa: D102

    def assign(self, stream: Stream) -> None: ...  # noqa: D102

    def ended(self, stream: Stream, direction: Direction, reset: bool) -> None: ...  # noqa: D102

    def lose(self, stream: Stream, at: float, cause: str) -> None: ...  # noqa: D102

    def refuse_block(  # noqa: D102
        self, now: float, stream_id: int, stream: Stream | None, direction: Direction, end: bool
    ) -> None: ...

    def goaway(self, now: float, reader: "FrameReader", payload: bytes) -> None: ...  # noqa: D102


class FrameReader(HeldReader):
    """Reader of the frames of one peer: UP from the client, DOWN from the upstream.

    Attributes:
        max_frame_bytes: longest frame that the other peer accepts.
        is_settled: whether the first SETTINGS have passed.
        lowering: for each SETTINGS that is not acknowledged yet, whether it lowers a limit.
    """

    def __init__(self, pair: Pair, direction: Direction, writer: FrameWriter, back: FrameWriter) -> None:
        super().__init__(pair.agenda, pair.number, direction)
        self.pair, self.writer, self.back = pair, writer, back
        self.max_frame_bytes = http2.DEFAULT_MAX_FRAME_BYTES
        self.is_settled = False
        self.lowering: deque[bool] = deque()
        self._streams = pair.by_id if direction is UP else pair.by_upstream_id
        self._blocks = HeaderBlocks()
        self._block: tuple[int, int, list[bytes]] | None = None  # to be continued: stream id, flags, parts
        self._tail = b""  # a frame whose end has not been read
        self._unfinished: _Position | None = None  # where parsing stopped
        self._read_bytes = 0  # of the read that is being parsed
        self._control_at = 0.0  # connection frames keep their order
        self._order = DeliveryOrder()
        self._limits = Limits(direction)
        self._opened = False  # a header block has been delivered
        self._fed_at = -math.inf  # when something was last read
        self._window = WindowLimiter()  # of the peer

    def feed(self, now: float, data: bytes) -> bool:  # noqa: PLR0912 - one pass, without calls where it is hot
        """Parse data of the peer, a few runs at a time.

        Return whether some of it is left; then call again without data.

        Raises:
            Http2Error: the other peer would not accept these frames.
        """
        pair, writer, index = self.pair, self.writer, self.index
        data, begin, at, group = self._unfinished or self._begin(now, data)
        self._unfinished = None
        runs = 0
        size, limit = len(data), self.max_frame_bytes
        while at + FRAME_HEADER_BYTES <= size:
            high, low, kind, flags, stream_id = _unpack(data, at)
            length = high << 8 | low
            if length > limit:
                raise Http2Error(f"a frame of {length} bytes where {limit} are allowed", http2.FRAME_SIZE_ERROR)
            end = at + FRAME_HEADER_BYTES + length
            stream = self._streams.get(stream_id)
            if end > size and not (kind == http2.DATA and stream is not None and self._is_clear(stream)):
                break
            if at - begin >= _SHORT_RUN_BYTES and _is_long(group, at - begin, index):
                self._pass(now, group, data, begin, at)
                begin = at
            if kind == http2.DATA and not flags and stream is not None and stream.paced is group and not stream.lost:
                route: Stream | PacedLink | None = group  # the common case of a big message, decided without a call
            else:
                route = self._route(now, kind, flags, stream_id, stream, data, at, end)
            if route is not group:
                if begin < at:
                    self._pass(now, group, data, begin, at)
                    runs += 1
                group, begin = route, at
            if route is None:
                self._handle_frame(now, kind, flags, stream_id & _STREAM_ID, data[at + FRAME_HEADER_BYTES : end])
                begin = end
                runs += 1
            elif end > size:
                writer.rest_bytes, end = end - size, size
            at = end
            if pair.closed:
                return False
            if runs >= _RUNS_AT_ONCE:
                self._unfinished = data, begin, at, group
                return True
        if begin < at:
            self._pass(now, group, data, begin, at)
        if at < size:
            self._tail = data[at:]
        self._open_window(self._window.used(self._read_bytes, self._limit))
        return False

    def _begin(self, now: float, data: bytes) -> _Position:
        """Return the position to parse at, with the rest of earlier data before the new data."""
        self._fed_at, self._read_bytes = now, len(data)
        if self._tail:
            data, self._tail = self._tail + data, b""
        at, group, paced = 0, None, self.pair.paced
        if self.writer.rest_bytes:
            at, data = self.writer.take_rest(data)
            if self._is_idle() and paced is not None and paced.transparent:
                group = paced
        return data, 0, at, group

    def is_flowing(self, now: float) -> bool:
        """Return whether the peer has sent something lately, or is not being read because its link is full."""
        return bool(self._holds) or now - self._fed_at < _FLOWING_SECONDS

    @property
    def is_delivering(self) -> bool:
        """True if frames that were read are still to be delivered: on their way, or held by their link."""
        return not self._order.is_empty

    def control(
        self,
        now: float,
        send: Callable[[bytes, float], None],
        frames: bytes,
        *,
        waits: bool = False,
        blocks: bool = False,
    ) -> None:
        """Call `send(frames, now)` for frames of the connection when they have arrived, in order.

        `waits`: after all frames that were read before; `blocks`: before all frames that are read later.
        """
        pair, order, deliver = self.pair, self._order, partial(send, frames)
        call: Callable[..., None] = order.due if waits or blocks else order.arrive
        args = (order.add(deliver, waits=waits, blocks=blocks),) if waits or blocks else (order.enter(), deliver)
        if pair.paced is None or pair.link_rpc is None:
            self._on_control_verdict(now, Deliver(now), call, args)
        else:
            pair.paced.offer(now, self, len(frames), pair.link_rpc, False, self._on_control_verdict, call, args)

    def answer_ping(self, ack: bytes, now: float) -> None:
        """Answer a ping at the end of the link.

        gRPC takes the data that arrives during a ping's round trip for the path's capacity, and opens its window to
        that. A ping behind the queues of the upstream's socket and of the bandwidth would measure the whole open
        window, which would then grow without end.
        """
        pair = self.pair
        if pair.paced is None or pair.link_rpc is None:
            self.writer.send(ack)
        else:
            pair.paced.offer(now, self, len(ack), pair.link_rpc, False, self._on_answer_verdict, ack, express=True)

    def grant(self, nbytes: int) -> None:
        """Pass on a window update of the other peer, as far as the link can use it."""
        self._open_window(self._window.increase(nbytes, self._limit))

    def _on_answer_verdict(self, now: float, verdict: Deliver | Fail, ack: bytes) -> None:
        if isinstance(verdict, Fail):
            return
        if verdict.at <= now:
            self.writer.send(ack)
        else:
            self.writer.later(verdict.at, self._send_later, ack)

    def _on_control_verdict(
        self, now: float, verdict: Deliver | Fail, call: Callable[..., None], args: tuple[object, ...]
    ) -> None:
        if isinstance(verdict, Fail):
            return  # the link is down, and the connection is about to be reset
        self._control_at = at = max(verdict.at, self._control_at)
        if at <= now and not self.writer.queued:
            call(now, *args)
        else:
            self.writer.later(at, call, *args)

    def _send_later(self, _now: float, frames: bytes) -> None:
        self.writer.send(frames)

    def _send(self, frames: bytes, _now: float) -> None:
        self.writer.send(frames)

    def grant_later(self, nbytes: int, _frames: bytes, _now: float) -> None:
        """Call `grant`, as the delivery of a control frame."""
        self.grant(nbytes)

    def _open_window(self, nbytes: int) -> None:
        if nbytes:
            self.back.send(http2.window_update(nbytes))

    @property
    def _limit(self) -> float:
        paced = self.pair.paced
        return paced.window(self.direction) if paced is not None else FIRST_WINDOW_BYTES

    def _is_idle(self) -> bool:
        return not self.writer.queued and not self.pair.renumbered and not self._order.barriers

    def _is_clear(self, stream: Stream) -> bool:
        return stream.paced.transparent and not stream.lost and self._is_idle()

    def _route(  # noqa: PLR0911, PLR0917 - one table of cases, called for most frames
        self, now: float, kind: int, flags: int, stream_id: int, stream: Stream | None, data: bytes, at: int, end: int
    ) -> Stream | PacedLink | None:
        """Return the route of a frame with its neighbours: a link that it passes unchanged, or its stream.

        None: it has to be handled by itself.
        """
        if self._block is not None:
            return None
        if kind == http2.HEADERS:
            if flags & _PLAIN_MASK != http2.END_HEADERS or not self._blocks.stateless or not stream_id & 1:
                return None
            if stream is None:
                if self.direction is DOWN or not self.pair.may_open(stream_id):
                    return None
                stream = self.pair.open(now, stream_id, node_id_in(data[at + FRAME_HEADER_BYTES : end]))
            self._trace(stream, data, at + FRAME_HEADER_BYTES, end)
        elif stream is None:
            # Window updates of a connection whose links add nothing go straight on too.
            paced = self.pair.paced
            if kind == http2.WINDOW_UPDATE and stream_id == 0 and paced is not None:
                return paced if paced.transparent and self._is_idle() else None
            return None
        elif kind not in (http2.DATA, http2.WINDOW_UPDATE, http2.RST_STREAM):
            return None
        if stream.lost:
            return None
        clear = stream.paced.transparent and not (self.writer.queued or self.pair.renumbered or self._order.barriers)
        if clear and kind == http2.HEADERS:
            self._opened = stream.opened[self.index] = True
            if self.direction is UP and not stream.upstream_id:
                self.pair.assign(stream)
        if kind == http2.RST_STREAM or (flags & http2.END_STREAM and kind != http2.WINDOW_UPDATE):
            self.pair.ended(stream, self.direction, kind == http2.RST_STREAM)
        return stream.paced if clear else stream

    def _pass(self, now: float, route: Stream | PacedLink | None, data: bytes, begin: int, end: int) -> None:
        if route.__class__ is Stream:
            self._offer(now, route, data[begin:end])
            return
        if isinstance(route, PacedLink):
            route.count_passed(self.direction, end - begin)
        self.writer.write(data if end - begin == len(data) else memoryview(data)[begin:end])

    def _offer(self, now: float, stream: Stream, run: bytes) -> None:
        end, ticket = stream.ended[self.index], self._order.enter()
        if stream.transit is not None:
            stream.transit.offered(self.index, now, run, end)
        stream.paced.offer(now, self, len(run), stream.link_rpc, end, self._on_verdict, stream, run, ticket)

    def _on_verdict(self, now: float, verdict: Deliver | Fail, stream: Stream, run: bytes, ticket: int) -> None:
        if stream.lost:
            self._discard(run)
            self._order.leave(now, ticket)
        elif isinstance(verdict, Fail):
            self._discard(run)
            self._order.leave(now, ticket)
            self.pair.lose(stream, verdict.at, verdict.cause)
        else:
            at = max(verdict.at, stream.ready_at[self.index])
            if self.direction is UP and self.pair.max_streams < math.inf:
                at = self.pair.wait_for_stream_slot(now, stream, at)
            stream.ready_at[self.index] = at
            if stream.transit is not None:
                self._pass_of_trace(stream, stream.transit, at)
            if at <= now and not self._order.barriers and not self.writer.queued:
                self._deliver(stream, run)
                self._order.leave(now, ticket)
            else:
                stream.paced.begin_transit(now, self, len(run))
                self.writer.later(at, self._order.arrive, ticket, partial(self._on_delivery, stream, run))

    def _trace(self, stream: Stream, data: bytes, begin: int, end: int) -> None:
        """Note the trace that a header block of a stream names; an answer's is that of what it brings."""
        if self.pair.agenda.traces and (context := context_in(data[begin:end])):
            stream.transit = Transit(context, stream.ended)

    def _pass_of_trace(self, stream: Stream, transit: Transit, at: float) -> None:
        report = transit.passed(self.pair.number, self.index, at, stream.paced.name)
        if report is not None:
            self.pair.agenda.effects.append(report)

    def _on_delivery(self, stream: Stream, run: bytes, now: float) -> None:
        stream.paced.end_transit(now, self, len(run))
        if stream.failed:
            self._discard(run)
        else:
            self._deliver(stream, run)

    def _deliver(self, stream: Stream, run: bytes) -> None:
        index = self.index
        if not stream.opened[index] and run[3] == http2.HEADERS:
            stream.opened[index] = True
            if not self._opened:
                # A decoder may insist on hearing that the table has shrunk, and that block may have been lost.
                self._opened = True
                run = http2.with_block_prefix(run, NO_TABLE)
            if self.direction is UP and not stream.upstream_id:
                self.pair.assign(stream)
        if stream.upstream_id != stream.id:
            run = http2.renumbered(run, stream.upstream_id if self.direction is UP else stream.id)
        self.writer.send(run)

    def _discard(self, run: bytes) -> None:
        """Drop frames of a stream that is over, and give their bytes back to the sender's window."""
        self._give_back(sum(length for _, length, kind, *_ in http2.frames(run) if kind == http2.DATA))

    def _give_back(self, nbytes: int) -> None:
        if nbytes:
            self.grant(nbytes)

    def _handle_frame(self, now: float, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Handle a frame that is not just passed on.

        Raises:
            Http2Error: a frame that has no place here.
        """
        if self._block is not None:
            if kind != http2.CONTINUATION or self._block[0] != stream_id:
                raise Http2Error("a header block that is interrupted by another frame")
            self._continue_block(now, flags, payload)
        elif kind == http2.HEADERS:
            if not stream_id & 1:
                raise Http2Error(f"HEADERS on stream {stream_id}")
            self._block = (stream_id, flags, [])
            self._continue_block(now, flags, http2.header_fragment(payload, flags))
        elif kind == http2.DATA:
            if not stream_id or (self.direction is UP and stream_id > self.pair.last_seen_id):
                raise Http2Error(f"DATA on stream {stream_id}, which is not open")
            self._give_back(len(payload))
        elif stream_id:
            self._check_other(kind, stream_id, payload)
        elif kind == http2.SETTINGS:
            http2.check_control(kind, flags, payload)
            self._handle_settings(now, flags, payload)
        elif kind == http2.GOAWAY:
            self.pair.goaway(now, self, payload)
        elif kind in (http2.PRIORITY, http2.RST_STREAM, http2.CONTINUATION, http2.PUSH_PROMISE):
            raise Http2Error(f"a frame of type {kind} on the connection")
        else:
            self._pass_control(now, kind, flags, payload)

    def _check_other(self, kind: int, stream_id: int, payload: bytes) -> None:
        """Drop a frame of a stream that is over. PRIORITY is dropped too: it is deprecated and names other streams.

        Raises:
            Http2Error: it has no place on a stream, or the stream is not open yet.
        """
        if kind in (http2.CONTINUATION, http2.PUSH_PROMISE, http2.SETTINGS, http2.PING, http2.GOAWAY):
            raise Http2Error(f"a frame of type {kind} on stream {stream_id}")
        http2.check_stream_frame(kind, payload)
        is_idle = self.direction is UP and stream_id > self.pair.last_seen_id
        if is_idle and kind in (http2.RST_STREAM, http2.WINDOW_UPDATE):
            raise Http2Error(f"a frame of type {kind} on stream {stream_id}, which is not open")

    def _pass_control(self, now: float, kind: int, flags: int, payload: bytes) -> None:
        http2.check_control(kind, flags, payload)
        opposite, draining = self.pair.opposite(self), self.pair.upstream_draining
        if kind == http2.WINDOW_UPDATE:
            grant = partial(opposite.grant_later, http2.increment_of(payload))
            self.control(now, grant, http2.frame(kind, flags, 0, payload))
        elif kind == http2.PING and not flags & http2.ACK and opposite.is_flowing(now) and not draining:
            self.control(now, opposite.answer_ping, http2.frame(http2.PING, http2.ACK, 0, payload))
        else:
            # A server that drains takes the answer to its PING as a sign that it has seen all requests there will be.
            waits = kind == http2.PING and flags & http2.ACK != 0 and draining
            self.control(now, self._send, http2.frame(kind, flags, 0, payload), waits=waits)

    def _handle_settings(self, now: float, flags: int, payload: bytes) -> None:
        opposite = self.pair.opposite(self)
        if flags & http2.ACK:
            # What was sent before it obeys the old limits, and what is sent after it the new ones.
            waits = opposite.lowering.popleft() if opposite.lowering else False
            self.control(now, self._send, http2.frame(http2.SETTINGS, http2.ACK, 0), waits=waits, blocks=True)
            return
        pairs = http2.read_settings(payload)
        if len(self.lowering) >= MAX_BARRIERS:
            raise Http2Error(f"{MAX_BARRIERS} SETTINGS without an answer", http2.ENHANCE_YOUR_CALM)
        self.lowering.append(self._limits.lowered_by(pairs))
        for key, value in pairs:
            if key == http2.MAX_FRAME_SIZE:
                opposite.raise_max_frame(value)
            elif key == http2.MAX_CONCURRENT_STREAMS and self.direction is DOWN:
                self.pair.limit_streams(value if value < _STREAM_ID else math.inf)
        rewritten = http2.stateless_settings(self._bounded(pairs), refuse_push=self.direction is UP)
        if self.is_settled:
            self.control(now, self._send, rewritten, blocks=True)
        else:
            self.is_settled = True
            self.writer.send(rewritten)

    def raise_max_frame(self, nbytes: int) -> None:
        """Accept longer frames of this peer, as the other one has announced."""
        self.max_frame_bytes = max(self.max_frame_bytes, min(nbytes, http2.LARGEST_FRAME_BYTES))

    def _bounded(self, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the settings for the other peer: no wider windows and no longer frames than the link can use."""
        path_bytes = self.pair.paced.path_bytes if self.pair.paced is not None else 0
        bounds = {http2.MAX_FRAME_SIZE: _MAX_FRAME_BYTES}
        for key, value in pairs:
            if key == http2.INITIAL_WINDOW_SIZE:
                bounds[key] = value // 2 + max(_WINDOW_BYTES, path_bytes)
        return [(key, min(value, bounds.get(key, value))) for key, value in pairs]

    def _continue_block(self, now: float, flags: int, fragment: bytes) -> None:
        assert self._block is not None
        stream_id, first_flags, parts = self._block
        parts.append(fragment)
        if len(parts) > _MAX_CONTINUATIONS or sum(map(len, parts)) > _ENDLESS_BLOCK_BYTES:
            raise Http2Error("a header block without an end", http2.ENHANCE_YOUR_CALM)
        if not flags & http2.END_HEADERS:
            return
        self._block = None
        block, node_id = self._blocks.take(b"".join(parts))  # also where it is refused: the next ones may build on it
        stream = self._streams.get(stream_id)
        end_stream = first_flags & http2.END_STREAM != 0
        if len(block) > MAX_BLOCK_BYTES:
            self.pair.refuse_block(now, stream_id, stream, self.direction, end_stream)
            return
        if stream is None and self.direction is UP and self.pair.may_open(stream_id):
            stream = self.pair.open(now, stream_id, node_id)
        if stream is None or stream.lost:
            return
        self._trace(stream, block, 0, len(block))
        if end_stream:
            self.pair.ended(stream, self.direction, reset=False)
        self._offer(now, stream, http2.header_frames(stream_id, block, end_stream, self.max_frame_bytes))


def _is_long(route: Stream | PacedLink | None, size: int, index: int) -> bool:
    return route.__class__ is Stream and size >= route.paced.piece_bytes[index]
