"""HTTP server for metrics, health and the live page: a few fixed paths, bounded in time, connections and memory."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from typing import Final

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from hypergpu.common.address import split_address
from hypergpu.common.clock import monotonic
from hypergpu.common.daemon_thread import in_daemon_thread
from hypergpu.common.errors import ConfigError
from hypergpu.common.http_messages import (
    Action,
    Answer,
    Chunks,
    Fixed,
    Request,
    Route,
    Routes,
    Stream,
    fixed,
    head_of,
    parse_head,
)
from hypergpu.common.token_bucket import Budget, Budgets

_BACKLOG: Final = 128
_MAX_HEAD_BYTES: Final = 16 << 10
_MAX_UNREAD_BYTES: Final = 64 << 10
"""Bytes that a client may send after its request before the connection is closed."""
_REQUESTS: Final = Budget(rate=50.0, burst=100.0)
_MAX_BODY_BYTES: Final = 4 << 10
"""Largest body of a POST: a few words."""
_STREAM_BUFFER_BYTES: Final = 256 << 10
"""Bytes of a stream that the kernel keeps for a client that reads slowly."""
_WRITE_BYTES: Final = 64 << 10
"""Size of the pieces in which an answer is written: a slow reader keeps one of them in memory, not a whole copy."""

_STREAM_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff"}
"""The second keeps nginx from holding events back."""
_METHODS: Final[dict[type, tuple[str, ...]]] = {Action: ("POST",), Stream: ("GET",)}

log = structlog.get_logger()

__all__ = ["Action", "Answer", "Chunks", "HttpServer", "Limits", "Request", "Routes", "Stream", "fixed", "metrics"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the server, so that no client can starve the others."""

    connections: int = 64
    """Open connections. Another one closes the oldest that has not sent its request, or else the oldest."""
    head_seconds: float = 5.0
    """Time from the start of a connection to the end of its request's head."""
    total_seconds: float = 30.0
    """Duration of a connection, including the time to read the answer; streams last longer."""
    stream_write_seconds: float = 10.0
    """Time in which the client of a stream must read what is sent: one that is slower is dropped."""
    requests: Budget = _REQUESTS
    """Requests from one address."""


def metrics(registry: CollectorRegistry) -> Route:
    """Return a route that renders a registry in Prometheus's text format."""
    return lambda: Answer(generate_latest(registry), CONTENT_TYPE_LATEST)


class HttpServer:
    """Serves `routes` on threads of its own: a scrape never waits for the event loop, nor the loop for a scrape.

    A route runs in one thread at a time; requests that arrive meanwhile share its next answer.

    Raises:
        ConfigError: the address is malformed or in use.
    """

    def __init__(self, listen: str, routes: Routes, limits: Limits = Limits()) -> None:
        host, port = split_address(listen)
        family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        try:
            listener = socket.create_server((host.strip("[]"), port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise ConfigError(f"cannot listen on {listen}: {error.strerror}; choose another address") from error
        self.address = f"{host}:{listener.getsockname()[1]}"
        self._loop = asyncio.SelectorEventLoop()
        self._stop = asyncio.Event()
        serving = _Serving(routes, limits)
        self._thread = threading.Thread(target=self._run, args=(listener, serving), name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and close all connections."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def _run(self, listener: socket.socket, serving: "_Serving") -> None:
        try:
            self._loop.run_until_complete(serving.run(listener, self._stop))
        finally:
            self._loop.close()


@dataclass(eq=False, slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    has_asked: bool = False
    """True if the head of the request has arrived."""
    streams: bool = False
    """True if it is answered with a stream, which lasts."""


@dataclass(eq=False, slots=True)
class _SharedRoute:
    """A route whose answer is shared by all requests that wait for it."""

    route: Route
    _running: asyncio.Lock = field(default_factory=asyncio.Lock)
    _next: asyncio.Task[Answer] | None = None

    async def answer(self) -> Answer:
        """Return an answer that was computed after this call began."""
        if self._next is None:
            self._next = asyncio.create_task(self._run())
        return await asyncio.shield(self._next)

    async def _run(self) -> Answer:
        async with self._running:
            self._next = None
            return await _answer_of(self.route)


class _Serving:
    """Connections of a server, in its event loop."""

    def __init__(self, routes: Routes, limits: Limits) -> None:
        self._limits, self._budgets = limits, Budgets()
        self._routes = {
            path: route if isinstance(route, Fixed | Stream | Action) else _SharedRoute(route)
            for path, route in routes.items()
        }
        self._open: dict[_Connection, asyncio.Task[None]] = {}  # in order of age

    async def run(self, listener: socket.socket, stop: asyncio.Event) -> None:
        """Serve until `stop` is set."""
        server = await asyncio.start_server(self._accept, sock=listener, limit=_MAX_HEAD_BYTES)
        await stop.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while len(self._open) >= self._limits.connections:
            self._evict()
        connection = _Connection(reader, writer)
        task = self._open[connection] = asyncio.create_task(self._serve(connection))
        task.add_done_callback(lambda _: self._open.pop(connection, None))

    def _evict(self) -> None:
        silent = (connection for connection in self._open if not connection.has_asked)
        brief = (connection for connection in self._open if not connection.streams)
        oldest = next(silent, None) or next(brief, None) or next(iter(self._open))
        self._open.pop(oldest).cancel()
        oldest.writer.transport.abort()

    async def _serve(self, connection: _Connection) -> None:
        try:
            async with asyncio.timeout(self._limits.total_seconds):
                answer, with_body = await self._read(connection)
                if isinstance(answer, Answer):
                    await _write(connection.writer, answer, with_body)
                    await _finish(connection)
            if not isinstance(answer, Answer):
                await self._stream(connection, answer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the client is slow or gone
        finally:
            connection.writer.transport.abort()

    async def _read(self, connection: _Connection) -> tuple[Answer | Chunks, bool]:
        """Read a request and return its answer, and whether the client wants its body."""
        try:
            async with asyncio.timeout(self._limits.head_seconds):
                head = await connection.reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return Answer(f"the head of a request has at most {_MAX_HEAD_BYTES} bytes\n".encode(), status=431), True
        connection.has_asked = True
        address = (connection.writer.get_extra_info("peername") or ("",))[0]
        if self._budgets.spend(address, self._limits.requests, monotonic()):
            return Answer(b"too many requests from this address\n", status=429), True
        request = parse_head(head, address)
        if isinstance(request, Answer):
            return request, True
        return await self._answer(request, connection), request.method != "HEAD"

    async def _answer(self, request: Request, connection: _Connection) -> Answer | Chunks:
        route = self._routes.get(request.path)
        allowed = _METHODS.get(type(route), ("GET", "HEAD"))
        if request.method not in allowed:
            text = f"supported here: {' and '.join(allowed)}\n"
            return Answer(text.encode(), status=405, headers={"Allow": ", ".join(allowed)})
        if isinstance(route, Fixed | Stream):
            return route.answer(request)
        if isinstance(route, Action):
            if request.body_bytes > _MAX_BODY_BYTES:
                return Answer(f"a body has at most {_MAX_BODY_BYTES} bytes\n".encode(), status=413)
            body = await connection.reader.readexactly(request.body_bytes)
            return await _answer_of(partial(route.act, replace(request, body=body)))
        if route is None:
            return Answer(f"unknown path; known: {', '.join(self._routes)}\n".encode(), status=404)
        return await route.answer()

    async def _stream(self, connection: _Connection, chunks: Chunks) -> None:
        """Send chunks as they come, and nothing ahead of what the client reads."""
        connection.streams = True
        writer, task = connection.writer, asyncio.current_task()
        assert task is not None
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _STREAM_BUFFER_BYTES)
        writer.transport.set_write_buffer_limits(high=0)
        gone = asyncio.create_task(_until_closed(connection.reader))
        gone.add_done_callback(lambda _: task.cancel())
        try:
            async with aclosing(chunks):
                writer.write(head_of(200, "text/event-stream", _STREAM_HEADERS))
                async for chunk in chunks:
                    view = memoryview(chunk)
                    for at in range(0, len(view), _STREAM_BUFFER_BYTES):
                        writer.write(view[at : at + _STREAM_BUFFER_BYTES])
                        if writer.transport.get_write_buffer_size():  # the client is behind
                            async with asyncio.timeout(self._limits.stream_write_seconds):
                                await writer.drain()
        finally:
            gone.cancel()


async def _until_closed(reader: asyncio.StreamReader) -> None:
    """Wait until the client closes; what it still sends is of no interest."""
    with contextlib.suppress(OSError):
        while await reader.read(_MAX_HEAD_BYTES):
            pass


async def _write(writer: asyncio.StreamWriter, answer: Answer, with_body: bool) -> None:
    """Write an answer as fast as the client reads it."""
    writer.write(head_of(answer.status, answer.content_type, answer.headers, len(answer.body)))
    writer.transport.set_write_buffer_limits(high=0)
    body = memoryview(answer.body) if with_body else memoryview(b"")
    for at in range(0, len(body), _WRITE_BYTES):
        writer.write(body[at : at + _WRITE_BYTES])
        await writer.drain()
    await writer.drain()


async def _finish(connection: _Connection) -> None:
    """Wait until the client has closed: closing with bytes unread would reset the connection under the answer."""
    connection.writer.write_eof()
    left = _MAX_UNREAD_BYTES
    while left > 0 and (data := await connection.reader.read(left)):
        left -= len(data)


async def _answer_of(route: Callable[[], Answer]) -> Answer:
    """Run a route on a thread of its own."""
    try:
        return await in_daemon_thread(route, "http route")
    except Exception:
        log.exception("an HTTP route failed")
        return Answer(b"internal error\n", status=HTTPStatus.INTERNAL_SERVER_ERROR)
