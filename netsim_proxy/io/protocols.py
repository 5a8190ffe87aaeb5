"""asyncio protocols of the two ends of a pair of connections; they pass events to the relay."""

import asyncio
import contextlib
import os
import ssl
from typing import Final, Protocol, cast

import structlog

from hypergpu.netsim_proxy.config.link_map import LinkMap
from hypergpu.netsim_proxy.io.pacer import Pacer
from hypergpu.netsim_proxy.io.throttle import Throttle
from hypergpu.netsim_proxy.io.transports import LINGER_SECONDS, bound_buffers, end_transport
from hypergpu.netsim_proxy.io.upstream_errors import MIN_BYTES, mistake_in, reason_of
from hypergpu.netsim_proxy.link.outcomes import DOWN, UP
from hypergpu.netsim_proxy.relay.connection import ConnectionPair
from hypergpu.netsim_proxy.relay.http2 import PREFACE, Http2Error
from hypergpu.netsim_proxy.relay.unavailable import UnavailableResponder

PREFACE_SECONDS: Final = 10.0
"""Time in which a client must send the HTTP/2 preface."""
_EARLY_BYTES: Final = 256 << 10

log = structlog.get_logger()


def _language(said: bytes | bytearray) -> str:
    """Return a hint about the protocol of a client that does not speak HTTP/2."""
    if said.startswith(b"\x16\x03"):
        return "TLS, for which there must be --tls-cert and --tls-key"
    return "HTTP/1" if b"HTTP/1" in said else "an unknown protocol"


class Owner(Protocol):
    """Interface of the proxy to the ends of its connections."""

    upstream: str
    link_map: LinkMap
    pacer: Pacer
    throttle: Throttle

    def connect(self, client: "ClientPeer", transport: asyncio.Transport) -> None:
        """Bring up the upstream's side for a client that has greeted."""

    def attach(self, pair: ConnectionPair, client: asyncio.Transport, upstream: asyncio.Transport) -> None:
        """Relay between two connections that are up."""

    def refuse(self, client: "ClientPeer", reason: str) -> None:
        """Answer a client's calls with the fault of the upstream."""

    def joined(self, peer: "ClientPeer | UpstreamPeer") -> None:
        """Count an open connection."""

    def left(self, peer: "ClientPeer | UpstreamPeer") -> None:
        """Forget a closed connection."""


class ClientPeer(asyncio.Protocol):
    """Accepted connection. It connects to the upstream once the client has sent the HTTP/2 preface."""

    def __init__(self, proxy: Owner, link: str = "") -> None:
        self._proxy = proxy
        self.link = link
        """Link of calls that name none; empty = the default."""
        self._early = bytearray()
        self._greeted = False
        self._said: bytearray | None = bytearray()  # after the preface
        self._timeout: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._refusal: UnavailableResponder | None = None
        self.pair: ConnectionPair | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with a connected client."""
        self._transport = cast(asyncio.Transport, transport)
        bound_buffers(self._transport)
        self.link = self.link or self._proxy.link_map.of_peer(self._transport.get_extra_info("peername"))
        self._timeout = asyncio.get_running_loop().call_later(PREFACE_SECONDS, self._transport.abort)
        self._proxy.joined(self)

    def data_received(self, data: bytes) -> None:
        """Relay data; before the upstream is connected, buffer it."""
        if self.pair is not None:
            if self._said is not None:
                self._remember(data, self.pair.is_established)
            self._proxy.pacer.handle(self.pair, UP, data)
            return
        if self._refusal is not None:
            self._answer(self._refusal, data)
            return
        assert self._transport is not None
        # Pausing here is no guarantee that nothing more comes, so early bytes are always kept.
        self._early += data
        if not self._greeted:
            if not PREFACE.startswith(self._early[: len(PREFACE)]):
                log.warning("connection refused: no HTTP/2", client_speaks=_language(self._early))
                self._transport.abort()
            elif len(self._early) >= len(PREFACE):
                self._greeted = True
                if self._timeout is not None:
                    self._timeout.cancel()
                self._proxy.connect(self, self._transport)
        elif len(self._early) > _EARLY_BYTES:
            self._transport.pause_reading()

    def begin(self, pair: ConnectionPair) -> None:
        """Relay the buffered data to the upstream."""
        self.pair = pair
        self.data_received(self._take_early())

    def refuse(self, refusal: UnavailableResponder) -> None:
        """Answer the buffered calls: no upstream can be used."""
        said, self._said, self.pair = self._said, None, None
        self._refusal = refusal
        self.data_received(bytes(said or b"") or self._take_early())

    def reset(self) -> None:
        """End the connection as a missing upstream would, so that the client does not consider it ready."""
        if self._transport is not None:
            end_transport(self._transport, reset=True)

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()

    def _remember(self, data: bytes, is_established: bool) -> None:
        """Buffer the client's data until the upstream has shown that it speaks HTTP/2."""
        assert self._said is not None
        if is_established:
            self._said = None
        elif len(self._said) + len(data) <= _EARLY_BYTES:
            self._said += data

    def _take_early(self) -> bytes:
        assert self._transport is not None
        self._transport.resume_reading()
        early = bytes(self._early[len(PREFACE) :])
        self._early.clear()
        return early

    def _answer(self, refusal: UnavailableResponder, data: bytes) -> None:
        assert self._transport is not None
        try:
            answer, over = refusal.feed(data)
        except Http2Error:
            self._transport.abort()
            return
        self._transport.write(answer)
        if over:
            asyncio.get_running_loop().call_later(LINGER_SECONDS, self._transport.close)

    def pause_writing(self) -> None:
        """Stop reading from the upstream, since the client does not read."""
        if self.pair is not None:
            self._proxy.pacer.hold(self.pair, DOWN)

    def resume_writing(self) -> None:
        """Read from the upstream again."""
        if self.pair is not None:
            self._proxy.pacer.release(self.pair, DOWN)

    def connection_lost(self, error: Exception | None) -> None:
        """Handle the loss of the client."""
        self._proxy.left(self)
        if self._timeout is not None:
            self._timeout.cancel()
        if self.pair is not None:
            self._proxy.pacer.run(self.pair.client_lost)


class UpstreamPeer(asyncio.Protocol):
    """Connection to the upstream."""

    def __init__(self, proxy: Owner, pair: ConnectionPair, peer: ClientPeer, client: asyncio.Transport) -> None:
        self._proxy, self._pair, self._peer, self._client = proxy, pair, peer, client
        self._first: bytes | None = b""  # what it has said, until it is known to be HTTP/2
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with a connected upstream."""
        self._transport = cast(asyncio.Transport, transport)
        bound_buffers(self._transport)
        self._proxy.attach(self._pair, self._client, self._transport)
        self._proxy.joined(self)

    def data_received(self, data: bytes) -> None:
        """Relay data; check first that the upstream speaks HTTP/2."""
        if self._first is not None:
            data = self._first = self._first + data
            if len(data) < MIN_BYTES:
                return
            mistake = mistake_in(data)
            if mistake is not None:
                self._give_up(mistake)
                return
            self._first = None
        self._proxy.pacer.handle(self._pair, DOWN, data)

    def pause_writing(self) -> None:
        """Stop reading from the client, since the upstream does not read."""
        self._proxy.pacer.hold(self._pair, UP)

    def resume_writing(self) -> None:
        """Read from the client again."""
        self._proxy.pacer.release(self._pair, UP)

    def connection_lost(self, error: Exception | None) -> None:
        """Handle the loss of the upstream."""
        self._proxy.left(self)
        if error is not None:
            self._read_last_words()
        if self._first is not None and not self._pair.closed:
            mistake = mistake_in(self._first) if self._first else None
            if mistake is not None or isinstance(error, ssl.SSLError):
                self._give_up(mistake or reason_of(error))
                return
            why = "closes each connection before it says anything"
            self._proxy.throttle.warning("upstream cannot be used", upstream=self._proxy.upstream, reason=why)
        reason = f": {error}" if error else ""
        message = f"netsim: upstream {self._proxy.upstream} closed the connection{reason}"
        self._proxy.pacer.run(self._pair.upstream_lost, message)

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()

    def _give_up(self, mistake: str) -> None:
        """Report the fault to the client in HTTP/2, since it could not see it in a broken connection."""
        self._proxy.pacer.transports.detach(self._pair.number, UP)
        self._proxy.pacer.run(self._pair.close)
        self._proxy.refuse(self._peer, mistake)

    def _read_last_words(self) -> None:
        """Read what the peer sent before it closed: the last answers of a server that drains.

        A write to such a peer ends the transport before they are read. Under TLS they are lost.
        """
        if self._transport is None or self._transport.get_extra_info("sslcontext") is not None:
            return
        descriptor = self._transport.get_extra_info("socket").fileno()
        with contextlib.suppress(OSError):
            while descriptor >= 0 and (data := os.read(descriptor, _EARLY_BYTES)):
                self._proxy.pacer.handle(self._pair, DOWN, data)
