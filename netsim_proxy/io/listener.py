"""Listening socket whose clients wait while no file can be opened; uvloop's own server drops them silently."""

import asyncio
import errno
import resource
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog

from hypergpu.common.background import Background
from hypergpu.netsim_proxy.io.throttle import Throttle

_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_RETRY_SECONDS: Final = 0.2
"""Pause before the next attempt after no descriptor was available."""
_AT_ONCE: Final = 100
"""Largest number of clients accepted in one iteration of the event loop."""
_HANDSHAKE_SECONDS: Final = 20.0
"""Longest TLS handshake of a client, in seconds."""

log = structlog.get_logger()


class Listener:
    """Accepts connections on bound sockets and gives each a protocol. Created inside the event loop."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        make_protocol: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext | None,
        background: Background,
        throttle: Throttle,
    ) -> None:
        self.sockets = sockets
        self._make_protocol, self._context, self._background = make_protocol, context, background
        self._loop = asyncio.get_running_loop()
        self._throttle = throttle
        self._is_exhausted = False
        self._is_closed = False
        for each in sockets:
            self._watch(each)

    def close(self) -> None:
        """Stop accepting; open connections stay."""
        if self._is_closed:
            return
        self._is_closed = True
        for each in self.sockets:
            self._loop.remove_reader(each)
            each.close()

    def _watch(self, listening: socket.socket) -> None:
        if not self._is_closed:
            self._loop.add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                client, peer = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    self._throttle.warning("cannot accept a client", reason=error.strerror or str(error))
                else:
                    self._tell_exhausted(error)
                self._loop.remove_reader(listening)
                self._loop.call_later(_RETRY_SECONDS, self._watch, listening)
                return
            if self._is_exhausted:
                self._is_exhausted = False
                log.info("clients are accepted again")
            client.setblocking(False)
            self._background.spawn("accepting a client", self._serve(client, peer))

    async def _serve(self, client: socket.socket, peer: Any) -> None:
        timeout = _HANDSHAKE_SECONDS if self._context is not None else None
        try:
            await self._loop.connect_accepted_socket(
                self._make_protocol, client, ssl=self._context, ssl_handshake_timeout=timeout
            )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            client.close()
            if self._context is not None:
                self._throttle.warning("TLS handshake failed", reason=_reason_of(error), peer=_shown(peer))

    def _tell_exhausted(self, error: OSError) -> None:
        """Log the failure once, until a client can be accepted again."""
        if not self._is_exhausted:
            self._is_exhausted = True
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            log.error(
                "no client can be accepted: they wait until descriptors are free",
                reason=error.strerror,
                limit=soft,
                hard_limit=hard,
                advice="each client takes two: raise the limit of open files (ulimit -n, LimitNOFILE=) or end clients",
            )


async def bind_sockets(host: str, port: int, backlog: int) -> list[socket.socket]:
    """Return a listening socket for each address of `host`; all have the same port, also where `port` is 0.

    Raises:
        OSError: an address that is in use or not ours.
    """
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(infos):
            bound = socket.socket(family, kind, protocol)
            sockets.append(bound)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind((address[0], port, *address[2:]))
            port = bound.getsockname()[1]
            _listen(bound, backlog)
    except OSError:
        for each in sockets:
            each.close()
        raise
    return sockets


def bind_unix(path: str, backlog: int) -> socket.socket:
    """Return a listening Unix socket.

    Raises:
        OSError: it cannot be made.
    """
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(path)
        _listen(bound, backlog)
    except OSError:
        bound.close()
        raise
    return bound


def _listen(bound: socket.socket, backlog: int) -> None:
    bound.setblocking(False)
    bound.listen(backlog)


def _reason_of(error: OSError) -> str:
    """Return the cause of an error as text, the same text for the same cause."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return error.strerror or "the client ended it"


def _shown(peer: Any) -> str:
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "a Unix socket"
