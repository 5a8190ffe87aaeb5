"""Driver of the relay's effects on sockets."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Final

import structlog

from hypergpu.common.tracing import NO_TRACER, Tracer
from hypergpu.netsim_proxy.link.outcomes import UP, Direction
from hypergpu.netsim_proxy.relay.effects import (
    Close,
    Closed,
    Effect,
    EndWriting,
    Pause,
    ReportInvalidHttp2,
    ReportTransit,
    Resume,
    Write,
)

LINGER_SECONDS: Final = 1.0
"""Time in which a peer must close a connection that we have ended, before it is cut."""
_WRITE_BUFFER_BYTES: Final = 256 << 10
_SEND_BUFFER_BYTES: Final = 256 << 10
_RECEIVE_BUFFER_BYTES: Final = 512 << 10

log = structlog.get_logger()


class Ends:
    """The transports of one pair of connections, by the direction that each sends."""

    __slots__ = ("on_closed", "senders")

    def __init__(self, on_closed: Callable[[], None]) -> None:
        self.senders: list[asyncio.Transport | None] = [None, None]
        self.on_closed = on_closed


class Transports:
    """The transports of all pairs of connections, by the number of the pair."""

    def __init__(self, tracer: Tracer = NO_TRACER) -> None:
        self._ends: dict[int, Ends] = {}
        self._tracer = tracer

    def add(self, connection: int, on_closed: Callable[[], None]) -> None:
        """Add a pair of connections; `on_closed` is called when it is closed."""
        self._ends[connection] = Ends(on_closed)

    def attach(self, connection: int, direction: Direction, transport: asyncio.Transport) -> None:
        """Read what travels in `direction` from this transport, and write to it what travels the other way."""
        if connection in self._ends:
            self._ends[connection].senders[direction.ordinal] = transport

    def detach(self, connection: int, direction: Direction) -> None:
        """Leave a transport to another owner."""
        if connection in self._ends:
            self._ends[connection].senders[direction.ordinal] = None

    def carry_out(self, effects: list[Effect]) -> None:
        """Carry out the relay's effects, in order."""
        for effect in effects:
            ends = self._ends.get(effect.connection)
            if ends is None:
                continue
            if effect.__class__ is not Write:
                self._carry_out(effect, ends)
                continue
            sink = ends.senders[1 - effect.direction.ordinal]
            # A transport whose peer has just gone may be closed before it has told us: uvloop's then refuses to write.
            if sink is not None and not sink.is_closing():
                sink.write(effect.data)

    def _carry_out(self, effect: Effect, ends: Ends) -> None:
        match effect:
            case Closed():
                del self._ends[effect.connection]
                ends.on_closed()
            case ReportInvalidHttp2():
                who = "client" if effect.direction is UP else "upstream"
                log.warning("connection ended: invalid HTTP/2", peer=who, reason=effect.reason)
            case ReportTransit():
                self._record(effect)
            case Close():
                end_transport(ends.senders[effect.direction.ordinal], effect.reset)
            case EndWriting():
                sink = ends.senders[1 - effect.direction.ordinal]
                if sink is not None and not sink.is_closing():
                    sink.write_eof()
            case Pause() | Resume():
                source = ends.senders[effect.direction.ordinal]
                if source is not None and not source.is_closing():
                    source.pause_reading() if effect.__class__ is Pause else source.resume_reading()

    def _record(self, transit: ReportTransit) -> None:
        """Add the time that a message was under way, by the relay's clock, to its trace."""
        name = f"link {'up' if transit.direction is UP else 'down'}"
        self._tracer.record(
            name,
            transit.context,
            transit.began,
            transit.ended,
            link=transit.link,
            bytes=transit.nbytes,
            delay_seconds=transit.delay_seconds,
        )


def bound_buffers(transport: asyncio.Transport) -> None:
    """Keep what waits between the peers small.

    gRPC takes what is in flight for the path's capacity, and sizes a reader's window by it.
    """
    transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)


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
