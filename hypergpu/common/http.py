"""HTTP server for /metrics and /healthz: a few fixed paths, GET and HEAD only, bounded in time and connections."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, NamedTuple

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from hypergpu.common.address import split_address
from hypergpu.common.clock import monotonic
from hypergpu.common.errors import ConfigError
from hypergpu.common.token_bucket import Budget, Budgets

_BACKLOG: Final = 128
_MAX_HEAD_BYTES: Final = 16 << 10
_MAX_UNREAD_BYTES: Final = 64 << 10
"""Bytes that a client may send after its request before the connection is closed."""
_REQUESTS: Final = Budget(rate=50.0, burst=100.0)
_WRITE_BYTES: Final = 64 << 10
"""Size of the pieces in which an answer is written: a slow reader keeps one of them in memory, not a whole copy."""

log = structlog.get_logger()


class Answer(NamedTuple):
    """Answer to a request."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the server, so that no client can starve the others."""

    connections: int = 64
    """Open connections. Another one closes the oldest that has not sent its request, or else the oldest."""
    head_seconds: float = 5.0
    """Time from the start of a connection to the end of its request's head."""
    total_seconds: float = 30.0
    """Duration of a connection, including the time to read the answer."""
    requests: Budget = _REQUESTS
    """Requests from one address."""


Route = Callable[[], Answer]
Routes = Mapping[str, Route]


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
            return await _in_daemon_thread(self.route)


class _Serving:
    """Connections of a server, in its event loop."""

    def __init__(self, routes: Routes, limits: Limits) -> None:
        self._limits, self._budgets = limits, Budgets()
        self._routes = {path: _SharedRoute(route) for path, route in routes.items()}
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
        oldest = next(silent, None) or next(iter(self._open))
        self._open.pop(oldest).cancel()
        oldest.writer.transport.abort()

    async def _serve(self, connection: _Connection) -> None:
        try:
            async with asyncio.timeout(self._limits.total_seconds):
                answer, with_body = await self._read(connection)
                await _write(connection.writer, answer, with_body)
                await _finish(connection)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the client is slow or gone
        finally:
            connection.writer.transport.abort()

    async def _read(self, connection: _Connection) -> tuple[Answer, bool]:
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
        method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
        target, _, version = rest.partition(" ")
        if not version.startswith("HTTP/1."):
            return Answer(b"expected an HTTP/1 request\n", status=400), True
        if method not in ("GET", "HEAD"):
            return Answer(b"only GET and HEAD are supported\n", status=405), True
        route = self._routes.get(target.partition("?")[0])
        if route is None:
            return Answer(f"unknown path; known: {', '.join(self._routes)}\n".encode(), status=404), method == "GET"
        return await route.answer(), method == "GET"


async def _write(writer: asyncio.StreamWriter, answer: Answer, with_body: bool) -> None:
    """Write an answer as fast as the client reads it."""
    allow = "Allow: GET, HEAD\r\n" if answer.status == 405 else ""
    head = (
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\n"
        f"Content-Type: {answer.content_type}\r\nContent-Length: {len(answer.body)}\r\n{allow}Connection: close\r\n\r\n"
    )
    writer.write(head.encode("latin-1"))
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


async def _in_daemon_thread(route: Route) -> Answer:
    """Run a route in a daemon thread, which does not prevent the server or the process from ending."""
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[Answer] = loop.create_future()

    def settle(answer: Answer) -> None:
        if not answered.done():
            answered.set_result(answer)

    def run() -> None:
        try:
            answer = route()
        except Exception:
            log.exception("an HTTP route failed")
            answer = Answer(b"internal error\n", status=HTTPStatus.INTERNAL_SERVER_ERROR)
        with contextlib.suppress(RuntimeError):  # the server has been closed meanwhile
            loop.call_soon_threadsafe(settle, answer)

    threading.Thread(target=run, name="http route", daemon=True).start()
    return await answered
