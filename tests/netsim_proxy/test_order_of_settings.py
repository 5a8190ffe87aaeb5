"""What is sent after an acknowledgement of SETTINGS may rely on it: nothing overtakes it, and it costs no delay."""

import math
import random
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from h2.settings import SettingCodes
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.netsim_proxy.link.distributions import Uniform
from hypergpu.netsim_proxy.link.events import NetworkEvent
from hypergpu.netsim_proxy.link.outcomes import DOWN, UP
from hypergpu.netsim_proxy.link.profiles import Loss, Path, Profile
from hypergpu.netsim_proxy.relay import http2
from hypergpu.netsim_proxy.relay.header_blocks import NO_TABLE, literal
from hypergpu.netsim_proxy.relay.limits import Limits
from hypergpu.netsim_proxy.relay.ordering import DeliveryOrder
from hypergpu.netsim_proxy.relay.paced_link import PacedLink
from tests.netsim_proxy.virtual import Relayed

ACK = http2.frame(http2.SETTINGS, http2.ACK, 0)
LARGER = http2.settings((http2.INITIAL_WINDOW_SIZE, 1 << 20))
SMALLER = http2.settings((http2.INITIAL_WINDOW_SIZE, 1000))


# --- the order alone


def noting(sent: list[str], what: str) -> Callable[[float], None]:
    return lambda now: sent.append(what)


@pytest.fixture
def sent() -> list[str]:
    return []


def test_later_frames_take_a_barrier_with_them(sent: list[str]) -> None:
    order = DeliveryOrder()
    before = order.enter()
    barrier = order.add(noting(sent, "ack"), waits=False, blocks=True)
    after = order.enter()
    order.arrive(0.0, after, noting(sent, "after"))
    order.arrive(0.0, before, noting(sent, "before"))
    assert sent == ["ack", "after", "before"]
    order.due(0.0, barrier)
    assert sent == ["ack", "after", "before"]
    assert not order.barriers


def test_earlier_frames_do_not_take_it_with_them(sent: list[str]) -> None:
    order = DeliveryOrder()
    before = order.enter()
    barrier = order.add(noting(sent, "ack"), waits=False, blocks=True)
    order.arrive(0.0, before, noting(sent, "before"))
    assert sent == ["before"]
    assert order.barriers
    order.due(0.0, barrier)
    assert sent == ["before", "ack"]


def test_a_barrier_that_waits_holds_up_what_is_behind_it(sent: list[str]) -> None:
    order = DeliveryOrder()
    before = [order.enter(), order.enter()]
    barrier = order.add(noting(sent, "ack"), waits=True, blocks=True)
    after = [order.enter(), order.enter()]
    order.due(0.0, barrier)
    order.arrive(0.0, after[1], noting(sent, "after 1"))
    order.arrive(0.0, after[0], noting(sent, "after 2"))
    order.arrive(0.0, before[1], noting(sent, "before"))
    assert sent == ["before"]
    order.leave(0.0, before[0])  # dropped
    assert sent == ["before", "ack", "after 1", "after 2"]
    assert not order.barriers


def test_goaway_waits_but_blocks_nothing(sent: list[str]) -> None:
    order = DeliveryOrder()
    before = order.enter()
    order.due(0.0, order.add(noting(sent, "goaway"), waits=True, blocks=False))
    order.arrive(0.0, order.enter(), noting(sent, "after"))
    assert sent == ["after"]
    order.arrive(0.0, before, noting(sent, "before"))
    assert sent == ["after", "before", "goaway"]


def test_barriers_keep_their_order(sent: list[str]) -> None:
    order = DeliveryOrder()
    before = order.enter()
    order.add(noting(sent, "first"), waits=True, blocks=True)
    order.due(0.0, order.add(noting(sent, "second"), waits=False, blocks=True))
    assert sent == []
    order.arrive(0.0, before, noting(sent, "before"))
    assert sent == ["before", "first", "second"]


def test_barriers_are_bounded() -> None:
    order = DeliveryOrder()
    first, *_ = [order.add(lambda now: None, waits=False, blocks=True) for _ in range(256)]
    with pytest.raises(http2.Http2Error) as caught:
        order.add(lambda now: None, waits=False, blocks=True)
    assert caught.value.code == http2.ENHANCE_YOUR_CALM
    order.due(0.0, first)
    order.add(lambda now: None, waits=False, blocks=True)


def test_settings_that_nobody_acknowledges_are_bounded() -> None:
    both = Both()
    for _ in range(256):
        both.up(LARGER)
        both.run()
    assert not both.pair.closed
    assert [kind for kind, *_ in both.upstream.frames()] == [http2.SETTINGS] * 256
    both.up(LARGER)
    ((kind, _, _, payload),) = both.client.frames()
    assert (kind, payload[4:8]) == (http2.GOAWAY, http2.ENHANCE_YOUR_CALM.to_bytes(4, "big"))


@pytest.mark.parametrize(
    ("pairs", "lowers"),
    [
        ([], False),
        ([(http2.INITIAL_WINDOW_SIZE, 65_535)], False),
        ([(http2.INITIAL_WINDOW_SIZE, 65_534)], True),
        ([(http2.INITIAL_WINDOW_SIZE, 70_000), (http2.INITIAL_WINDOW_SIZE, 65_535)], True),
        ([(http2.MAX_FRAME_SIZE, 16_384)], False),
        ([(http2.MAX_HEADER_LIST_SIZE, 1 << 30)], True),
        ([(http2.HEADER_TABLE_SIZE, 0), (0xF000, 0)], False),
    ],
)
def test_settings_that_lower_a_limit_are_told_apart(pairs: list[tuple[int, int]], lowers: bool) -> None:
    assert Limits(UP).lowered_by(pairs) is lowers


def test_limits_are_compared_with_those_before_and_streams_are_limited_by_the_upstream_alone() -> None:
    limits = Limits(DOWN)
    assert limits.lowered_by([(http2.MAX_CONCURRENT_STREAMS, 100)])
    assert not limits.lowered_by([(http2.MAX_CONCURRENT_STREAMS, 100)])
    assert limits.lowered_by([(http2.MAX_CONCURRENT_STREAMS, 99)])
    assert not Limits(UP).lowered_by([(http2.MAX_CONCURRENT_STREAMS, 100)])


# --- a relay, in a time of its own


class Both(Relayed):
    """A relay with a request on a slow link (stream 1) and on a fast one (stream 3)."""

    def __init__(self) -> None:
        paths = {name: Path(Uniform(s, s), math.inf, Loss(0.0)) for name, s in (("slow", 0.5), ("fast", 0.25))}
        profiles = {name: Profile(name, path, path) for name, path in paths.items()}
        super().__init__(profiles["fast"], profiles)
        self.up(http2.settings(), request(1, "slow"))
        self.run()  # so that both streams have the same number on either side
        self.up(request(3, "fast"))
        self.down(http2.settings(), ACK)
        self.up(ACK)
        self.run()
        self.client.take()
        self.upstream.take()

    def to_client(self) -> list[bytes | int]:
        """Payloads of DATA, and the kinds of other frames, as they were written."""
        return [payload if kind == http2.DATA else kind for kind, _, _, payload in self.client.frames()]

    def cut(self, name: str, seconds: float = 0.0) -> PacedLink:
        """Nothing passes a link."""
        paced = self.links.of(name)
        paced.link.apply(NetworkEvent("partition", target_node=name, duration_seconds=seconds), self.pacer.time)
        self.pacer.run(paced.changed)
        return paced


def request(stream: int, link: str) -> bytes:
    return http2.header_frames(stream, NO_TABLE + literal(b"x-node-id", link.encode()), False, 16_384)


def data(stream: int, payload: bytes) -> bytes:
    return http2.frame(http2.DATA, 0, stream, payload)


def test_data_does_not_overtake_an_acknowledgement_and_is_not_delayed_by_it() -> None:
    both = Both()
    began = both.pacer.time
    both.up(LARGER)
    both.down(data(1, b"before"), ACK, data(3, b"after"))
    both.run()
    assert both.to_client() == [http2.SETTINGS, b"after", b"before"]
    assert [at - began for at, _ in both.client.writes] == [0.25, 0.25, 0.5]


def test_an_acknowledgement_of_a_smaller_window_comes_between() -> None:
    both = Both()
    both.up(SMALLER)
    both.down(data(1, b"before"), ACK, data(3, b"after"))
    both.run()
    assert both.to_client() == [b"before", http2.SETTINGS, b"after"]


def test_it_comes_between_though_a_link_holds_what_was_before_it() -> None:
    both = Both()
    both.cut("slow", seconds=10.0)
    began = both.pacer.time
    both.up(SMALLER)
    both.run(began + 1)
    both.down(data(1, b"before"), ACK, data(3, b"after"))
    both.run(began + 9)
    assert both.to_client() == []
    both.run()
    assert both.to_client() == [b"before", http2.SETTINGS, b"after"]


def test_it_travels_with_data_though_its_own_link_holds_it() -> None:
    both = Both()
    assert both.cut("slow") is both.pair.paced
    both.down(ACK, data(3, b"after"))
    both.run()
    assert both.to_client() == [http2.SETTINGS, b"after"]


@given(
    st.lists(st.sampled_from(["slow", "fast", "raise", "lower", "ack", "settings", "wait"]), max_size=30),
    st.randoms(use_true_random=False),
)
def test_every_interleaving_keeps_the_order_of_acknowledgements(steps: list[str], rng: random.Random) -> None:
    both = Both()
    window, pending, sent, chunk = 65_535, [], [], []
    for number, step in enumerate(steps):
        if step in ("raise", "lower"):
            new = window + 1000 if step == "raise" else window - 1000
            pending.append(new < window)
            window = new
            both.up(http2.settings((http2.INITIAL_WINDOW_SIZE, window)))
        elif step in ("slow", "fast"):
            chunk.append(data(1 if step == "slow" else 3, b"%d" % number))
            sent.append((number, step))
        elif step == "ack" and pending:
            chunk.append(ACK)
            sent.append((number, "lowered" if pending.pop(0) else "raised"))
        elif step == "settings":
            chunk.append(http2.settings((http2.MAX_CONCURRENT_STREAMS, number + 100)))
        else:
            both.down(*chunk)
            chunk.clear()
            both.run(both.pacer.time + rng.choice([0.0, 0.1, 0.3]))
    both.down(*chunk)
    both.run()
    acks = iter([number for number, what in sent if what in ("lowered", "raised")])
    kinds = dict(sent)
    arrived = [
        int(payload) if kind == http2.DATA else next(acks)
        for kind, flags, _, payload in both.client.frames()
        if kind == http2.DATA or (kind == http2.SETTINGS and flags & http2.ACK)
    ]
    assert sorted(arrived) == sorted(kinds)
    for place, number in enumerate(arrived):
        if kinds[number] in ("lowered", "raised"):
            assert all(earlier < number for earlier in arrived[:place])
        if kinds[number] == "lowered":
            assert all(later > number for later in arrived[place + 1 :])
    for stream in ("slow", "fast"):
        own = [number for number in arrived if kinds[number] == stream]
        assert own == sorted(own)


# --- hyper-h2, which ends a connection for one frame too many


def _receive(sock: socket.socket, conn: h2.connection.H2Connection) -> list[h2.events.Event]:
    received = sock.recv(1 << 16)
    return conn.receive_data(received) if received else [h2.events.ConnectionTerminated()]


class H2Server:
    """Answers each request with a megabyte, as fast as the windows let it; acknowledges before it sends more."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.errors: list[str] = []
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self.threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        conn.initiate_connection()
        sock.sendall(conn.data_to_send())
        left: dict[int, int] = {}
        with sock:
            while True:
                try:
                    events = _receive(sock, conn)
                    for event in events:
                        if isinstance(event, h2.events.RequestReceived):
                            conn.send_headers(event.stream_id or 0, [(":status", "200")])
                            left[event.stream_id or 0] = self.size
                        elif isinstance(event, h2.events.ConnectionTerminated):
                            return
                    for stream in list(left):
                        self._send(conn, stream, left)
                    sock.sendall(conn.data_to_send())
                except OSError:
                    return
                except Exception as error:
                    self.errors.append(repr(error))
                    return

    @staticmethod
    def _send(conn: h2.connection.H2Connection, stream: int, left: dict[int, int]) -> None:
        while left.get(stream):
            size = min(left[stream], conn.local_flow_control_window(stream), conn.max_outbound_frame_size)
            if size <= 0:
                return
            left[stream] -= size
            conn.send_data(stream, bytes(size), end_stream=not left[stream])
            if not left[stream]:
                del left[stream]


def _download(address: str, streams: int) -> tuple[int, str]:
    """Receive while windows and frames grow with each acknowledgement; return the bytes and what went wrong."""
    host, _, number = address.rpartition(":")
    conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    received = ended = 0
    with socket.create_connection((host, int(number)), timeout=20) as sock:
        try:
            conn.initiate_connection()
            conn.increment_flow_control_window(1 << 30)
            fields = [(":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "x")]
            for i in range(streams):
                conn.send_headers(2 * i + 1, [*fields, ("x-node-id", f"node_{i % 3}")], end_stream=True)
            window = 65_535
            while ended < streams:
                sock.sendall(conn.data_to_send())
                for event in _receive(sock, conn):
                    if isinstance(event, h2.events.SettingsAcknowledged):
                        window *= 2
                        conn.update_settings(
                            {SettingCodes.INITIAL_WINDOW_SIZE: window, SettingCodes.MAX_FRAME_SIZE: window}
                        )
                    elif isinstance(event, h2.events.DataReceived):
                        received += len(event.data or b"")
                    elif isinstance(event, h2.events.StreamEnded):
                        ended += 1
                    elif isinstance(event, (h2.events.ConnectionTerminated, h2.events.StreamReset)):
                        return received, repr(event)
        except Exception as error:
            return received, repr(error)
    return received, ""


@pytest.fixture
def h2_server() -> Iterator[H2Server]:
    server = H2Server(600_000)
    yield server
    server.listener.close()


def test_hyper_h2_clients_keep_their_connections_while_windows_grow(start_proxy: Any, h2_server: H2Server) -> None:
    paths = Path(Uniform(0.002, 0.030), 2000.0, Loss(0.0))
    proxy = start_proxy(Profile("jittery", paths, paths), upstream=h2_server.address)
    results: list[tuple[int, str]] = []
    clients = [
        threading.Thread(target=lambda: results.append(_download(proxy.address, 4)), daemon=True) for _ in range(8)
    ]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(60)
    assert results == [(2_400_000, "")] * 8
    assert h2_server.errors == []
