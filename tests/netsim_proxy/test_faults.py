"""Events on links, broken peers, a lost upstream: each fault must be seen to have happened, and the proxy goes on."""

import asyncio
import contextlib
import socket
import ssl
import subprocess
import time
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from hypergpu.netsim_proxy.io.tls import ServerTls, UpstreamTls
from hypergpu.netsim_proxy.link.events import NetworkEvent
from hypergpu.netsim_proxy.link.outcomes import UP
from hypergpu.netsim_proxy.relay import http2


def event(kind: str, **fields: Any) -> NetworkEvent:
    return NetworkEvent(kind, target_node="node_1", **fields)


def code_of(call: Any) -> grpc.StatusCode | None:
    try:
        call()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return None


@pytest.fixture
def proxy(start_proxy: Any) -> Any:
    return start_proxy("direct")


@pytest.fixture
def client(proxy: Any, connect: Any) -> Any:
    client = connect(proxy.address, "node_1", options=(("grpc.max_reconnect_backoff_ms", 100),))
    client.Echo(b"")
    return client


def test_spike_delays_and_ends(proxy: Any, client: Any, eventually: Any) -> None:
    proxy.call(proxy.ports.apply, event("latency_spike", added_ms=150.0, duration_seconds=0.5))
    began = time.monotonic()
    client.Echo(b"")
    assert time.monotonic() - began >= 0.150
    eventually(lambda: proxy.ports.known("node_1").transparent)
    began = time.monotonic()
    client.Echo(b"")
    assert time.monotonic() - began < 0.1


def test_reset_breaks_calls_and_recovery_heals(proxy: Any, client: Any, service: Any) -> None:
    call = client.Hang.future(b"")
    assert service.hanging.wait(5)
    proxy.call(proxy.ports.apply, event("disconnect", mode="reset"))
    assert code_of(call.result) == grpc.StatusCode.UNAVAILABLE
    assert code_of(lambda: client.Echo(b"")) == grpc.StatusCode.UNAVAILABLE
    proxy.call(proxy.ports.apply, event("recovery"))
    assert client.Echo(b"back", wait_for_ready=True) == b"back"


def test_black_hole_keeps_what_was_sent(proxy: Any, client: Any) -> None:
    proxy.call(proxy.ports.apply, event("disconnect", mode="black_hole", duration_seconds=0.4))
    began = time.monotonic()
    assert client.Echo(b"late") == b"late"
    assert 0.35 < time.monotonic() - began < 2
    proxy.call(proxy.ports.apply, event("partition"))
    assert code_of(lambda: client.Echo(b"", timeout=0.3)) == grpc.StatusCode.DEADLINE_EXCEEDED
    proxy.call(proxy.ports.clear, "node_1")
    assert client.Echo(b"") == b""


def test_black_hole_holds_back_writers(proxy: Any, client: Any) -> None:
    proxy.call(proxy.ports.apply, event("partition"))
    code_of(lambda: client.Count((bytes(1 << 20) for _ in range(50)), timeout=0.5))
    assert proxy.call(lambda: max(proxy.ports.known("node_1").in_flight)) <= 5 << 20
    proxy.call(proxy.ports.clear)
    assert client.Echo(b"") == b""
    assert proxy.call(lambda: proxy.ports.known("node_1").in_flight) == [0, 0]


def test_half_open_is_silent_for_good(proxy: Any, client: Any, connect: Any) -> None:
    proxy.call(proxy.ports.apply, event("disconnect", mode="half_open"))
    assert code_of(lambda: client.Echo(b"", timeout=0.3)) == grpc.StatusCode.DEADLINE_EXCEEDED
    assert connect(proxy.address, "node_1").Echo(b"new") == b"new"


def test_other_links_do_not_notice(proxy: Any, client: Any, connect: Any) -> None:
    proxy.call(proxy.ports.apply, event("partition"))
    assert connect(proxy.address, "node_2").Echo(b"") == b""


def test_event_on_all_reaches_links_to_come(proxy: Any, connect: Any) -> None:
    proxy.call(proxy.ports.apply, NetworkEvent("latency_spike", target_node="*", added_ms=120.0))
    client = connect(proxy.address, "node_9")
    began = time.monotonic()
    client.Echo(b"")
    assert time.monotonic() - began >= 0.120


def test_bandwidth_collapse_acts_on_a_transfer_in_progress(start_proxy: Any, connect: Any, eventually: Any) -> None:
    proxy = start_proxy("average")  # 50 Mbit/s up
    client = connect(proxy.address, "node_1")
    code_of(lambda: client.Echo(b""))
    call = client.Echo.future(bytes(1_000_000))  # 160 ms
    eventually(lambda: proxy.link("node_1").counters(UP).bytes > 10_000)
    proxy.call(proxy.ports.apply, event("bandwidth_collapse", factor=0.2))
    began = time.monotonic()
    code_of(call.result)
    assert time.monotonic() - began > 0.4


def test_upstream_down_is_named_and_found_again(start_proxy: Any, connect: Any, service: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    proxy = start_proxy("direct", upstream=address)
    client = connect(proxy.address, "node_1", options=(("grpc.initial_reconnect_backoff_ms", 100),))
    with capture_logs() as lines:
        for _ in range(2):
            assert code_of(lambda: client.Echo(b"")) == grpc.StatusCode.UNAVAILABLE
    told = [(line["upstream"], line["reason"]) for line in lines if line["event"] == "upstream cannot be reached"]
    assert told == [(address, "Connection refused")]
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((service.handler(),))
    server.add_insecure_port(address)
    server.start()
    assert client.Echo(b"there", wait_for_ready=True) == b"there"
    call = client.Hang.future(b"")
    assert service.hanging.wait(5)
    server.stop(0).wait()
    assert code_of(call.result) in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        http2.PREFACE[:10],
        http2.PREFACE + b"\xff" * 5000,
        http2.PREFACE + http2.settings() + http2.frame(http2.HEADERS, http2.END_HEADERS, 1, b"\xff" * 50),
        http2.PREFACE + http2.settings() + http2.frame(http2.HEADERS, 0, 1, b"\x00" * 100)
        + http2.frame(http2.CONTINUATION, 0, 1, b"\x00" * 16_000) * 100,
        http2.PREFACE + http2.settings() + http2.frame(http2.DATA, 0, 1, bytes(1 << 20)),
        http2.PREFACE + http2.settings() + http2.frame(http2.PUSH_PROMISE, 0, 1, bytes(8)),
        http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0, b"12345"),
    ],
    ids=["http1", "half", "ones", "hpack", "continuation", "idle", "push", "settings"],
)  # fmt: skip
def test_garbage_on_the_port(proxy: Any, client: Any, garbage: bytes) -> None:
    host, port = proxy.address.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        try:
            sock.sendall(garbage)
            if garbage != http2.PREFACE[:10]:
                while sock.recv(65536):
                    pass
        except (ConnectionError, TimeoutError) as error:
            assert not isinstance(error, TimeoutError), "the connection was not ended"
    assert client.Echo(b"still here") == b"still here"


@pytest.mark.parametrize(
    ("said", "hint"), [(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1"), (b"\x16\x03\x01\x02\x00" + bytes(30), "TLS")]
)
def test_client_with_another_protocol_is_told_of_in_the_log(proxy: Any, said: bytes, hint: str) -> None:
    host, port = proxy.address.split(":")
    with capture_logs() as lines, socket.create_connection((host, int(port)), timeout=5) as sock:
        sock.sendall(said)
        with contextlib.suppress(ConnectionError):
            assert sock.recv(1) == b""
    assert [line["client_speaks"].startswith(hint) for line in lines] == [True]


def refuses_clients(address: str) -> bool:
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_drain_lets_open_calls_end(proxy: Any, client: Any, service: Any, eventually: Any) -> None:
    call = client.Hang.future(b"")
    assert service.hanging.wait(5)
    draining = asyncio.run_coroutine_threadsafe(proxy.proxy.drain(5.0), proxy.loop)
    eventually(lambda: refuses_clients(proxy.address))
    assert not draining.done()
    service.cancelled.set()
    assert call.result() == b""
    draining.result(5)
    assert not proxy.proxy.pairs


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


def test_tls_on_either_side(start_proxy: Any, connect: Any, service: Any, certificate: tuple[Path, Path]) -> None:
    pem, key = certificate
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((service.handler(),))
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), pem.read_bytes())])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    proxy = start_proxy(
        "direct", upstream=f"127.0.0.1:{port}", server_tls=ServerTls(pem, key), upstream_tls=UpstreamTls(pem)
    )
    client = connect(proxy.address, "node_1", credentials=grpc.ssl_channel_credentials(pem.read_bytes()))
    assert client.Echo(b"secret") == b"secret"
    assert client.Count(bytes(100_000) for _ in range(50)) == b"5000000"
    assert proxy.link("node_1").rpcs == 2
    with (
        pytest.raises(ssl.SSLError),
        socket.create_connection(("127.0.0.1", int(proxy.address.split(":")[1]))) as plain,
    ):
        context = ssl.create_default_context()
        context.wrap_socket(plain, server_hostname="localhost")
    server.stop(0).wait()
