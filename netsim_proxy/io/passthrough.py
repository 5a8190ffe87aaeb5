"""TCP that is passed through as it is, TLS included, over the same links: for any protocol, nothing is looked into.

Bytes are offered to the link in pieces and written when they are due. There are no calls that the link could lose:
losses cost time under `transport`, and nothing under `rpc`.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Final, cast

from hypergpu.common.background import Background
from hypergpu.common.clock import monotonic
from hypergpu.netsim_proxy.config.link_map import LinkMap
from hypergpu.netsim_proxy.io.addresses import Address
from hypergpu.netsim_proxy.io.link_registry import LinkRegistry
from hypergpu.netsim_proxy.io.listener import Listener
from hypergpu.netsim_proxy.io.pacer import Pacer
from hypergpu.netsim_proxy.io.protocols import bound_buffers
from hypergpu.netsim_proxy.io.throttle import Throttle
from hypergpu.netsim_proxy.link.outcomes import Deliver, Exchange, Fail
from hypergpu.netsim_proxy.relay.client_hello import HANDSHAKE, Incomplete, server_name
from hypergpu.netsim_proxy.relay.connection import LINGER_SECONDS, end_transport
from hypergpu.netsim_proxy.relay.frame_writer import FrameWriter
from hypergpu.netsim_proxy.relay.held_reader import HeldReader
from hypergpu.netsim_proxy.relay.paced_link import DIRECTIONS, DOWN, UP, PacedLink

_CONNECT_SECONDS: Final = 5.0
_HELLO_SECONDS: Final = 1.0
"""How long a client may take to name a server before its connection is taken for one that names none."""


class PassThrough:
    """Relays TCP connections to `upstream`.

    A connection is on the link of the server's name that it asks for (TLS), or else of the port where it was accepted,
    or else of the client's address, or else on the default link.
    """

    def __init__(
        self,
        upstream: str,
        ports: LinkRegistry,
        pacer: Pacer,
        *,
        link_map: Callable[[], LinkMap],
        numbers: Iterator[int],
    ) -> None:
        self.relays: set[RawConnectionPair] = set()
        self.ends: set[asyncio.Transport] = set()
        """Connections of either side."""
        self.upstream = Address.parse(upstream)
        self.link_map = link_map
        self._ports, self._pacer, self._numbers = ports, pacer, numbers
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
        """Accept nobody, wait for open connections up to `grace_seconds`, and close what is left."""
        for server, address in self._servers:
            server.close()
            address.remove()
        await _until(lambda: not self.relays, grace_seconds)
        self._background.cancel()
        for relay in list(self.relays):
            relay.close()
        await _until(lambda: not self.ends, LINGER_SECONDS)
        for end in list(self.ends):
            end.abort()
        await _until(lambda: not self.ends, LINGER_SECONDS)

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
        port = self._ports.of(link)
        blocked = port.link.blocked(monotonic())
        if blocked is not None and blocked.reset:
            client.refuse()
            return
        relay = RawConnectionPair(port, self._pacer, next(self._numbers), self.relays.discard)
        self.relays.add(relay)
        client.attach_to(relay)
        try:
            await asyncio.wait_for(self.upstream.connect(lambda: _End(self, relay, DOWN)), _CONNECT_SECONDS)
        except (OSError, TimeoutError) as error:
            why = "no answer" if isinstance(error, TimeoutError) else (getattr(error, "strerror", "") or str(error))
            self._throttle.warning("upstream cannot be reached", upstream=self.upstream.text, reason=why)
            client.refuse()
            relay.close()
            return
        if not client.begin(relay):
            relay.close()


class RawConnectionPair:
    """One client connection and its one to the upstream, on one link."""

    def __init__(
        self, port: PacedLink, pacer: Pacer, number: int, on_closed: Callable[["RawConnectionPair"], None]
    ) -> None:
        self.number = number
        self.port = port
        self.pacer = pacer
        self.closed = False
        self.exchange: Exchange = port.link.connect(monotonic(), number)
        self.lanes = RawReader(self, UP), RawReader(self, DOWN)
        self._on_closed = on_closed
        self._silent = False

    def attach(self, way: int, transport: asyncio.Transport) -> None:
        """One end is up: what it sends goes `way`."""
        bound_buffers(transport)
        self.lanes[way].source = transport
        self.lanes[1 - way].outlet.sink = transport

    def received(self, way: int, data: bytes) -> None:
        """Bytes from the client (UP) or the upstream (DOWN)."""
        if not self.closed and not self._silent:
            self.pacer.catch_up()
            self.lanes[way].feed(data)

    def ended(self, way: int, reset: bool = False) -> None:
        """An end sends no more, or, with `reset`, is gone: the other hears of it behind what was sent before."""
        if not self.closed and not self._silent:
            self.lanes[way].end(reset)

    def close(self, reset: bool = False) -> None:
        """End both connections; with `reset` at once, by TCP resets."""
        if self.closed:
            return
        self.closed = True
        for lane in self.lanes:
            lane.outlet.closed = True
            end_transport(lane.source, reset)
        self.port.forget(self)
        self._on_closed(self)

    def close_after_delivery(self) -> None:
        """End both connections when what is on its way has arrived; nothing more is read."""
        if not self._silent:
            self._silent = True
            latest = max(lane.outlet.latest_at for lane in self.lanes)
            self.pacer.at(max(monotonic(), latest), self.close)

    def fall_silent(self) -> None:
        """The upstream forgets the connection, and the client is not told."""
        self._silent = True
        for lane in self.lanes:
            lane.outlet.closed = True
        end_transport(self.lanes[DOWN].source, reset=True)


class RawReader(HeldReader):
    """The bytes that one end sends; `way` is UP (from the client) or DOWN (from the upstream)."""

    def __init__(self, relay: RawConnectionPair, way: int) -> None:
        super().__init__()
        self.relay, self.way = relay, way
        self.outlet = FrameWriter(relay.pacer)
        self.has_ended = False

    def feed(self, data: bytes) -> None:
        """Take in what was sent."""
        port, at = self.relay.port, 0
        while at < len(data) and not self.relay.closed:
            left = port.link.allowance(self.relay.number, DIRECTIONS[self.way])
            if left <= 0:
                break
            piece = data[at : at + int(min(port.piece_bytes[self.way], left))]
            at += len(piece)
            port.offer(self, len(piece), self.relay.exchange, False, self._settle, piece)
        if port.link.allowance(self.relay.number, DIRECTIONS[self.way]) <= 0:
            self.relay.close_after_delivery()

    def end(self, reset: bool) -> None:
        """Nothing more comes from this end."""
        if reset or not self.has_ended:
            self.has_ended = True
            self.relay.port.offer(self, 0, self.relay.exchange, True, self._settle_end, reset)

    def _settle(self, verdict: Deliver | Fail, piece: bytes) -> None:
        if isinstance(verdict, Fail):
            self.relay.close(reset=True)
        elif verdict.at <= monotonic() and not self.outlet.queued:
            self.outlet.write(piece)
        else:
            self.relay.port.enter(self, len(piece))
            self.outlet.later(verdict.at, self._due, piece)

    def _due(self, piece: bytes) -> None:
        self.relay.port.leave(self, len(piece))
        self.outlet.write(piece)

    def _settle_end(self, verdict: Deliver | Fail, reset: bool) -> None:
        if isinstance(verdict, Fail):
            self.relay.close(reset=True)
            return
        late = self.relay.port.link.close_delay_seconds(DIRECTIONS[self.way])
        self.outlet.later(max(verdict.at, self.outlet.latest_at) + late, self._end_other, reset)

    def _end_other(self, reset: bool) -> None:
        sink = self.outlet.sink
        if reset:
            self.relay.close(reset=True)
        elif self.relay.lanes[1 - self.way].has_ended and not self.relay.lanes[1 - self.way].outlet.queued:
            self.relay.close()
        elif sink is not None and not sink.is_closing() and not self.outlet.closed:
            sink.write_eof()


class _End(asyncio.Protocol):
    """One end of a relay; hands over what happens."""

    def __init__(self, proxy: PassThrough, relay: RawConnectionPair | None, way: int) -> None:
        self.relay = relay
        self._proxy, self._way = proxy, way
        self._is_full = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The end is up."""
        self._transport = cast(asyncio.Transport, transport)
        self._proxy.ends.add(self._transport)
        if self.relay is not None:
            self.relay.attach(self._way, self._transport)

    def data_received(self, data: bytes) -> None:
        """ConnectionPair."""
        if self.relay is not None:
            self.relay.received(self._way, data)

    def eof_received(self) -> bool:
        """It sends no more, and may still read: the connection stays."""
        if self.relay is not None:
            self.relay.ended(self._way)
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """It is gone."""
        if self._transport is not None:
            self._proxy.ends.discard(self._transport)
            self._transport = None
        if self.relay is not None:
            self.relay.ended(self._way, reset=error is not None)

    def pause_writing(self) -> None:
        """It does not read: neither do we from the other."""
        self._is_full = True
        if self.relay is not None:
            self.relay.lanes[1 - self._way].hold(self)

    def resume_writing(self) -> None:
        """It reads again."""
        self._is_full = False
        if self.relay is not None:
            self.relay.lanes[1 - self._way].release(self)


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
        """The client is there."""
        super().connection_made(transport)
        assert self._transport is not None
        link_map = self._proxy.link_map()
        self._link = self._link or link_map.of_peer(self._transport.get_extra_info("peername"))
        if link_map.by_server_name:
            self._timeout = asyncio.get_running_loop().call_later(_HELLO_SECONDS, self._ask, self._link)
        else:
            self._ask(self._link)

    def data_received(self, data: bytes) -> None:
        """ConnectionPair; before there is an upstream, keep."""
        if self.relay is not None:
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
        """As for either end; before there is an upstream, remember it."""
        self._at_end = True
        if not self._asked:
            self._ask(self._link)
        return super().eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        """It is gone."""
        if self._timeout is not None:
            self._timeout.cancel()
        super().connection_lost(error)

    def attach_to(self, relay: RawConnectionPair) -> None:
        """Be an end of the relay: what the upstream says first must have a way."""
        if self._transport is not None:
            relay.attach(UP, self._transport)

    def begin(self, relay: RawConnectionPair) -> bool:
        """There is an upstream: relay what has come since; return whether the client is still there."""
        if self._transport is None or self._transport.is_closing():
            return False
        self.relay = relay
        relay.port.join(relay)
        if self._is_full:  # the upstream may have sent more than it takes before this
            relay.lanes[DOWN].hold(self)
        self._transport.resume_reading()
        early = bytes(self._early)
        self._early.clear()
        if early:
            relay.received(UP, early)
        if self._at_end:
            relay.ended(UP)
        return True

    def refuse(self) -> None:
        """There is none: the client hears of it as if it had asked the upstream itself."""
        end_transport(self._transport, reset=True)

    def _ask(self, link: str) -> None:
        if not self._asked:
            self._asked = True
            if self._timeout is not None:
                self._timeout.cancel()
            self._proxy.connect(self, link)


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until something holds, and no longer than that."""
    end = monotonic() + seconds
    while not condition() and monotonic() < end:  # noqa: ASYNC110 - only while the proxy ends
        await asyncio.sleep(0.01)
