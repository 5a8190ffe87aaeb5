"""Requests and answers of the HTTP server, and the kinds of routes that turn one into the other."""

import gzip
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, NamedTuple

_NO_HEADERS: Final[Mapping[str, str]] = {}


class Answer(NamedTuple):
    """Answer to a request."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200
    headers: Mapping[str, str] = _NO_HEADERS


@dataclass(frozen=True, slots=True)
class Request:
    """Request of a client."""

    method: str
    path: str
    address: str = ""
    """Address of the client, without its port."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers by name in lower case; of one that is repeated, the last."""
    body: bytes = b""

    @property
    def body_bytes(self) -> int:
        """Length of the body that the head announces; 0 for one that is no number."""
        length = self.headers.get("content-length", "")
        return int(length) if length.isascii() and length.isdigit() and len(length) < 10 else 0


Route = Callable[[], Answer]
"""Route for GET whose answer does not depend on the request."""
Chunks = AsyncGenerator[bytes, None]


@dataclass(frozen=True, slots=True)
class Fixed:
    """Route for GET whose answer never changes, with the same answer compressed for clients that take it."""

    plain: Answer
    compressed: Answer

    def answer(self, request: Request) -> Answer:
        """Return the answer that a client takes."""
        return self.compressed if "gzip" in request.headers.get("accept-encoding", "") else self.plain


@dataclass(frozen=True, slots=True)
class Stream:
    """Route for GET that answers with events as they happen, until the client leaves or reads too slowly."""

    answer: Callable[[Request], Answer | Chunks]
    """Return the events, or the answer that refuses them."""


@dataclass(frozen=True, slots=True)
class Action:
    """Route for POST."""

    act: Callable[[Request], Answer]


AnyRoute = Route | Fixed | Stream | Action
Routes = Mapping[str, AnyRoute]


def fixed(answer: Answer) -> Fixed:
    """Return a route that always gives an answer."""
    headers = {**answer.headers, "Vary": "Accept-Encoding"}
    packed = answer._replace(body=gzip.compress(answer.body, mtime=0), headers={**headers, "Content-Encoding": "gzip"})
    return Fixed(answer._replace(headers=headers), packed)


def parse_head(head: bytes, address: str) -> Request | Answer:
    """Return the request that a head describes, or the answer to one that cannot be understood."""
    lines = head.decode("latin-1").split("\r\n")
    method, _, rest = lines[0].partition(" ")
    target, _, version = rest.partition(" ")
    if not version.startswith("HTTP/1."):
        return Answer(b"expected an HTTP/1 request\n", status=400)
    pairs = (line.partition(":") for line in lines[1:] if ":" in line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return Request(method, target.partition("?")[0], address, headers)


def head_of(status: int, content_type: str, headers: Mapping[str, str], length: int | None = None) -> bytes:
    """Return the head of an answer; without a length, its body ends with the connection."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"Content-Type: {content_type}"]
    lines += [] if length is None else [f"Content-Length: {length}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")
