"""The listening proxy: accepts clients, connects each to the upstream, drains."""

import asyncio
import contextlib
import itertools
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from common.errors import ConfigError
from common.rpc import split_address
from netsim_proxy.pacer import Pacer
from netsim_proxy.peer import ClientPeer, UpstreamPeer
from netsim_proxy.ports import Ports
from netsim_proxy.refusal import Refusal
from netsim_proxy.relay import LAST_WORDS_SECONDS, Relay

_CONNECT_SECONDS: Final = 5.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ServerTls:
    """What the proxy shows to its clients."""

    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """A context that speaks HTTP/2 only.

        Raises:
            ConfigError: a file that cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["h2"])
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"cannot use {self.certificate} with {self.key}: {error}") from error
        return context


@dataclass(frozen=True, slots=True)
class UpstreamTls:
    """Whom the proxy believes to be the upstream."""

    authority: Path | None = None
    """A file of certificates; the system's where there is none."""
    server_name: str | None = None
    """What the upstream's certificate says, if not its host."""

    def context(self) -> ssl.SSLContext:
        """A context that speaks HTTP/2 only.

        Raises:
            ConfigError: a file that cannot be used.
        """
        try:
            context = ssl.create_default_context(cafile=self.authority)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"cannot use {self.authority} as authority: {error}") from error
        context.set_alpn_protocols(["h2"])
        return context


class Proxy:
    """Relays every connection that it accepts to `upstream`, HOST:PORT; made and used inside one event loop."""

    def __init__(
        self,
        upstream: str,
        ports: Ports,
        pacer: Pacer,
        server_tls: ServerTls | None = None,
        upstream_tls: UpstreamTls | None = None,
    ) -> None:
        self.upstream = upstream
        self.relays: set[Relay] = set()
        self._peers: set[ClientPeer | UpstreamPeer] = set()
        self._idle = asyncio.Event()  # no relay is left
        self._alone = asyncio.Event()  # nor any connection
        host, self._upstream_port = split_address(upstream)
        self._upstream_host = host.strip("[]")
        self._ports, self._pacer = ports, pacer
        self._server_ssl = server_tls.context() if server_tls else None
        self._upstream_ssl = upstream_tls.context() if upstream_tls else None
        self._upstream_name = (upstream_tls.server_name or self._upstream_host) if upstream_tls else None
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, address: str) -> str:
        """Accept clients at HOST:PORT; returns the address with the real port.

        Raises:
            ConfigError: an address that is malformed or in use.
        """
        host, port = split_address(address)
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: ClientPeer(self), host.strip("[]"), port, ssl=self._server_ssl, backlog=1024
            )
        except OSError as error:
            raise ConfigError(f"cannot listen on {address}: {error.strerror or error}") from error
        return f"{host}:{self._server.sockets[0].getsockname()[1]}"

    def connect(self, client: ClientPeer, transport: asyncio.Transport) -> None:
        """Bring up the upstream's side for a client that has greeted."""
        task = asyncio.get_running_loop().create_task(self._connect(client, transport))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self, grace_seconds: float) -> None:
        """Accept nobody, tell clients to go, wait for open RPCs up to `grace_seconds`, and close what is left."""
        if self._server is not None:
            self._server.close()
        for relay in list(self.relays):
            relay.drain()
        if self.relays:
            await _until(self._idle, grace_seconds)
        for task in list(self._tasks):
            task.cancel()
        for relay in list(self.relays):
            relay.fail_all("netsim: the proxy is shutting down")
            relay.close()
        if self._peers:
            await _until(self._alone, LAST_WORDS_SECONDS)
        for peer in list(self._peers):
            peer.close()

    def joined(self, peer: ClientPeer | UpstreamPeer) -> None:
        """A connection is up."""
        self._peers.add(peer)

    def left(self, peer: ClientPeer | UpstreamPeer) -> None:
        """A connection is gone."""
        self._peers.discard(peer)
        if not self._peers:
            self._alone.set()

    def _closed(self, relay: Relay) -> None:
        self.relays.discard(relay)
        if not self.relays:
            self._idle.set()

    async def _connect(self, client: ClientPeer, transport: asyncio.Transport) -> None:
        relay = Relay(self._ports, self._pacer, next(self._numbers), self._closed)
        try:
            upstream, _ = await asyncio.wait_for(
                asyncio.get_running_loop().create_connection(
                    lambda: UpstreamPeer(self, relay, transport),
                    self._upstream_host,
                    self._upstream_port,
                    ssl=self._upstream_ssl,
                    server_hostname=self._upstream_name,
                ),
                _CONNECT_SECONDS,
            )
        except (OSError, TimeoutError) as error:
            why = "no answer" if isinstance(error, TimeoutError) else (getattr(error, "strerror", "") or str(error))
            log.warning("upstream cannot be reached", upstream=self.upstream, reason=why)
            client.refuse(Refusal(f"netsim: upstream {self.upstream} cannot be reached: {why}"))
            return
        if transport.is_closing():
            upstream.abort()
            return
        self.relays.add(relay)
        client.begin(relay)


async def _until(event: asyncio.Event, seconds: float) -> None:
    """Wait until it happens from now on, and no longer than that."""
    event.clear()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
