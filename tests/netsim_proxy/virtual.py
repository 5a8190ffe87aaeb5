"""The relay in virtual time: a pacer whose clock moves when a test says so, and transports that remember."""

import socket
from collections.abc import Callable, Mapping
from typing import Any, cast

from hypergpu.netsim_proxy.io.link_registry import LinkRegistry
from hypergpu.netsim_proxy.io.transports import Transports
from hypergpu.netsim_proxy.link.outcomes import DOWN, UP, Direction
from hypergpu.netsim_proxy.link.profiles import Profile
from hypergpu.netsim_proxy.relay import http2
from hypergpu.netsim_proxy.relay.agenda import Agenda
from hypergpu.netsim_proxy.relay.connection import ConnectionPair


class VirtualPacer:
    """Drives the relay as the proxy's `Pacer` does, on a clock of its own."""

    def __init__(self) -> None:
        self.time = 0.0
        self.agenda = Agenda()
        self.transports = Transports()

    def now(self) -> float:
        return self.time

    def at(self, due: float, call: Callable[..., None], *args: Any) -> None:
        self.agenda.at(due, call, *args)

    def begin(self) -> None:
        """Nothing to prepare."""

    def run(self, call: Callable[..., Any], *args: Any) -> Any:
        result = call(self.time, *args)
        self.settle()
        return result

    def handle(self, pair: ConnectionPair, direction: Direction, data: bytes) -> None:
        self.advance(to=self.time)
        while self.run(pair.handle, direction, data):
            self.advance(to=self.time)
            data = b""

    def settle(self) -> None:
        self.transports.carry_out(self.agenda.take_effects())

    def advance(self, to: float = 1000.0) -> None:
        """Make all calls that are due by then; the time is then that of the last one."""
        while self.agenda.next_at <= to:
            self.time = max(self.time, self.agenda.next_at)
            self.agenda.run_next(self.time)
            self.settle()

    def wait(self, seconds: float) -> None:
        """Let time pass, with all that it brings."""
        until = self.time + seconds
        self.advance(until)
        self.time = max(self.time, until)


class Wire:
    """A transport to a peer: what was written to it and when, and what else was done to it."""

    def __init__(self, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.writes: list[tuple[float, bytes]] = []
        self.size = 0
        self.is_read = True
        self.closed = self.was_reset = self.was_shut = False
        self.has_halves = False
        self.socket: socket.socket | None = None
        self._clock = clock

    def write(self, data: bytes) -> None:
        assert not self.closed, "uvloop would raise"
        self.size += len(data)
        self.writes.append((self._clock(), bytes(data)))

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return self.has_halves

    def write_eof(self) -> None:
        self.was_shut = True

    def get_extra_info(self, name: str) -> Any:
        return self.socket if name == "socket" else None

    def set_write_buffer_limits(self, high: int) -> None:
        """It has none."""

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.was_reset = True

    def frames(self) -> list[tuple[int, int, int, bytes]]:
        """Type, flags, stream and payload of the frames that were written."""
        data = b"".join(data for _, data in self.writes).removeprefix(http2.PREFACE)
        return [(k, f, s, data[at + 9 : at + 9 + length]) for at, length, k, f, s in http2.frames(data)]

    def take(self) -> list[tuple[int, int, int, bytes]]:
        """Return the frames that were written since the last time."""
        frames = self.frames()
        self.writes.clear()
        return frames

    def kinds(self) -> list[tuple[int, int]]:
        """Type and flags of the frames that were written."""
        return [(kind, flags) for kind, flags, *_ in self.frames()]


def attach(
    pacer: VirtualPacer, pair: ConnectionPair, client: Any, upstream: Any, on_closed: Any = lambda: None
) -> None:
    """Let a pair of connections write to these transports."""
    pacer.transports.add(pair.number, on_closed)
    pacer.transports.attach(pair.number, UP, client)
    pacer.transports.attach(pair.number, DOWN, upstream)
    pair.begin()
    pacer.settle()


class Relayed:
    """A pair of connections between a client and an upstream that the test plays."""

    def __init__(self, default: Profile, nodes: Mapping[str, Profile] | None = None) -> None:
        self.pacer = VirtualPacer()
        profiles = {name: (profile, "") for name, profile in (nodes or {}).items()}
        self.links = LinkRegistry(cast("Any", self.pacer), default, seed=1, node_profiles=profiles)
        self.pair = ConnectionPair(self.links, self.pacer.agenda, 1)
        self.client, self.upstream = Wire(self.pacer.now), Wire(self.pacer.now)
        attach(self.pacer, self.pair, self.client, self.upstream)

    def up(self, *frames: bytes) -> None:
        """The client sends this."""
        self.pacer.handle(self.pair, UP, b"".join(frames))

    def down(self, *frames: bytes) -> None:
        """The upstream sends this."""
        self.pacer.handle(self.pair, DOWN, b"".join(frames))

    def run(self, until: float = 1000.0) -> None:
        """Let all arrive that is due by then."""
        self.pacer.advance(until)
