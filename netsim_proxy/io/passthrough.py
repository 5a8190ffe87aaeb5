"""Pass-through of any TCP, TLS included, over the same links. The bytes are not parsed.

There are no calls that the link could lose:
losses cost time under `transport`, and nothing under `rpc`.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, cast

from hypergpu.common.background import Background
from hypergpu.common.clock import monotonic
from hypergpu.netsim_proxy.config.link_map import LinkMap
from hypergpu.netsim_proxy.io.addresses import Address
from hypergpu.netsim_proxy.io.link_registry import LinkRegistry
from hypergpu.netsim_proxy.io.listener import Listener
from hypergpu.netsim_proxy.io.pacer import Pacer
from hypergpu.netsim_proxy.io.throttle import Throttle
from hypergpu.netsim_proxy.io.transports import LINGER_SECONDS, bound_buffers, end_transport
from hypergpu.netsim_proxy.link.outcomes import DOWN, UP, Direction
from hypergpu.netsim_proxy.relay.client_hello import HANDSHAKE, Incomplete, server_name
from hypergpu.netsim_proxy.relay.raw_connection import RawConnectionPair

_CONNECT_SECONDS: Final = 5.0
_HELLO_SECONDS: Final = 1.0
"""Time in which a client may name a server; after it, the connection counts as naming none."""


class PassThrough:
    """Relays TCP connections to `upstream`.

    A connection is on the link of the server's name that it asks for (TLS), or else of the port where it was accepted,
    or else of the client's address, or else on the default link.
    """

    def __init__(
        self,
        upstream: str,
        links: LinkRegistry,
        pacer: Pacer,
        *,
        link_map: Callable[[], LinkMap],
        numbers: Iterator[int],
    ) -> None:
        self.pairs: set[RawConnectionPair] = set()
        self.ends: set[asyncio.Transport] = set()
        """Open connections of both sides."""
        self.upstream = Address.parse(upstream)
        self.link_map = link_map
        self._links, self.pacer, self._numbers = links, pacer, numbers
        self._servers: list[tuple[Listener, Address]] = []
        self._throttle = Throttle()
        self._background = Background(self._throttle.failure)

    async def listen(self, address: str, link: str = "") -> str:
        """Accept connections at HOST:PORT or unix:PATH; return the address with the real port.

        Raises:
            ConfigError: an address that is malformed or in use.
        """
        parsed = Address.parse(address)
        server, text = await parsed.listen(lambda: _Client(self, link), None, self._background, self._throttle)
        self._servers.append((server, parsed))
        return text

    async def drain(self, grace_seconds: float) -> None:
        """Stop accepting, wait for open connections up to `grace_seconds`, and close the rest."""
        for server, address in self._servers:
            server.close()
            address.remove()
        await _until(lambda: not self.pairs, grace_seconds)
        self._background.cancel()
        for pair in list(self.pairs):
            self.pacer.run(pair.close)
        await _until(lambda: not self.ends, LINGER_SECONDS)
        for end in list(self.ends):
            end.abort()
        await _until(lambda: not self.ends, LINGER_SECONDS)

    def handle(self, pair: RawConnectionPair, direction: Direction, data: bytes) -> None:
        """Relay the data that was read."""
        self.pacer.catch_up()
        self.pacer.run(pair.handle, direction, data)

    def connect(self, client: "_Client", link: str) -> None:
        """Bring up the upstream's side for a client whose link is known."""
        self._background.spawn("connecting to the upstream", self._connect_or_refuse(client, link))

    async def _connect_or_refuse(self, client: "_Client", link: str) -> None:
        try:
            await self._connect(client, link)
        except Exception:
            client.refuse()  # it would wait for an answer for ever
            raise

    async def _connect(self, client: "_Client", link: str) -> None:
        paced = self._links.of(link)
        blocked = paced.link.blocked(self.pacer.now())
        if blocked is not None and blocked.reset:
            client.refuse()
            return
        pair = RawConnectionPair(self.pacer.now(), paced, self.pacer.agenda, next(self._numbers))
        self.pairs.add(pair)
        self.pacer.transports.add(pair.number, partial(self.pairs.discard, pair))
        client.attach_to(pair)
        try:
            await asyncio.wait_for(self.upstream.connect(lambda: _End(self, pair, DOWN)), _CONNECT_SECONDS)
        except (OSError, TimeoutError) as error:
            why = "no answer" if isinstance(error, TimeoutError) else (getattr(error, "strerror", "") or str(error))
            self._throttle.warning("upstream cannot be reached", upstream=self.upstream.text, reason=why)
            client.refuse()
            self.pacer.run(pair.close)
            return
        if not client.begin(pair):
            self.pacer.run(pair.close)

    def attach(self, pair: RawConnectionPair, direction: Direction, transport: asyncio.Transport) -> None:
        """Relay the data of an open connection, in `direction`."""
        bound_buffers(transport)
        self.pacer.transports.attach(pair.number, direction, transport)


class _End(asyncio.Protocol):
    """One end of a pair of connections; hands what happens to the relay."""

    def __init__(self, proxy: PassThrough, pair: RawConnectionPair | None, direction: Direction) -> None:
        self.pair = pair
        self._proxy, self._direction = proxy, direction
        self._is_full = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with a connected end."""
        self._transport = cast(asyncio.Transport, transport)
        self._proxy.ends.add(self._transport)
        if self.pair is not None:
            self._proxy.attach(self.pair, self._direction, self._transport)

    def data_received(self, data: bytes) -> None:
        """ConnectionPair."""
        if self.pair is not None:
            self._proxy.handle(self.pair, self._direction, data)

    def eof_received(self) -> bool:
        """Keep the connection: the end sends no more, and may still read."""
        if self.pair is not None:
            self._proxy.pacer.run(self.pair.end, self._direction)
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """Handle the loss of the connection."""
        if self._transport is not None:
            self._proxy.ends.discard(self._transport)
            self._transport = None
        if self.pair is not None:
            self._proxy.pacer.run(self.pair.end, self._direction, error is not None)

    def pause_writing(self) -> None:
        """Stop reading from the other end, since this one does not read."""
        self._is_full = True
        if self.pair is not None:
            self._proxy.pacer.hold(self.pair, self._direction.opposite)

    def resume_writing(self) -> None:
        """Read from the other end again."""
        self._is_full = False
        if self.pair is not None:
            self._proxy.pacer.release(self.pair, self._direction.opposite)


class _Client(_End):
    """The accepted connection; it brings up the upstream's when its link is known."""

    def __init__(self, proxy: PassThrough, link: str) -> None:
        super().__init__(proxy, None, UP)
        self._link = link
        self._early = bytearray()
        self._timeout: asyncio.TimerHandle | None = None
        self._asked = False
        self._at_end = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with a connected client."""
        super().connection_made(transport)
        assert self._transport is not None
        link_map = self._proxy.link_map()
        self._link = self._link or link_map.of_peer(self._transport.get_extra_info("peername"))
        if link_map.by_server_name:
            self._timeout = asyncio.get_running_loop().call_later(_HELLO_SECONDS, self._ask, self._link)
        else:
            self._ask(self._link)

    def data_received(self, data: bytes) -> None:
        """Relay data; before the upstream is connected, buffer it."""
        if self.pair is not None:
            super().data_received(data)
            return
        self._early += data
        if not self._asked:
            with contextlib.suppress(Incomplete):
                name = server_name(bytes(self._early)) if self._early[0] == HANDSHAKE else None
                self._ask(self._proxy.link_map().of_server_name(name) or self._link)
        elif self._transport is not None:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """Handle the end of the client's data; it is remembered until the upstream is connected."""
        self._at_end = True
        if not self._asked:
            self._ask(self._link)
        return super().eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        """Handle the loss of the connection."""
        if self._timeout is not None:
            self._timeout.cancel()
        super().connection_lost(error)

    def attach_to(self, pair: RawConnectionPair) -> None:
        """Become the client's end of a pair, so that data that the upstream sends first arrives."""
        if self._transport is not None:
            self._proxy.attach(pair, UP, self._transport)

    def begin(self, pair: RawConnectionPair) -> bool:
        """Relay the buffered data to the upstream; return whether the client is still connected."""
        if self._transport is None or self._transport.is_closing():
            return False
        self.pair = pair
        if self._is_full:  # the upstream may have sent more than it takes before this
            self._proxy.pacer.hold(pair, DOWN)
        self._transport.resume_reading()
        early = bytes(self._early)
        self._early.clear()
        self._proxy.pacer.run(pair.begin, early, self._at_end)
        return True

    def refuse(self) -> None:
        """End the client's connection as the missing upstream would."""
        end_transport(self._transport, reset=True)

    def _ask(self, link: str) -> None:
        if not self._asked:
            self._asked = True
            if self._timeout is not None:
                self._timeout.cancel()
            self._proxy.connect(self, link)


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until a condition holds, at most so long."""
    end = monotonic() + seconds
    while not condition() and monotonic() < end:  # noqa: ASYNC110 - only while the proxy ends
        await asyncio.sleep(0.01)
