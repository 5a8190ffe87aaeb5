"""The reading end of one direction of a connection: cuts what it reads into frames and asks each stream's link.

Frames of streams whose link does nothing to them, with nothing queued before them, go on as they were read, in one
write per read. All others are offered to their link in runs: neighbouring frames of one stream.
"""

import math
from collections import deque
from collections.abc import Callable
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Final

from hypergpu.common.clock import monotonic
from hypergpu.netsim_proxy.link.outcomes import Deliver, Fail
from hypergpu.netsim_proxy.relay import http2
from hypergpu.netsim_proxy.relay.flow_control import FIRST_WINDOW_BYTES, WindowLimiter
from hypergpu.netsim_proxy.relay.frame_writer import FrameWriter
from hypergpu.netsim_proxy.relay.header_blocks import MAX_BLOCK_BYTES, NO_TABLE, HeaderBlocks, node_id_in
from hypergpu.netsim_proxy.relay.held_reader import HeldReader
from hypergpu.netsim_proxy.relay.http2 import FRAME_HEADER_BYTES, Http2Error
from hypergpu.netsim_proxy.relay.limits import Limits
from hypergpu.netsim_proxy.relay.ordering import MAX_BARRIERS, DeliveryOrder
from hypergpu.netsim_proxy.relay.paced_link import DOWN, UP, PacedLink
from hypergpu.netsim_proxy.relay.streams import Stream

if TYPE_CHECKING:
    from hypergpu.netsim_proxy.relay.connection import ConnectionPair

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
_STREAM_ID: Final = 0x7FFFFFFF
_PLAIN_MASK: Final = http2.END_HEADERS | http2.PADDED | http2.HAS_PRIORITY
_unpack = Struct(">HBBBI").unpack_from


class FrameReader(HeldReader):
    """The frames that one peer sends; `way` is UP (from the client) or DOWN (from the upstream)."""

    def __init__(self, relay: "ConnectionPair", way: int, outlet: FrameWriter, back: FrameWriter) -> None:
        super().__init__()
        self.relay, self.way, self.outlet, self.back = relay, way, outlet, back
        self.max_frame_bytes = http2.DEFAULT_MAX_FRAME_BYTES  # what the other peer accepts
        self._streams = relay.by_id if way == UP else relay.by_upstream_id
        self._blocks = HeaderBlocks()
        self._block: tuple[int, int, list[bytes]] | None = None  # to be continued: stream id, flags, parts
        self._tail = b""  # a frame whose end has not been read
        self._control_at = 0.0  # connection frames keep their order
        self.is_settled = False  # the first SETTINGS have passed
        self._order = DeliveryOrder()
        self._limits = Limits(way)
        self.lowering: deque[bool] = deque()  # of each SETTINGS that is not acknowledged: whether it lowers a limit
        self._opened = False  # a header block has been delivered
        self._fed_at = -math.inf  # when something was last read
        self._allowance = WindowLimiter()  # of the peer

    def feed(self, data: bytes) -> None:  # noqa: PLR0912 - one pass over the frames, without calls where it is hot
        """Take in what the peer sent.

        Raises:
            Http2Error: these are not frames that the other peer would accept.
        """
        self._fed_at = monotonic()
        count = len(data)
        if self._tail:
            data, self._tail = self._tail + data, b""
        begin = at = 0  # the first of the frames that go the same way, and the next one
        group: Stream | PacedLink | None = None
        if self.outlet.rest:
            at, data = self.outlet.take_rest(data)
            if self._is_idle() and self.relay.port is not None and self.relay.port.transparent:
                group = self.relay.port
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
            if at - begin >= _SHORT_RUN_BYTES and _is_long(group, at - begin, self.way):
                self._pass(group, data, begin, at)
                begin = at
            if kind == http2.DATA and not flags and stream is not None and stream.port is group and not stream.lost:
                way: Stream | PacedLink | None = group  # the common case of a big message, decided without a call
            else:
                way = self._way_of(kind, flags, stream_id, stream, data, at, end)
            if way is not group:
                if begin < at:
                    self._pass(group, data, begin, at)
                group, begin = way, at
                self.relay.pacer.catch_up()
            if way is None:
                self._single(kind, flags, stream_id & _STREAM_ID, data[at + FRAME_HEADER_BYTES : end])
                begin = end
                self.relay.pacer.catch_up()
            elif end > size:
                self.outlet.rest, end = end - size, size
            at = end
            if self.relay.closed:  # by what has become due
                return
        if begin < at:
            self._pass(group, data, begin, at)
        if at < size:
            self._tail = data[at:]
        self._pass_allowance(self._allowance.used(count, self._limit))

    @property
    def is_flowing(self) -> bool:
        """Whether the peer has sent something lately, or what a full link keeps us from reading, and so is alive."""
        return bool(self._holds) or monotonic() - self._fed_at < _FLOWING_SECONDS

    @property
    def is_delivering(self) -> bool:
        """Whether frames that were read are still to be delivered: on their way, or held by their link."""
        return not self._order.is_empty

    def control(
        self, send: Callable[[bytes], None], frames: bytes, *, waits: bool = False, blocks: bool = False
    ) -> None:
        """Let `send` pass frames of the connection on when their link says, in order.

        `waits`: after all that was read before; `blocks`: before all that is read later.
        """
        relay = self.relay
        if waits or blocks:
            arrive = partial(self._order.due, self._order.add(partial(send, frames), waits=waits, blocks=blocks))
        else:
            arrive = partial(self._order.arrive, self._order.enter(), partial(send, frames))
        if relay.port is None or relay.exchange is None:
            self._settle_control(Deliver(monotonic()), arrive)
        else:
            relay.port.offer(self, len(frames), relay.exchange, False, self._settle_control, arrive)

    def answer_ping(self, ack: bytes) -> None:
        """Let a ping turn round where the link ends.

        gRPC takes what arrives during a ping's round trip for the path's capacity, and opens its window to that. Behind
        what waits in the upstream's socket and for the bandwidth, that would be all that it has opened so far, so that
        it opens ever more.
        """
        relay = self.relay
        if relay.port is None or relay.exchange is None:
            self.outlet.send(ack)
        else:
            relay.port.offer(self, len(ack), relay.exchange, False, self._settle_answer, ack, express=True)

    def _settle_answer(self, verdict: Deliver | Fail, ack: bytes) -> None:
        if isinstance(verdict, Fail):
            return
        if verdict.at <= monotonic():
            self.outlet.send(ack)
        else:
            self.outlet.later(verdict.at, self.outlet.send, ack)

    def _settle_control(self, verdict: Deliver | Fail, arrive: Callable[[], None]) -> None:
        if isinstance(verdict, Fail):
            return  # the link is down, and the connection is about to be reset
        self._control_at = at = max(verdict.at, self._control_at)
        if at <= monotonic() and not self.outlet.queued:
            arrive()
        else:
            self.outlet.later(at, arrive)

    def grant(self, nbytes: int, _: bytes = b"") -> None:
        """The other peer lets this one send more: pass that on as far as the link has use for it."""
        self._pass_allowance(self._allowance.granted(nbytes, self._limit))

    def _pass_allowance(self, nbytes: int) -> None:
        if nbytes:
            self.back.send(http2.window_update(nbytes))

    @property
    def _limit(self) -> float:
        port = self.relay.port
        return port.window_bytes[self.way] if port is not None else FIRST_WINDOW_BYTES

    def _is_idle(self) -> bool:
        return not self.outlet.queued and not self.relay.renumbered and self._order.is_free

    def _is_clear(self, stream: Stream) -> bool:
        return stream.port.transparent and not stream.lost and self._is_idle()

    def _way_of(  # noqa: PLR0911, PLR0917 - one table of cases, called for most frames
        self, kind: int, flags: int, stream_id: int, stream: Stream | None, data: bytes, at: int, end: int
    ) -> Stream | PacedLink | None:
        """Where a frame may go as it is, along with its neighbours: straight on (a port), or to its stream's link.

        None: it has to be looked at by itself.
        """
        if self._block is not None:
            return None
        if kind == http2.HEADERS:
            if flags & _PLAIN_MASK != http2.END_HEADERS or not self._blocks.stateless or not stream_id & 1:
                return None
            if stream is None:
                if self.way == DOWN or not self.relay.may_open(stream_id):
                    return None
                stream = self.relay.open(stream_id, node_id_in(data[at + FRAME_HEADER_BYTES : end]))
        elif stream is None:
            # Window updates of a connection whose links add nothing go straight on too.
            port = self.relay.port
            if kind == http2.WINDOW_UPDATE and stream_id == 0 and port is not None:
                return port if port.transparent and self._is_idle() else None
            return None
        elif kind not in (http2.DATA, http2.WINDOW_UPDATE, http2.RST_STREAM):
            return None
        if stream.lost:
            return None
        clear = self._is_clear(stream)
        if clear and kind == http2.HEADERS:
            self._opened = stream.opened[self.way] = True
            if self.way == UP and not stream.upstream_id:
                self.relay.assign(stream)
        if kind == http2.RST_STREAM or (flags & http2.END_STREAM and kind != http2.WINDOW_UPDATE):
            self.relay.ended(stream, self.way, kind == http2.RST_STREAM)
        return stream.port if clear else stream

    def _pass(self, way: Stream | PacedLink | None, data: bytes, begin: int, end: int) -> None:
        if way.__class__ is Stream:
            self._offer(way, data[begin:end])
            return
        if isinstance(way, PacedLink):
            way.passed(self.way, end - begin)
        self.outlet.write(data if end - begin == len(data) else memoryview(data)[begin:end])

    def _offer(self, stream: Stream, run: bytes) -> None:
        end = stream.ended[self.way]
        stream.port.offer(self, len(run), stream.exchange, end, self._settle, stream, run, self._order.enter())

    def _settle(self, verdict: Deliver | Fail, stream: Stream, run: bytes, ticket: int) -> None:
        if stream.lost:
            self._swallow(run)
            self._order.leave(ticket)
        elif isinstance(verdict, Fail):
            self._swallow(run)
            self._order.leave(ticket)
            self.relay.lose(stream, verdict.at, verdict.cause)
        else:
            now = monotonic()
            at = max(verdict.at, stream.ready_at[self.way])
            if self.way == UP and self.relay.max_streams < math.inf:
                at = self.relay.in_turn(stream, at)
            stream.ready_at[self.way] = at
            if at <= now and self._order.is_free and not self.outlet.queued:
                self._deliver(stream, run)
                self._order.leave(ticket)
            else:
                stream.port.enter(self, len(run))
                self.outlet.later(at, self._order.arrive, ticket, partial(self._arrive, stream, run))

    def _arrive(self, stream: Stream, run: bytes) -> None:
        stream.port.leave(self, len(run))
        if stream.failed:
            self._swallow(run)
        else:
            self._deliver(stream, run)

    def _deliver(self, stream: Stream, run: bytes) -> None:
        way = self.way
        if not stream.opened[way] and run[3] == http2.HEADERS:
            stream.opened[way] = True
            if not self._opened:
                # A decoder may insist on hearing that the table has shrunk, and that block may have been lost.
                self._opened = True
                run = http2.with_block_prefix(run, NO_TABLE)
            if way == UP and not stream.upstream_id:
                self.relay.assign(stream)
        if stream.upstream_id != stream.id:
            run = http2.renumbered(run, stream.upstream_id if way == UP else stream.id)
        self.outlet.send(run)

    def _swallow(self, run: bytes) -> None:
        """Drop frames of a stream that is over; the sender's window for the connection must not shrink by them."""
        self._give_back(sum(length for _, length, kind, *_ in http2.frames(run) if kind == http2.DATA))

    def _give_back(self, nbytes: int) -> None:
        if nbytes:
            self.grant(nbytes)

    def _single(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """A frame that is not just passed on."""
        if self._block is not None:
            if kind != http2.CONTINUATION or self._block[0] != stream_id:
                raise Http2Error("a header block that is interrupted by another frame")
            self._continue_block(flags, payload)
        elif kind == http2.HEADERS:
            if not stream_id & 1:
                raise Http2Error(f"HEADERS on stream {stream_id}")
            self._block = (stream_id, flags, [])
            self._continue_block(flags, http2.header_fragment(payload, flags))
        elif kind == http2.DATA:
            if not stream_id or (self.way == UP and stream_id > self.relay.last_seen_id):
                raise Http2Error(f"DATA on stream {stream_id}, which is not open")
            self._give_back(len(payload))
        elif stream_id:
            self._check_other(kind, stream_id, payload)
        elif kind == http2.SETTINGS:
            http2.check_control(kind, flags, payload)
            self._settings(flags, payload)
        elif kind == http2.GOAWAY:
            self.relay.goaway(self, payload)
        elif kind in (http2.PRIORITY, http2.RST_STREAM, http2.CONTINUATION, http2.PUSH_PROMISE):
            raise Http2Error(f"a frame of type {kind} on the connection")
        else:
            self._pass_control(kind, flags, payload)

    def _check_other(self, kind: int, stream_id: int, payload: bytes) -> None:
        """Drop a frame of a stream that is over. PRIORITY is dropped too: it is deprecated and names other streams.

        Raises:
            Http2Error: it has no place on a stream, or the stream is not open yet.
        """
        if kind in (http2.CONTINUATION, http2.PUSH_PROMISE, http2.SETTINGS, http2.PING, http2.GOAWAY):
            raise Http2Error(f"a frame of type {kind} on stream {stream_id}")
        http2.check_stream_frame(kind, payload)
        is_idle = self.way == UP and stream_id > self.relay.last_seen_id
        if is_idle and kind in (http2.RST_STREAM, http2.WINDOW_UPDATE):
            raise Http2Error(f"a frame of type {kind} on stream {stream_id}, which is not open")

    def _pass_control(self, kind: int, flags: int, payload: bytes) -> None:
        http2.check_control(kind, flags, payload)
        opposite, goes = self.relay.lanes[1 - self.way], self.relay.upstream_goes
        if kind == http2.WINDOW_UPDATE:
            self.control(partial(opposite.grant, http2.increment_of(payload)), http2.frame(kind, flags, 0, payload))
        elif kind == http2.PING and not flags & http2.ACK and opposite.is_flowing and not goes:
            self.control(opposite.answer_ping, http2.frame(http2.PING, http2.ACK, 0, payload))
        else:
            # A server that drains takes the answer to its PING as a sign that it has seen all requests there will be.
            waits = kind == http2.PING and flags & http2.ACK != 0 and goes
            self.control(self.outlet.send, http2.frame(kind, flags, 0, payload), waits=waits)

    def _settings(self, flags: int, payload: bytes) -> None:
        if flags & http2.ACK:
            # What was sent before it obeys the old limits, and what is sent after it the new ones.
            lowering = self.relay.lanes[1 - self.way].lowering
            waits = lowering.popleft() if lowering else False
            self.control(self.outlet.send, http2.frame(http2.SETTINGS, http2.ACK, 0), waits=waits, blocks=True)
            return
        pairs = http2.read_settings(payload)
        if len(self.lowering) >= MAX_BARRIERS:
            raise Http2Error(f"{MAX_BARRIERS} SETTINGS without an answer", http2.ENHANCE_YOUR_CALM)
        self.lowering.append(self._limits.lowered_by(pairs))
        for key, value in pairs:
            if key == http2.MAX_FRAME_SIZE:
                opposite = self.relay.lanes[1 - self.way]
                opposite.max_frame_bytes = max(opposite.max_frame_bytes, min(value, http2.LARGEST_FRAME_BYTES))
            elif key == http2.MAX_CONCURRENT_STREAMS and self.way == DOWN:
                self.relay.max_streams = value if value < _STREAM_ID else math.inf
        bounds = {http2.MAX_FRAME_SIZE: _MAX_FRAME_BYTES}
        for key, value in pairs:
            if key == http2.INITIAL_WINDOW_SIZE:
                path_bytes = self.relay.port.path_bytes if self.relay.port is not None else 0
                bounds[key] = value // 2 + max(_WINDOW_BYTES, path_bytes)
        bounded = [(key, min(value, bounds.get(key, value))) for key, value in pairs]
        rewritten = http2.stateless_settings(bounded, refuse_push=self.way == UP)
        if self.is_settled:
            self.control(self.outlet.send, rewritten, blocks=True)
        else:
            self.is_settled = True
            self.outlet.send(rewritten)

    def _continue_block(self, flags: int, fragment: bytes) -> None:
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
        if len(block) > MAX_BLOCK_BYTES:
            self.relay.refuse_block(stream_id, stream, self.way, first_flags & http2.END_STREAM != 0)
            return
        if stream is None and self.way == UP and self.relay.may_open(stream_id):
            stream = self.relay.open(stream_id, node_id)
        if stream is None or stream.lost:
            return
        end_stream = first_flags & http2.END_STREAM != 0
        if end_stream:
            self.relay.ended(stream, self.way, reset=False)
        self._offer(stream, http2.header_frames(stream_id, block, end_stream, self.max_frame_bytes))


def _is_long(way: Stream | PacedLink | None, size: int, direction: int) -> bool:
    return way.__class__ is Stream and size >= way.port.piece_bytes[direction]
