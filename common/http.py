"""A small HTTP server for /metrics and /healthz: a few fixed paths, GET only, bounded in time and number."""

import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from common.errors import ConfigError
from common.rpc import split_address

_MOST_AT_ONCE = 16
_IDLE_SECONDS = 10


class Answer(NamedTuple):
    """What a path answers."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200


Routes = Mapping[str, Callable[[], Answer]]


def metrics(registry: CollectorRegistry) -> Callable[[], Answer]:
    """Prometheus's text format of all that is in `registry`."""
    return lambda: Answer(generate_latest(registry), CONTENT_TYPE_LATEST)


class HttpServer:
    """Answers GETs of `routes` on its own threads: a scrape never waits for an event loop, nor the loop for a scrape.

    Raises:
        ConfigError: the address is malformed or in use.
    """

    def __init__(self, listen: str, routes: Routes) -> None:
        host, port = split_address(listen)

        class Handler(BaseHTTPRequestHandler):
            timeout = _IDLE_SECONDS

            def do_GET(self) -> None:
                route = routes.get(self.path.partition("?")[0])
                listing = f"there are {', '.join(routes)}\n".encode()
                body, content_type, status = route() if route else Answer(listing, status=404)
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                del format, args

        try:
            self._server = (_BoundedV6 if host.startswith("[") else _Bounded)((host.strip("[]"), port), Handler)
        except OSError as error:
            raise ConfigError(f"cannot listen on {listen}: {error.strerror}; choose another address") from error
        self.address = f"{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Bounded(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        self._free = threading.BoundedSemaphore(_MOST_AT_ONCE)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """One thread per connection, up to a bound; beyond it a connection is closed at once."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class _BoundedV6(_Bounded):
    address_family = socket.AF_INET6
