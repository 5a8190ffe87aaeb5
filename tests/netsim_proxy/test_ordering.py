"""What must keep its order between streams although each has its own delay: found with servers in Go and Node.js."""

import socket
import struct
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hypergpu.netsim_proxy.io.protocols import UpstreamPeer
from hypergpu.netsim_proxy.link.distributions import Uniform
from hypergpu.netsim_proxy.link.profiles import Loss, Path, Profile
from hypergpu.netsim_proxy.relay import http2
from hypergpu.netsim_proxy.relay.header_blocks import NO_TABLE, literal
from tests.netsim_proxy.virtual import Relayed

SLOW, FAST = ("slow", 0.5), ("fast", 0.001)
LAST = 0x7FFFFFFF


class Both(Relayed):
    """A relay between two wires, on a slow and on a fast link."""

    def __init__(self) -> None:
        paths = {name: Path(Uniform(delay, delay), float("inf"), Loss(0.0)) for name, delay in (SLOW, FAST)}
        profiles = {name: Profile(name, path, path) for name, path in paths.items()}
        super().__init__(profiles["fast"], profiles)
        self.up(http2.settings())
        self.down(http2.settings())
        self.run()
        self.client.take()

    def paths(self) -> dict[str, int]:
        """The upstream's numbers of the requests that have arrived, by path."""
        return {block[-2:].decode(): stream for kind, _, stream, block in self.upstream.take() if kind == http2.HEADERS}


@pytest.fixture
def both() -> Both:
    return Both()


def request(stream: int, link: str, end: bool = True) -> bytes:
    block = NO_TABLE + literal(b"x-node-id", link.encode()) + literal(b":path", b"/%d" % stream)
    return http2.header_frames(stream, block, end, http2.DEFAULT_MAX_FRAME_BYTES)


def trailers(stream: int) -> bytes:
    return http2.header_frames(stream, NO_TABLE + literal(b"grpc-status", b"0"), True, http2.DEFAULT_MAX_FRAME_BYTES)


def last_ids(frames: list[tuple[int, int, int, bytes]]) -> list[int]:
    return [struct.unpack(">I", payload[:4])[0] for kind, _, _, payload in frames if kind == http2.GOAWAY]


def test_answer_to_the_ping_of_a_server_that_drains_comes_behind_the_requests_before_it(both: Both) -> None:
    both.up(request(1, "fast"))
    both.run()
    both.down(http2.goaway(LAST, http2.NO_ERROR), http2.frame(http2.PING, 0, 0, b"leaving?"))
    both.run()
    both.upstream.take()
    both.up(request(3, "slow"), http2.frame(http2.PING, http2.ACK, 0, b"leaving?"))
    both.run()
    assert [kind for kind, *_ in both.upstream.take()] == [http2.HEADERS, http2.PING]


def test_goaway_spares_streams_that_were_answered_meanwhile(both: Both) -> None:
    both.up(request(1, "slow"), request(3, "fast"), request(5, "fast"))
    both.run()
    numbers = both.paths()
    assert [numbers[path] for path in ("/3", "/5", "/1")] == [3, 5, 7]  # in the order of their arrival
    # 7 is taken, and its answer is read while the news is on its way.
    both.down(http2.goaway(7, http2.NO_ERROR), trailers(3), trailers(5))
    both.run()
    assert last_ids(both.client.take()) == [5]
    both.down(trailers(7), http2.goaway(7, http2.NO_ERROR))
    both.run()
    assert last_ids(both.client.take()) == [5]  # which must not rise


def test_goaway_refuses_requests_that_came_too_late_though_their_numbers_are_low(both: Both) -> None:
    both.up(request(1, "fast"), request(3, "slow"), request(5, "fast"))
    both.down(http2.goaway(5, http2.NO_ERROR))
    both.run()
    frames = both.client.take()
    assert last_ids(frames) == [5]
    assert (http2.RST_STREAM, 0, 3, http2.REFUSED_STREAM.to_bytes(4, "big")) in frames


@pytest.mark.parametrize(
    ("limit", "order"), [(2, [http2.RST_STREAM, http2.HEADERS]), (9, [http2.HEADERS, http2.RST_STREAM])]
)
def test_request_does_not_overtake_the_end_of_the_stream_whose_place_it_takes(
    both: Both, limit: int, order: list[int]
) -> None:
    both.down(http2.settings((http2.MAX_CONCURRENT_STREAMS, limit)))
    both.up(request(1, "fast"), request(3, "slow"))
    both.run()
    both.upstream.take()
    both.up(http2.rst_stream(3, http2.CANCEL), request(5, "fast"))
    both.run()
    assert [kind for kind, *_ in both.upstream.take()] == order


def test_nothing_is_written_to_a_connection_that_has_just_closed(both: Both) -> None:
    both.up(request(1, "fast"))
    both.client.closed = True
    both.pacer.run(both.pair.upstream_lost, "gone")
    both.run()
    assert both.client.writes == []


async def test_connections_are_ended_by_a_half_close_so_that_no_reset_outruns_the_last_frames(both: Both) -> None:
    both.client.has_halves = both.upstream.has_halves = True
    both.pacer.run(both.pair.close)
    assert all(wire.was_shut and not wire.closed for wire in (both.client, both.upstream))


def test_last_words_of_an_upstream_are_heard_though_a_write_to_it_failed(both: Both) -> None:
    both.up(request(1, "fast"))
    both.run()
    both.upstream.socket, server = socket.socketpair()
    with both.upstream.socket, server:
        proxy: Any = SimpleNamespace(upstream="there:1", pacer=both.pacer, joined=id, left=id, attach=lambda *_: None)
        peer = UpstreamPeer(proxy, both.pair, cast("Any", None), cast("Any", both.client))
        both.upstream.socket.setblocking(False)
        peer.connection_made(cast("Any", both.upstream))
        peer.data_received(http2.settings())
        server.sendall(trailers(1))
        server.close()
        peer.connection_lost(BrokenPipeError())
    both.run()
    assert [frame for frame in both.client.take() if frame[0] == http2.HEADERS] == [
        (http2.HEADERS, http2.END_STREAM | http2.END_HEADERS, 1, trailers(1)[9:])
    ]
