"""What the relay writes to both peers, frame by frame and when, in scripted conversations over links of every kind.

Write them anew with `pytest tests/netsim_proxy/test_transcripts.py --update-transcripts`.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from hpack import Decoder

from hypergpu.netsim_proxy.io.link_registry import LinkRegistry
from hypergpu.netsim_proxy.link import NetworkEvent
from hypergpu.netsim_proxy.link.distributions import Uniform
from hypergpu.netsim_proxy.link.outcomes import DIRECTIONS, DOWN, UP
from hypergpu.netsim_proxy.link.profiles import Loss, Profile
from hypergpu.netsim_proxy.link.profiles import Path as NetworkPath
from hypergpu.netsim_proxy.relay import http2
from hypergpu.netsim_proxy.relay.connection import ConnectionPair
from hypergpu.netsim_proxy.relay.header_blocks import NO_TABLE, literal
from tests.netsim_proxy.virtual import VirtualPacer, attach
from tests.transcripts import RequireTranscript

DIRECTORY = Path(__file__).parent / "transcripts"
KINDS = {
    getattr(http2, name): name
    for name in (
        "DATA",
        "HEADERS",
        "PRIORITY",
        "RST_STREAM",
        "SETTINGS",
        "PING",
        "GOAWAY",
        "WINDOW_UPDATE",
        "CONTINUATION",
    )
}
PEERS = ("upstream", "client")
"""Who receives what travels up, and down."""


def link(up_ms: float, down_ms: float, mbit: float = math.inf, loss: float = 0.0, queue: int = 0) -> Profile:
    up = NetworkPath(Uniform(up_ms / 1000, up_ms / 1000), mbit, Loss(loss), queue)
    down = NetworkPath(Uniform(down_ms / 1000, down_ms / 1000), mbit, Loss(loss), queue)
    return Profile("fixed", up, down)


LINKS = {
    "near": link(10, 20, 80.0),
    "far": link(200, 300, 8.0),
    "narrow": link(1, 1, 0.8, queue=40_000),
    "direct": link(0, 0),
    "lossy": link(5, 5, 80.0, loss=1.0),
}


def shown(frame: bytes) -> str:
    """One frame in words."""
    _, length, kind, flags, stream_id = next(http2.frames(frame))
    payload = frame[http2.FRAME_HEADER_BYTES :]
    told = f"{KINDS.get(kind, f'type {kind}')} {stream_id} flags {flags:x}, {length} B"
    if kind == http2.SETTINGS:
        told += f" {http2.read_settings(payload)}"
    elif kind == http2.HEADERS and flags & http2.END_HEADERS:
        fields = Decoder().decode(payload)
        told += " " + " ".join(f"{name!s}={value!s}" for name, value in fields if len(value) < 90)
    elif kind in (http2.WINDOW_UPDATE, http2.RST_STREAM):
        told += f" {int.from_bytes(payload, 'big')}"
    elif kind == http2.GOAWAY:
        told += f" after {int.from_bytes(payload[:4], 'big')}, {int.from_bytes(payload[4:8], 'big')} {payload[8:]!r}"
    elif kind == http2.PING:
        told += f" {payload!r}"
    return told


class Wire:
    """A connection to a peer: tells the play what is done to it."""

    def __init__(self, peer: str, tell: Callable[[str], None]) -> None:
        self._peer, self._tell = peer, tell
        self._rest = b""
        self._closing = False

    def write(self, data: bytes) -> None:
        data = self._rest + bytes(data)
        if data.startswith(http2.PREFACE):
            self._tell(f"{self._peer} gets the preface")
            data = data.removeprefix(http2.PREFACE)
        end = 0
        for at, length, *_ in http2.frames(data):
            if at + http2.FRAME_HEADER_BYTES + length > len(data):
                break
            end = at + http2.FRAME_HEADER_BYTES + length
            self._tell(f"{self._peer} gets {shown(data[at:end])}")
        self._rest = data[end:]

    def pause_reading(self) -> None:
        self._tell(f"{self._peer} is read no more")

    def resume_reading(self) -> None:
        self._tell(f"{self._peer} is read again")

    def is_closing(self) -> bool:
        return self._closing

    def get_extra_info(self, name: str) -> None:
        return None

    def can_write_eof(self) -> bool:
        return False

    def abort(self) -> None:
        self._closing = True
        self._tell(f"{self._peer} is reset")

    def close(self) -> None:
        self._closing = True
        self._tell(f"{self._peer} is closed")


def request(node: str, extra: int = 0) -> bytes:
    """The header block of a call, which uses no table."""
    fields = {b":method": b"POST", b":path": b"/a/b", b"x-node-id": node.encode()}
    if extra:
        fields[b"x-filler"] = b"f" * extra
    return NO_TABLE + b"".join(literal(name, value) for name, value in fields.items())


ANSWER = NO_TABLE + b"\x88" + literal(b"content-type", b"application/grpc")
TRAILERS = NO_TABLE + literal(b"grpc-status", b"0")


class Play:
    """A relay between a client and an upstream that the story plays; `lines` is what happened."""

    def __init__(self, default: str = "near") -> None:
        self.pacer = VirtualPacer()
        self.lines: list[str] = []
        known = {name: (profile, "") for name, profile in LINKS.items()}
        self.links = LinkRegistry(cast("Any", self.pacer), LINKS[default], seed=1, node_profiles=known)
        self.pair = ConnectionPair(self.links, self.pacer.agenda, 1, host="host")
        upstream, client = (Wire(peer, self.tell) for peer in PEERS)
        attach(self.pacer, self.pair, client, upstream, on_closed=lambda: self.tell("the relay is over"))
        self.tell(f"established {self.pair.is_established}")
        self.client(http2.settings())
        self.upstream(http2.settings())
        self.tell(f"established {self.pair.is_established}")

    def tell(self, what: str) -> None:
        self.lines.append(f"{self.pacer.time:9.6f}  {what}")

    def client(self, *frames: bytes) -> None:
        self.pacer.handle(self.pair, UP, b"".join(frames))

    def upstream(self, *frames: bytes) -> None:
        self.pacer.handle(self.pair, DOWN, b"".join(frames))

    def wait(self, seconds: float = 100.0) -> None:
        self.pacer.wait(seconds)
        self.tell("...")

    def call(self, stream: int, node: str, *, end: bool = True, extra: int = 0, size: int = 16_384) -> None:
        self.client(http2.header_frames(stream, request(node, extra), end, size))

    def answer(self, stream: int, nbytes: int = 5) -> None:
        self.upstream(
            http2.frame(http2.HEADERS, http2.END_HEADERS, stream, ANSWER),
            http2.frame(http2.DATA, 0, stream, bytes(nbytes)),
            http2.frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, stream, TRAILERS),
        )

    def event(self, kind: str, node: str, **options: Any) -> None:
        self.tell(f"event: {kind} {options}")
        self.links.apply(NetworkEvent(kind, node, **options))

    def turn(self, name: str, profile: Profile) -> None:
        """The link becomes another."""
        paced = self.links.of(name)
        paced.link.set_profile(profile, self.pacer.time)
        self.pacer.run(paced.changed)

    def state(self) -> None:
        for each in self.links:
            counters = [each.link.counters(direction) for direction in DIRECTIONS]
            if any(each.in_flight) or any(counter.bytes for counter in counters):
                told = [f"{counter.bytes} B in {counter.messages}" for counter in counters]
                windows = [f"{window:.0f}" for window in each.window_bytes]
                room = f"pieces {each.piece_bytes}, path {each.path_bytes}, windows {windows}"
                self.tell(f"{each.name}: {told} in flight {each.in_flight}, {room}, lost {each.link.rpcs_lost}")


def data(stream: int, nbytes: int, end: bool = False) -> bytes:
    return http2.frame(http2.DATA, http2.END_STREAM if end else 0, stream, bytes(nbytes))


def a_call(play: Play, node: str = "near") -> None:
    play.call(1, node, end=False)
    play.client(data(1, 16_000), data(1, 16_000))
    play.wait(0.005)
    play.client(data(1, 16_000), http2.window_update(70_000), data(1, 4_000, end=True))
    play.wait(1.0)
    play.state()
    play.upstream(http2.window_update(50_000), http2.frame(http2.WINDOW_UPDATE, 0, 1, (9_000).to_bytes(4, "big")))
    play.answer(1, 16_000)
    play.wait()
    play.state()
    play.call(3, node)
    play.client(http2.rst_stream(3, http2.CANCEL), data(3, 10), http2.rst_stream(3, http2.CANCEL))
    play.wait()
    play.upstream(data(3, 700), http2.frame(http2.WINDOW_UPDATE, 0, 3, (9).to_bytes(4, "big")))
    play.call(3, node)
    play.call(5, node)
    play.wait()
    play.upstream(http2.frame(http2.HEADERS, http2.END_HEADERS, 5, ANSWER), http2.rst_stream(5, http2.REFUSED_STREAM))
    play.wait()
    play.state()


def pieces(play: Play) -> None:
    """Frames that are cut anywhere, on a link that does nothing and on one that becomes slow meanwhile."""
    play.call(1, "direct", end=False)
    whole = data(1, 16_000) + http2.frame(http2.PING, 0, 0, b"whether?") + data(1, 9_000)
    for at in range(0, len(whole), 7_001):
        play.client(whole[at : at + 7_001])
        play.tell(f"read up to {at}")
    play.client(data(1, 12_000)[:5_000])
    play.turn("direct", LINKS["near"])
    play.upstream(http2.window_update(5_000), http2.frame(http2.PING, 0, 0, b"flowing?"))
    play.client(data(1, 12_000)[5_000:], data(1, 100), http2.window_update(800))
    play.wait()
    play.answer(1, 16_000)
    play.wait()
    play.state()


def links_that_differ(play: Play) -> None:
    """A request on a fast link overtakes one on a slow link, and so has another number at the upstream."""
    play.call(1, "far", end=False)
    play.call(3, "near")
    play.call(5, "unknown")
    play.client(data(1, 100))
    play.wait(0.05)
    play.answer(3)
    play.client(data(1, 100, end=True))
    play.wait(0.3)
    play.call(7, "far")
    play.wait(0.05)
    play.upstream(http2.goaway(5, http2.NO_ERROR, "bye"))
    play.wait(0.5)
    play.call(9, "near")
    play.wait(0.02)
    for stream in (1, 3, 5, 7, 9):
        play.upstream(http2.frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, stream, ANSWER))
    play.upstream(http2.goaway(3, http2.NO_ERROR), http2.frame(http2.PING, 0, 0, b"gone yet"))
    play.wait(0.01)
    play.client(http2.frame(http2.PING, http2.ACK, 0, b"gone yet"), http2.goaway(0, http2.NO_ERROR, "bye too"))
    play.wait()
    play.state()


def goaway_in_other_numbers(play: Play) -> None:
    play.call(1, "far")
    play.call(3, "near")
    play.call(5, "near")
    play.wait(0.1)
    play.answer(3)
    play.wait(0.15)
    play.upstream(http2.goaway(5, http2.NO_ERROR))
    play.wait(0.01)
    play.upstream(http2.goaway((1 << 31) - 1, http2.NO_ERROR))
    play.wait()


def losses(play: Play) -> None:
    """Calls that the link loses, on their way up or down, before and after their sender has ended them."""
    for stream in range(1, 18, 2):
        play.call(stream, "lossy", end=stream % 4 == 1)
        if stream % 4 == 3:
            play.client(data(stream, 3_000, end=stream % 8 == 3))
        play.wait(0.02)
        play.answer(stream, 2_000)
        play.client(data(stream, 50)) if stream % 8 == 7 else None
        play.wait(2.0)
    play.state()


def few_streams(play: Play) -> None:
    """The upstream takes two streams at a time: a third must not arrive before the end of another."""
    play.upstream(http2.settings((http2.MAX_CONCURRENT_STREAMS, 2)))
    play.wait()
    play.call(1, "far", end=False)
    play.call(3, "near", end=False)
    play.wait(0.3)
    play.client(data(1, 100, end=True), data(3, 100, end=True))
    play.upstream(http2.frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, 3, ANSWER))
    play.client(http2.rst_stream(1, http2.CANCEL))
    play.call(5, "near")
    play.call(7, "near", end=False)
    play.wait(0.1)
    play.client(http2.rst_stream(7, http2.CANCEL))
    play.call(9, "near")
    play.wait()
    play.upstream(http2.settings((http2.MAX_CONCURRENT_STREAMS, (1 << 31) - 1)))
    for stream in (11, 13, 15):
        play.call(stream, "near")
    play.wait()


def draining(play: Play, node: str = "near") -> None:
    """The last answer arrives whole though it is read at once, also where the link holds it up."""
    play.call(1, node)
    play.wait(0.005)
    play.pacer.run(play.pair.drain)
    play.pacer.run(play.pair.drain)
    play.call(3, node)
    play.wait()
    play.event("disconnect", node, duration_seconds=0.35, mode="black_hole")
    play.answer(1)
    play.tell("the last call has ended")
    play.wait()
    play.pacer.run(play.pair.drain)
    play.pacer.run(play.pair.close)
    play.client(data(1, 1))


def draining_with_nothing_open(play: Play) -> None:
    play.client(http2.settings())
    play.call(1, "near")
    play.wait()
    play.answer(1)
    play.pacer.run(play.pair.drain)
    play.tell("drains")
    play.wait()


def draining_a_lost_call(play: Play) -> None:
    play.call(1, "lossy")
    play.pacer.run(play.pair.drain)
    play.wait(1.0)
    play.answer(1)
    play.wait()


def a_client_that_leaves(play: Play, delay: float = 0.0) -> None:
    if delay:
        play.event("slow_close", "near", close_after_seconds=delay)
    play.call(1, "near", end=False)
    play.client(data(1, 16_000))
    play.pacer.run(play.pair.client_lost)
    play.tell("the client is gone")
    play.wait()


def an_upstream_that_leaves(play: Play, delay: float = 0.0) -> None:
    if delay:
        play.event("slow_close", "near", close_after_seconds=delay)
    play.call(1, "near", end=False)
    play.call(3, "near")
    play.call(5, "near", end=False)
    play.wait(0.5)
    play.upstream(http2.frame(http2.HEADERS, http2.END_HEADERS, 1, ANSWER), data(1, 9_000))
    play.upstream(http2.frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, 3, ANSWER))
    play.client(http2.rst_stream(5, http2.CANCEL))
    play.pacer.run(play.pair.upstream_lost, "netsim: the upstream is gone")
    play.tell("the upstream is gone")
    play.wait()
    play.pacer.run(play.pair.upstream_lost, "again")
    play.pacer.run(play.pair.client_lost)


def an_event(play: Play, kind: str, **options: Any) -> None:
    """A call before, during and after an event on its link, and another link that has nothing to do with it."""
    play.call(1, "near", end=False)
    play.call(3, "far", end=False)
    play.client(data(1, 16_000), data(3, 100))
    play.wait(0.03)
    play.upstream(http2.frame(http2.HEADERS, http2.END_HEADERS, 1, ANSWER), data(1, 16_000))
    play.wait(0.001)
    play.event(kind, "near", **options)
    play.client(data(1, 12_000), data(1, 12_000), http2.frame(http2.PING, 0, 0, b"are you?"))
    play.call(5, "near")
    play.upstream(data(1, 12_000), http2.window_update(3_000), http2.frame(http2.PING, 0, 0, b"and you?"))
    play.wait(0.2)
    play.tell(f"limited {play.links.of('near').link.limits_connections}, {play.links.blocks_opening('host')}")
    play.client(data(3, 200, end=True))
    play.upstream(data(1, 12_000))
    play.wait(0.7)
    play.client(data(1, 5_000, end=True))
    play.wait(5.0)
    play.answer(5)
    play.upstream(http2.frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, 1, TRAILERS))
    play.wait()
    play.state()
    play.pacer.run(play.pair.close, True)


def a_full_queue(play: Play) -> None:
    """Reading stops where the queue is full, and goes on while enough is in it to keep the link busy."""
    play.call(1, "narrow", end=False)
    for _ in range(6):
        play.client(data(1, 16_384))
        play.wait(0.05)
        play.state()
    play.client(http2.frame(http2.PING, 0, 0, b"express!"), http2.window_update(1_000_000))
    play.upstream(data(1, 16_384), http2.frame(http2.PING, 0, 0, b"opposite"))
    play.wait(0.1)
    play.turn("narrow", LINKS["far"])
    play.state()
    play.wait()
    play.state()
    for nbytes in (3_000_000, 20_000_000):
        play.client(http2.settings((http2.INITIAL_WINDOW_SIZE, nbytes), (http2.MAX_FRAME_SIZE, 1 << 20)))
    play.upstream(http2.settings((http2.MAX_FRAME_SIZE, 1 << 16), (http2.MAX_HEADER_LIST_SIZE, 9_000)))
    play.upstream(http2.settings((http2.INITIAL_WINDOW_SIZE, 100)), http2.settings((http2.ENABLE_PUSH, 0)))
    play.wait(0.1)
    for _ in range(4):
        play.client(http2.frame(http2.SETTINGS, http2.ACK, 0))
        play.upstream(http2.frame(http2.SETTINGS, http2.ACK, 0), data(1, 60_000))
    play.client(data(1, 60_000))
    play.wait()


def large_headers(play: Play) -> None:
    play.call(1, "near", extra=40_000)
    play.wait(0.2)
    play.call(3, "near", extra=300_000, end=False)
    play.call(5, "near", extra=300_000)
    play.call(7, "near")
    play.wait()
    filler = NO_TABLE + literal(b"x-filler", b"f" * 300_000)
    play.upstream(http2.header_frames(7, filler, False, 16_384))
    play.upstream(http2.header_frames(1, NO_TABLE + literal(b"x-filler", b"f" * 20_000), True, 16_384))
    play.upstream(http2.header_frames(99, ANSWER, True, 16_384))
    play.wait()
    padded = bytes((3,)) + bytes((0, 0, 0, 0, 9)) + request("near") + bytes(3)
    flags = http2.END_HEADERS | http2.PADDED | http2.HAS_PRIORITY | http2.END_STREAM
    play.client(http2.frame(http2.HEADERS, flags, 9, padded))
    play.client(http2.frame(http2.HEADERS, http2.END_HEADERS, 11, b"\x82" + literal(b"x-node-id", b"far")))
    play.wait()


BEGUN = http2.frame(http2.HEADERS, 0, 3, request("near"))
"""A header block that is to be continued."""
BROKEN = {
    "too long": (UP, http2.frame(http2.DATA, 0, 1, bytes(20_001))),
    "just as long as allowed": (UP, http2.frame(http2.DATA, 0, 1, bytes(20_000))),
    "data on a stream to come": (UP, data(3, 1)),
    "data on a stream that the client never opened": (DOWN, data(99, 1)),
    "data on no stream": (UP, data(0, 1)),
    "data on no stream from the upstream": (DOWN, data(0, 1)),
    "an even stream": (UP, http2.header_frames(2, request("near"), True, 16_384)),
    "a push": (DOWN, http2.header_frames(2, ANSWER, True, 16_384)),
    "an interrupted block": (UP, BEGUN + http2.frame(http2.PING, 0, 0, b"8 bytes.")),
    "a block that goes on elsewhere": (UP, BEGUN + http2.frame(http2.CONTINUATION, 4, 5)),
    "a continuation of nothing": (UP, http2.frame(http2.CONTINUATION, 4, 1)),
    "a continuation on no stream": (UP, http2.frame(http2.CONTINUATION, 4, 0)),
    "too many continuations": (UP, BEGUN + 64 * http2.frame(http2.CONTINUATION, 0, 3)),
    "many continuations": (UP, BEGUN + 63 * http2.frame(http2.CONTINUATION, 0, 3)),
    "an endless block": (UP, BEGUN + 63 * http2.frame(http2.CONTINUATION, 0, 3, bytes(20_000))),
    "a block that is no HPACK": (UP, http2.frame(http2.HEADERS, 4, 3, b"\xff\xff\xff\xff\xff\xff\xff")),
    "priority on no stream": (UP, http2.frame(http2.PRIORITY, 0, 0, bytes(5))),
    "priority": (UP, http2.frame(http2.PRIORITY, 0, 1, bytes(5)) + http2.frame(http2.PRIORITY, 0, 7, bytes(5))),
    "a reset of no stream": (UP, http2.rst_stream(0, 8)),
    "a reset of a stream to come": (UP, http2.rst_stream(3, 8)),
    "a reset of a stream that the client never opened": (DOWN, http2.rst_stream(99, 8)),
    "a window for a stream to come": (UP, http2.frame(http2.WINDOW_UPDATE, 0, 3, bytes((0, 0, 0, 1)))),
    "a window of nothing": (UP, http2.frame(http2.WINDOW_UPDATE, 0, 0, bytes(4))),
    "settings of a stream": (UP, http2.frame(http2.SETTINGS, 0, 1)),
    "settings of seven bytes": (UP, http2.frame(http2.SETTINGS, 0, 0, bytes(7))),
    "too many settings": (UP, 256 * http2.settings()),
    "many settings": (UP, 254 * http2.settings()),
    "a ping of a stream": (UP, http2.frame(http2.PING, 0, 1, bytes(8))),
    "a ping of seven bytes": (UP, http2.frame(http2.PING, 0, 0, bytes(7))),
    "goaway of a stream": (UP, http2.frame(http2.GOAWAY, 0, 1, bytes(8))),
    "goaway of seven bytes": (DOWN, http2.frame(http2.GOAWAY, 0, 0, bytes(7))),
    "an unknown type": (UP, http2.frame(77, 5, 0, b"new") + http2.frame(77, 5, 1, b"new") + http2.frame(78, 0, 9)),
}  # fmt: skip


def broken_frames() -> Iterator[str]:
    for name, (direction, frames) in BROKEN.items():
        play = Play()
        play.call(1, "near", end=False)
        play.upstream(http2.settings((http2.MAX_FRAME_SIZE, 20_000)))
        play.wait()
        del play.lines[:]
        play.pacer.handle(play.pair, direction, frames)
        play.wait()
        yield f"{name}:"
        gets_settings = [line for line in play.lines if "SETTINGS 0 flags 0" in line]
        yield from (line for line in play.lines if line not in gets_settings[3:])


STORIES: dict[str, Callable[[Play], None]] = {
    "a-call": a_call,
    "a-call-on-a-direct-link": partial(a_call, node="direct"),
    "pieces": pieces,
    "links-that-differ": links_that_differ,
    "goaway-in-other-numbers": goaway_in_other_numbers,
    "losses": losses,
    "few-streams": few_streams,
    "draining": draining,
    "draining-a-direct-link": partial(draining, node="direct"),
    "draining-with-nothing-open": draining_with_nothing_open,
    "draining-a-lost-call": draining_a_lost_call,
    "a-client-that-leaves": a_client_that_leaves,
    "a-client-that-leaves-slowly": partial(a_client_that_leaves, delay=0.5),
    "an-upstream-that-leaves": an_upstream_that_leaves,
    "an-upstream-that-leaves-slowly": partial(an_upstream_that_leaves, delay=0.5),
    "a-full-queue": a_full_queue,
    "large-headers": large_headers,
    "a-latency-spike": partial(an_event, kind="latency_spike", duration_seconds=0.5, factor=10.0),
    "a-collapse": partial(an_event, kind="bandwidth_collapse", duration_seconds=2.0, factor=0.01),
    "a-disconnect": partial(an_event, kind="disconnect", duration_seconds=1.0),
    "a-black-hole": partial(an_event, kind="disconnect", duration_seconds=1.0, mode="black_hole"),
    "a-black-hole-one-way": partial(an_event, kind="disconnect", duration_seconds=1.0, direction="down"),
    "a-reset-one-way": partial(an_event, kind="disconnect", duration_seconds=1.0, mode="reset", direction="up"),
    "half-open": partial(an_event, kind="disconnect", mode="half_open"),
    "flapping": partial(an_event, kind="flap", duration_seconds=1.0, period_seconds=0.4, mode="black_hole"),
    "a-limit-of-bytes": partial(an_event, kind="limit_data", limit_bytes=20_000),
    "a-limit-of-time": partial(an_event, kind="limit_time", close_after_seconds=0.5),
    "a-timeout": partial(an_event, kind="timeout", close_after_seconds=0.5),
}


@pytest.mark.parametrize("name", [*STORIES, "broken-frames"])
def test_both_peers_get_what_is_written(name: str, require_transcript: RequireTranscript) -> None:
    if name in STORIES:
        play = Play()
        STORIES[name](play)
        lines = play.lines
    else:
        lines = list(broken_frames())
    require_transcript(DIRECTORY / f"{name}.txt", lines)
