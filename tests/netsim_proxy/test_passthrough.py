"""TCP that is passed through: a plain echo and TLS, over the links that the map says, with every fault."""

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from hypergpu.netsim_proxy.config.link_map import LinkMap
from hypergpu.netsim_proxy.link.access_lane import NO_LIMIT, UpstreamBandwidth
from hypergpu.netsim_proxy.link.distributions import Uniform
from hypergpu.netsim_proxy.link.events import NetworkEvent
from hypergpu.netsim_proxy.link.outcomes import Cause, Direction, LossModel
from hypergpu.netsim_proxy.link.profiles import Loss, Profile
from hypergpu.netsim_proxy.link.profiles import Path as LinkPath
from tests.patience import patience

Dial = Callable[[str], socket.socket]


class Server:
    """Handles each connection in a thread."""

    def __init__(self, handle: Callable[[socket.socket], None]) -> None:
        self._handle = handle
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                threading.Thread(target=self._run, args=(sock,), daemon=True).start()

    def _run(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            self._handle(sock)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


def echo(sock: socket.socket) -> None:
    while data := sock.recv(1 << 16):
        sock.sendall(data)


@pytest.fixture(autouse=True)
def no_wait_for_the_last_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a proxy that ends after its test close its connections soon."""
    monkeypatch.setattr("hypergpu.netsim_proxy.io.passthrough.LINGER_SECONDS", 0.05)


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    with contextlib.ExitStack() as stack:

        def start(handle: Callable[[socket.socket], None]) -> str:
            server = Server(handle)
            stack.callback(server.close)
            return server.address

        yield start


@pytest.fixture
def dial() -> Iterator[Dial]:
    with contextlib.ExitStack() as stack:

        def connect(address: str) -> socket.socket:
            host, _, port = address.rpartition(":")
            return stack.enter_context(socket.create_connection((host, int(port)), timeout=10))

        yield connect


@pytest.fixture
def proxy(start_proxy: Any, serve: Any) -> Any:
    return start_proxy("direct", upstream=serve(echo))


def listen(proxy: Any, link: str = "", address: str = "127.0.0.1:0") -> str:
    found: str = proxy.wait_for(proxy.passing.listen(address, link))
    return found


def read(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := sock.recv(count - len(data))):
        data += more
    return data


def fixed(rtt_ms: float, mbit: float = float("inf"), loss: float = 0.0) -> Profile:
    path = LinkPath(Uniform(rtt_ms / 2000, rtt_ms / 2000), mbit, Loss(loss))
    return Profile("fixed", path, path)


def event(kind: str, **fields: Any) -> NetworkEvent:
    return NetworkEvent(kind, target_node="tcp", **fields)


def test_bytes_pass_both_ways_on_the_link_of_the_port(proxy: Any, dial: Dial) -> None:
    sock = dial(listen(proxy, "tcp"))
    data = bytes(range(256)) * 20_000
    threading.Thread(target=sock.sendall, args=(data,)).start()
    assert read(sock, len(data)) == data
    link = proxy.link("tcp")
    assert (link.counters(Direction.UP).bytes, link.counters(Direction.DOWN).bytes) == (len(data), len(data))
    assert proxy.ports.known("tcp").in_flight == [0, 0] and len(proxy.ports.known("tcp").pairs) == 1


def test_the_end_of_one_direction_leaves_the_other_open(proxy: Any, serve: Any, dial: Dial, start_proxy: Any) -> None:
    def count(sock: socket.socket) -> None:
        total = 0
        while data := sock.recv(1 << 16):
            total += len(data)
        sock.sendall(str(total).encode())

    counting = start_proxy(fixed(20), upstream=serve(count))
    sock = dial(listen(counting, "tcp"))
    sock.sendall(bytes(300_000))
    sock.shutdown(socket.SHUT_WR)
    assert read(sock, 100) == b"300000"
    assert sock.recv(1) == b""


def test_a_server_that_speaks_first_is_heard(start_proxy: Any, serve: Any, dial: Dial) -> None:
    def greet(sock: socket.socket) -> None:
        sock.sendall(b"220 ready\r\n")
        echo(sock)

    running = start_proxy("direct", upstream=serve(greet))
    for _ in range(20):
        assert read(dial(listen(running, "tcp")), 11) == b"220 ready\r\n"
    running.proxy.link_map = LinkMap.of({}, {"a.example": "a"})  # a name is waited for, not for ever
    assert read(dial(listen(running, "tcp")), 11) == b"220 ready\r\n"


def test_latency_and_bandwidth_are_those_of_the_link(start_proxy: Any, serve: Any, dial: Dial) -> None:
    running = start_proxy(fixed(100, mbit=80), upstream=serve(echo))
    sock = dial(listen(running, "tcp"))
    began = time.monotonic()
    sock.sendall(b"x")
    assert read(sock, 1) == b"x" and 0.1 <= time.monotonic() - began < 0.3
    began = time.monotonic()
    threading.Thread(target=sock.sendall, args=(bytes(2_000_000),)).start()
    assert len(read(sock, 2_000_000)) == 2_000_000
    assert 0.3 <= time.monotonic() - began < 0.8  # 0.2 s at 10 MB/s and the round trip


def test_losses_cost_time_under_transport_and_lose_nothing_under_rpc(start_proxy: Any, serve: Any, dial: Dial) -> None:
    profile = fixed(20, mbit=100, loss=0.3)
    seconds = []
    for model in (LossModel.RPC, LossModel.TRANSPORT):
        running = start_proxy(profile, upstream=serve(echo), ports={"loss_model": model})
        sock = dial(listen(running, "tcp"))
        began = time.monotonic()
        for _ in range(3):
            sock.sendall(b"x" * 3000)
            assert len(read(sock, 3000)) == 3000
        seconds.append(time.monotonic() - began)
        assert running.link("tcp").rpcs_lost == 0
    assert seconds[0] < 0.3 < seconds[1]


def test_a_reader_that_stops_holds_back_its_writer(start_proxy: Any, serve: Any, dial: Dial, at_rest: Any) -> None:
    sent = [0]

    def produce(sock: socket.socket) -> None:
        while True:
            sent[0] += sock.send(bytes(1 << 16))

    running = start_proxy(fixed(10), upstream=serve(produce))
    sock = dial(listen(running, "tcp"))
    assert read(sock, 100_000)
    assert at_rest(lambda: sent[0]) < 40 << 20
    assert len(read(sock, 60 << 20)) == 60 << 20  # and it goes on


@pytest.mark.parametrize(("reset", "told"), [(False, b""), (True, None)])
def test_how_a_server_ends_reaches_the_client_when_the_link_says(
    reset: bool, told: bytes | None, start_proxy: Any, serve: Any, dial: Dial
) -> None:
    ended, arrived = [], threading.Event()

    def end(sock: socket.socket) -> None:
        sock.recv(1)
        sock.sendall(b"last")
        assert arrived.wait(5)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        ended.append(time.monotonic())

    running = start_proxy(fixed(300), upstream=serve(end))
    sock = dial(listen(running, "tcp"))
    sock.sendall(b"x")
    assert read(sock, 4) == b"last"
    arrived.set()
    if told is None:
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    else:
        assert sock.recv(1) == told
    assert time.monotonic() - ended[0] >= 0.15


def test_a_black_hole_keeps_the_end_of_a_connection_too(
    dial: Dial, serve: Any, start_proxy: Any, eventually: Any
) -> None:
    def close_at_once(sock: socket.socket) -> None:
        sock.recv(1)

    running = start_proxy("direct", upstream=serve(close_at_once))
    sock = dial(listen(running, "tcp"))
    eventually(lambda: running.passing.pairs)
    running.call(running.ports.apply, event("partition", direction="down"))
    sock.sendall(b"x")
    sock.settimeout(0.4)
    with pytest.raises(TimeoutError):
        sock.recv(1)
    running.call(running.ports.apply, event("recovery"))
    sock.settimeout(5)
    assert sock.recv(1) == b""


def test_one_direction_is_held_and_the_other_flows(proxy: Any, dial: Dial) -> None:
    sock = dial(listen(proxy, "tcp"))
    sock.sendall(b"a")
    assert read(sock, 1) == b"a"
    proxy.call(proxy.ports.apply, event("partition", direction="down"))
    sock.sendall(b"b")
    sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        sock.recv(1)
    assert proxy.link("tcp").counters(Direction.UP).bytes == 2
    proxy.call(proxy.ports.clear)
    sock.settimeout(5)
    assert read(sock, 1) == b"b"


@pytest.mark.parametrize("direction", ["both", "up"])
def test_a_reset_is_a_reset(direction: str, proxy: Any, dial: Dial) -> None:
    sock = dial(listen(proxy, "tcp"))
    sock.sendall(b"a")
    assert read(sock, 1) == b"a"
    proxy.call(proxy.ports.apply, event("disconnect", mode="reset", direction=direction))
    assert len(proxy.passing.pairs) == (1 if direction == "up" else 0), "nothing was sent that a reset could answer"
    with pytest.raises(ConnectionError):
        for _ in range(100):
            sock.sendall(b"b")
            sock.recv(10)
    assert not proxy.passing.pairs


def test_a_link_that_resets_takes_no_new_connection(proxy: Any, dial: Dial) -> None:
    address = listen(proxy, "tcp")
    proxy.call(proxy.ports.of, "tcp")
    proxy.call(proxy.ports.apply, event("disconnect"))
    with pytest.raises(ConnectionResetError):
        dial(address).recv(1)
    proxy.call(proxy.ports.clear)
    sock = dial(address)
    sock.sendall(b"a")
    assert read(sock, 1) == b"a"


def test_a_half_open_connection_is_silent_for_good_and_a_new_one_works(proxy: Any, dial: Dial) -> None:
    address = listen(proxy, "tcp")
    sock = dial(address)
    sock.sendall(b"a")
    assert read(sock, 1) == b"a"
    proxy.call(proxy.ports.apply, event("disconnect", mode="half_open"))
    sock.sendall(b"b")
    sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        sock.recv(1)
    other = dial(address)
    other.sendall(b"c")
    assert read(other, 1) == b"c"


@pytest.mark.parametrize("direction", ["up", "down"])
def test_exactly_so_many_bytes_pass(direction: str, dial: Dial, serve: Any, start_proxy: Any) -> None:
    received, over = bytearray(), threading.Event()

    def keep(sock: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):
            while data := sock.recv(1 << 16):
                received.extend(data)
                sock.sendall(data)
        over.set()

    running = start_proxy(fixed(20), upstream=serve(keep))
    address = listen(running, "tcp")
    running.call(running.ports.of, "tcp")
    running.call(running.ports.apply, event("limit_data", limit_bytes=100_000, direction=direction))
    for _ in range(2):  # each connection has its own
        received.clear()
        over.clear()
        sock = dial(address)
        threading.Thread(target=send_all, args=(sock, bytes(150_000))).start()
        answered = len(read_until_closed(sock))
        if direction == "down":
            assert answered == 100_000
        else:
            assert over.wait(5)
            assert len(received) == 100_000
    assert running.link("tcp").state(time.monotonic()) == "degraded"


def send_all(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(data)


def read_until_closed(sock: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionError):
        while more := sock.recv(1 << 16):
            data += more
    return data


@pytest.mark.parametrize(("kind", "passes"), [("limit_time", True), ("timeout", False)])
def test_a_connection_lasts_so_long(kind: str, passes: bool, proxy: Any, dial: Dial) -> None:
    address = listen(proxy, "tcp")
    proxy.call(proxy.ports.of, "tcp")
    proxy.call(proxy.ports.apply, event(kind, close_after_seconds=0.4))
    began = time.monotonic()
    sock = dial(address)
    sock.sendall(b"a")
    assert read_until_closed(sock) == (b"a" if passes else b"")
    assert 0.4 <= time.monotonic() - began < 2
    assert proxy.link("tcp").losses[Cause.LOSS] == 0 and not proxy.passing.pairs


def test_a_slow_close_arrives_late(proxy: Any, dial: Dial) -> None:
    sock = dial(listen(proxy, "tcp"))
    sock.sendall(b"a")
    assert read(sock, 1) == b"a"
    proxy.call(proxy.ports.apply, event("slow_close", close_after_seconds=0.4, direction="up"))
    began = time.monotonic()
    sock.shutdown(socket.SHUT_WR)
    assert sock.recv(1) == b"" and 0.4 <= time.monotonic() - began < 2


def test_an_upstream_that_is_away_refuses(start_proxy: Any, dial: Dial) -> None:
    running = start_proxy("direct", upstream="127.0.0.1:1")
    with capture_logs() as logs, pytest.raises(ConnectionResetError):
        dial(listen(running, "tcp")).recv(1)
    assert [entry["event"] for entry in logs] == ["upstream cannot be reached"]
    assert not running.passing.pairs and not running.ports.known("tcp").pairs


@pytest.mark.parametrize(
    ("map_", "port_link", "link"),
    [
        (LinkMap.of({"127.0.0.0/8": "by_address"}, {}), "by_port", "by_port"),
        (LinkMap.of({"127.0.0.0/8": "by_address"}, {}), "", "by_address"),
        (LinkMap.of({"10.0.0.0/8": "by_address"}, {}), "", "default"),
        (LinkMap.of({"127.0.0.1": "by_address"}, {"other.example": "no"}), "", "by_address"),
    ],
)
def test_port_goes_before_address_and_address_before_default(
    map_: LinkMap, port_link: str, link: str, proxy: Any, dial: Dial
) -> None:
    proxy.proxy.link_map = map_
    sock = dial(listen(proxy, port_link))
    sock.sendall(b"plain")
    assert read(sock, 5) == b"plain"
    assert proxy.link(link).counters(Direction.UP).bytes == 5


def test_tls_is_on_the_link_of_the_server_that_it_asks_for(
    start_proxy: Any, serve: Any, dial: Dial, authority: Any
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.sign("train.example.com"))

    def secret(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as wrapped:
            wrapped.sendall(wrapped.recv(100))

    running = start_proxy(fixed(40), upstream=serve(secret))
    running.proxy.link_map = LinkMap.of({"127.0.0.1": "by_address"}, {"*.example.com": "by_name"})
    address = listen(running, "by_port")
    client = ssl.create_default_context(cafile=authority.certificate)
    for name, link in (("train.example.com", "by_name"), ("localhost", "by_port")):
        with (
            client.wrap_socket(dial(address), server_hostname=name)
            if name != "localhost"
            else unnamed(dial(address), authority.certificate) as sock
        ):
            sock.sendall(b"secret")
            assert sock.recv(100) == b"secret"
        assert running.link(link).counters(Direction.UP).bytes > 200
        assert running.link(link).latency_bounds_ms(Direction.UP) == (20.0, 20.0)
    assert {port.name for port in running.ports} == {"by_name", "by_port"}


def unnamed(sock: socket.socket, authority: Path) -> ssl.SSLSocket:
    """TLS by a client that names no server."""
    context = ssl.create_default_context(cafile=authority)
    context.check_hostname = False
    return context.wrap_socket(sock)


def test_open_connections_may_end_by_themselves_before_the_proxy_does(proxy: Any, dial: Dial) -> None:
    first, second = (dial(listen(proxy, "tcp")) for _ in range(2))
    for sock in (first, second):
        sock.sendall(b"a")
        assert read(sock, 1) == b"a"
    timer = threading.Timer(0.2, first.shutdown, (socket.SHUT_WR,))
    timer.start()
    began = time.monotonic()
    proxy.wait_for(proxy.passing.drain(0.6))
    assert 0.6 <= time.monotonic() - began < 4
    assert first.recv(1) == b"" and read_until_closed(second) == b""
    assert not proxy.passing.pairs and not proxy.passing.ends
    timer.join()


def test_grpc_and_its_tls_pass_through_too(start_proxy: Any, connect: Any, upstream: str, dial: Dial) -> None:
    running = start_proxy(fixed(40))
    client = connect(listen(running, "tcp"), "node_1")
    client.Echo(b"")
    began = time.monotonic()
    assert client.Echo(b"x") == b"x" and time.monotonic() - began >= 0.04
    assert [port.name for port in running.ports] == ["tcp"]  # what a call says is not looked at


def test_unix_sockets_on_both_sides(start_proxy: Any, tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner.sock", tmp_path / "outer.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(inner))
        listener.listen()
        running = start_proxy("direct", upstream=f"unix:{inner}")
        assert listen(running, "tcp", f"unix:{outer}") == f"unix:{outer}"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(outer))
            sock.settimeout(5)
            sock.sendall(b"ping")
            accepted, _ = listener.accept()
            with accepted:
                accepted.sendall(accepted.recv(10) + b"!")
                assert sock.recv(10) == b"ping!"
    running.wait_for(running.passing.drain(0.0))
    assert not outer.exists()


@pytest.mark.parametrize("model", list(LossModel))
def test_connections_of_all_links_share_the_upstreams_bandwidth(proxy: Any, dial: Dial, model: LossModel) -> None:
    proxy.call(proxy.ports.set_loss_model, "*", model)
    sockets = [dial(listen(proxy, f"node_{number}")) for number in range(3)]
    proxy.call(proxy.ports.set_upstream_bandwidth, UpstreamBandwidth(up_mbit=8))
    began, nbytes = time.monotonic(), 100_000
    for sock in sockets:
        sock.sendall(bytes(nbytes))
    assert all(len(read(sock, nbytes)) == nbytes for sock in sockets)
    assert 0.3 <= time.monotonic() - began < patience(5)  # 0.1 s if each had the bandwidth to itself
    proxy.call(proxy.ports.set_upstream_bandwidth, NO_LIMIT)
    assert proxy.ports.known("node_0").transparent
    for sock in sockets:
        sock.sendall(b"more")
    assert [read(sock, 4) for sock in sockets] == [b"more"] * 3
