"""Effects that the relay asks its driver for, in real or in virtual time.

A direction names a connection by what it sends: UP is the client's connection, DOWN the upstream's. What travels UP is
read from the client and written to the upstream.
"""

from dataclasses import dataclass

from hypergpu.netsim_proxy.link.outcomes import Direction


@dataclass(slots=True)
class Write:
    """Write bytes that travel in `direction`: UP to the upstream, DOWN to the client."""

    connection: int
    direction: Direction
    data: bytes | memoryview


@dataclass(slots=True)
class EndWriting:
    """Close the writing half of the connection that bytes in `direction` are written to."""

    connection: int
    direction: Direction


@dataclass(slots=True)
class Pause:
    """Stop reading what is sent in `direction`."""

    connection: int
    direction: Direction


@dataclass(slots=True)
class Resume:
    """Go on reading what is sent in `direction`."""

    connection: int
    direction: Direction


@dataclass(slots=True)
class Close:
    """End the connection that sends in `direction`, after what was written or, with `reset`, at once by a TCP reset."""

    connection: int
    direction: Direction
    reset: bool


@dataclass(slots=True)
class ReportInvalidHttp2:
    """Log that the sender in `direction` broke HTTP/2."""

    connection: int
    direction: Direction
    reason: str


@dataclass(slots=True)
class ReportTransit:
    """Add the way of one direction of a stream to the trace that it is part of."""

    connection: int
    direction: Direction
    context: str
    link: str
    began: float
    """Time at which its first bytes were read."""
    ended: float
    """Time at which its last bytes are passed on."""
    delay_seconds: float
    """Longest delay of its pieces."""
    nbytes: int


@dataclass(slots=True)
class Closed:
    """The pair of connections is over: no effect follows."""

    connection: int


Effect = Write | EndWriting | Pause | Resume | Close | ReportInvalidHttp2 | ReportTransit | Closed
