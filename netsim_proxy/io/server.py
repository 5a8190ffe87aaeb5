"""Listening proxy: accepts clients, connects each to the upstream, and drains."""

import asyncio
import contextlib
import itertools
import ssl
from functools import partial
from typing import Final

import structlog

from hypergpu.common.background import Background
from hypergpu.netsim_proxy.config.link_map import EMPTY, LinkMap
from hypergpu.netsim_proxy.io.addresses import Address
from hypergpu.netsim_proxy.io.link_registry import LinkRegistry
from hypergpu.netsim_proxy.io.listener import Listener
from hypergpu.netsim_proxy.io.pacer import Pacer
from hypergpu.netsim_proxy.io.protocols import ClientPeer, UpstreamPeer
from hypergpu.netsim_proxy.io.throttle import Throttle
from hypergpu.netsim_proxy.io.tls import ServerTls, UpstreamTls
from hypergpu.netsim_proxy.io.transports import LINGER_SECONDS, end_transport
from hypergpu.netsim_proxy.io.upstream_errors import reason_of
from hypergpu.netsim_proxy.link.outcomes import DOWN, UP
from hypergpu.netsim_proxy.relay.connection import ConnectionPair
from hypergpu.netsim_proxy.relay.unavailable import UnavailableResponder

_CONNECT_SECONDS: Final = 5.0
_LOOK_AGAIN_SECONDS: Final = 0.05
"""Interval at which a connection that is being opened checks if the event that blocks its link was cleared."""

log = structlog.get_logger()


class Proxy:
    """Relays every connection that it accepts to `upstream`; made and used inside one event loop.

    A call goes on the link that it names. One that names none goes on the link of the port where its connection was
    accepted, or else on that of the client's address in `link_map`.
    """

    def __init__(
        self,
        upstream: str,
        links: LinkRegistry,
        pacer: Pacer,
        server_tls: ServerTls | None = None,
        upstream_tls: UpstreamTls | None = None,
        *,
        link_map: LinkMap = EMPTY,
    ) -> None:
        self.link_map = link_map
        self.numbers = itertools.count(1)
        self.upstream = upstream
        self.throttle = Throttle()
        self.pairs: set[ConnectionPair] = set()
        self._peers: set[ClientPeer | UpstreamPeer] = set()
        self._idle = asyncio.Event()  # no pair is left
        self._alone = asyncio.Event()  # nor any connection
        self._upstream = Address.parse(upstream)
        self._links, self.pacer = links, pacer
        self._server_tls, self._upstream_tls = server_tls, upstream_tls
        self._server_ssl = server_tls.context() if server_tls else None
        self._upstream_ssl = upstream_tls.context() if upstream_tls else None
        host = self._upstream.host.strip("[]") or "localhost"
        self._upstream_name = (upstream_tls.server_name or host) if upstream_tls else None
        self._background = Background(self.throttle.failure)
        self._servers: list[tuple[Listener, Address]] = []

    async def listen(self, address: str, link: str = "") -> str:
        """Accept clients at HOST:PORT or unix:PATH, on `link` if one is given; return the address with the real port.

        Raises:
            ConfigError: an address that is malformed or in use.
        """
        parsed = Address.parse(address)
        server, text = await parsed.listen(
            lambda: ClientPeer(self, link), self._server_ssl, self._background, self.throttle
        )
        self._servers.append((server, parsed))
        return text

    def reload_certificates(self) -> None:
        """Read the files of both sides again: connections from now on use what they hold.

        Raises:
            ConfigError: a file that cannot be used; then all stays as it was.
        """
        if self._server_tls is not None:
            self._server_tls.context()
        upstream_ssl = self._upstream_tls.context() if self._upstream_tls else None
        if self._server_tls is not None and self._server_ssl is not None:
            self._server_tls.load_into(self._server_ssl)
        self._upstream_ssl = upstream_ssl

    def connect(self, client: ClientPeer, transport: asyncio.Transport) -> None:
        """Bring up the upstream's side for a client that has greeted."""
        self._background.spawn("connecting to the upstream", self._connect_or_reset(client, transport))

    async def drain(self, grace_seconds: float) -> None:
        """Stop accepting, send GOAWAY, wait for open RPCs up to `grace_seconds`, and close the rest."""
        for server, address in self._servers:
            server.close()
            address.remove()
        for pair in list(self.pairs):
            self.pacer.run(pair.drain)
        if self.pairs:
            await _until(self._idle, grace_seconds)
        self._background.cancel()
        for pair in list(self.pairs):
            self.pacer.run(pair.fail_all, "netsim: the proxy is shutting down")
            self.pacer.run(pair.close)
        if self._peers:
            await _until(self._alone, LINGER_SECONDS)
        for peer in list(self._peers):
            peer.close()

    def joined(self, peer: ClientPeer | UpstreamPeer) -> None:
        """Add a connection."""
        self._peers.add(peer)

    def left(self, peer: ClientPeer | UpstreamPeer) -> None:
        """Remove a connection."""
        self._peers.discard(peer)
        if not self._peers:
            self._alone.set()

    def attach(self, pair: ConnectionPair, client: asyncio.Transport, upstream: asyncio.Transport) -> None:
        """Relay between two open connections; nothing has been read from the upstream yet."""
        self.pacer.transports.add(pair.number, partial(self._closed, pair))
        self.pacer.transports.attach(pair.number, UP, client)
        self.pacer.transports.attach(pair.number, DOWN, upstream)
        pair.begin()
        self.pacer.settle()

    def _closed(self, pair: ConnectionPair) -> None:
        self.pairs.discard(pair)
        if not self.pairs:
            self._idle.set()

    async def _connect_or_reset(self, client: ClientPeer, transport: asyncio.Transport) -> None:
        try:
            await self._connect(client, transport)
        except Exception:
            client.reset()  # it would wait for an answer for ever
            raise

    async def _connect(self, client: ClientPeer, transport: asyncio.Transport) -> None:
        host = str((transport.get_extra_info("peername") or ("",))[0])
        if not await self._is_open(host, client.link, transport):
            return
        pair = ConnectionPair(self._links, self.pacer.agenda, next(self.numbers), client.link, host)
        try:
            upstream, _ = await asyncio.wait_for(
                self._upstream.connect(
                    lambda: UpstreamPeer(self, pair, client, transport), self._upstream_ssl, self._upstream_name
                ),
                _CONNECT_SECONDS,
            )
        except (ssl.SSLError, ssl.CertificateError) as error:
            self.refuse(client, f"cannot be used: {reason_of(error)}")
            return
        except (OSError, TimeoutError) as error:
            why = "no answer" if isinstance(error, TimeoutError) else (getattr(error, "strerror", "") or str(error))
            self.throttle.warning("upstream cannot be reached", upstream=self.upstream, reason=why)
            client.reset()
            return
        if transport.is_closing():
            upstream.abort()
            return
        if pair.closed:  # the upstream has already said something else than HTTP/2
            return
        self.pairs.add(pair)
        client.begin(pair)

    def refuse(self, client: ClientPeer, reason: str) -> None:
        """Answer a client's calls with the fault of the upstream."""
        self.throttle.warning("upstream cannot be used", upstream=self.upstream, reason=reason)
        client.refuse(UnavailableResponder(f"netsim: upstream {self.upstream} {reason}"))

    async def _is_open(self, host: str, link: str, transport: asyncio.Transport) -> bool:
        """Wait while the link blocks new connections; return whether the client is still connected."""
        while not transport.is_closing():
            blocked = self._links.blocks_opening(host, link)
            if blocked is None:
                return True
            if blocked.reset:
                end_transport(transport, reset=True)
                break
            await asyncio.sleep(min(max(blocked.until - self.pacer.now(), 0.0), _LOOK_AGAIN_SECONDS))
        return False


async def _until(event: asyncio.Event, seconds: float) -> None:
    """Wait for the next change, at most so long."""
    event.clear()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
