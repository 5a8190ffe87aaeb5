"""The state of connections is emulated, not only calls: how they open and end, and what a wrong upstream says."""

import contextlib
import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from hypergpu.netsim_proxy.io.throttle import Throttle
from hypergpu.netsim_proxy.io.upstream_errors import mistake_in
from hypergpu.netsim_proxy.link.distributions import Uniform
from hypergpu.netsim_proxy.link.events import NetworkEvent
from hypergpu.netsim_proxy.link.outcomes import UP
from hypergpu.netsim_proxy.link.profiles import Loss, Profile
from hypergpu.netsim_proxy.link.profiles import Path as LinkPath
from hypergpu.netsim_proxy.relay import http2
from hypergpu.netsim_proxy.relay.header_blocks import NO_TABLE, literal
from hypergpu.netsim_proxy.relay.hosts import Hosts

QUICK = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 100),
)
SLOW = LinkPath(Uniform(0.15, 0.15), math.inf, Loss(0.0))


def dead_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


def event(kind: str, node: str = "node_1", **fields: Any) -> NetworkEvent:
    return NetworkEvent(kind, target_node=node, **fields)


class States:
    """The states that a channel has been in."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.seen: list[grpc.ChannelConnectivity] = []
        channel.subscribe(self.seen.append, try_to_connect=True)


# --- no upstream


def test_a_client_is_not_ready_while_there_is_no_upstream(start_proxy: Any, connect: Any, eventually: Any) -> None:
    proxy = start_proxy("direct", upstream=dead_address())
    client = connect(proxy.address, "node_1", options=QUICK)
    states = States(client.channel)
    eventually(lambda: grpc.ChannelConnectivity.TRANSIENT_FAILURE in states.seen)
    with pytest.raises(grpc.RpcError) as caught:
        client.Echo(b"")
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert grpc.ChannelConnectivity.READY not in states.seen


def test_wait_for_ready_waits_for_the_upstream(start_proxy: Any, connect: Any, service: Any, eventually: Any) -> None:
    address = dead_address()
    proxy = start_proxy("direct", upstream=address)
    client = connect(proxy.address, "node_1", options=QUICK)
    states = States(client.channel)
    call = futures.ThreadPoolExecutor(1).submit(client.Echo, b"there", wait_for_ready=True)
    eventually(lambda: grpc.ChannelConnectivity.TRANSIENT_FAILURE in states.seen)
    assert not call.done()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((service.handler(),))
    server.add_insecure_port(address)
    server.start()
    assert call.result(10) == b"there"
    server.stop(0).wait()


@pytest.mark.parametrize("policy", ["pick_first", "round_robin"])
def test_of_two_servers_one_is_dead(start_proxy: Any, connect: Any, policy: str) -> None:
    dead, alive = start_proxy("direct", upstream=dead_address()), start_proxy("direct")
    target = f"ipv4:{dead.address},{alive.address}"
    service_config = json.dumps({"loadBalancingConfig": [{policy: {}}]})
    client = connect(target, "node_1", options=(*QUICK, ("grpc.service_config", service_config)))
    assert [client.Echo(b"x") for _ in range(80)] == [b"x"] * 80


# --- events


@pytest.mark.parametrize("mode", ["reset", "black_hole"])
def test_clients_fail_over_while_a_link_is_down(start_proxy: Any, connect: Any, service: Any, mode: str) -> None:
    first, second = start_proxy("direct"), start_proxy("direct")
    before = connect(first.address, "node_1")
    before.Echo(b"")
    before.channel.close()  # so that the next connection is taken for this client's
    first.call(first.ports.apply, event("disconnect", mode=mode))
    client = connect(f"ipv4:{first.address},{second.address}", "node_1", options=QUICK)
    assert [client.Echo(b"x", timeout=5) for _ in range(10)] == [b"x"] * 10
    assert second.link("node_1").rpcs == 10


def test_a_connection_is_opened_when_the_black_hole_ends(start_proxy: Any, connect: Any, eventually: Any) -> None:
    proxy = start_proxy("direct")
    proxy.call(proxy.ports.apply, event("disconnect", node="*", mode="black_hole"))
    client = connect(proxy.address, "node_1")
    states = States(client.channel)
    eventually(lambda: grpc.ChannelConnectivity.CONNECTING in states.seen)
    assert grpc.ChannelConnectivity.READY not in states.seen
    proxy.call(proxy.ports.clear)
    eventually(lambda: states.seen[-1] == grpc.ChannelConnectivity.READY)


def test_lost_links_of_hosts_are_remembered_and_bounded() -> None:
    hosts = Hosts()
    for number in range(16):
        hosts.joined("a", f"node_{number:02}")
    assert hosts.presumed("a") == []
    for number in range(16):
        hosts.left("a", f"node_{number:02}")
    assert hosts.presumed("a") == [f"node_{number:02}" for number in range(16)]
    hosts.joined("a", "node_16")
    hosts.left("a", "node_16")
    assert hosts.presumed("a") == []


def test_a_link_is_presumed_when_its_last_connection_is_gone() -> None:
    hosts = Hosts()
    hosts.joined("a", "node_1")
    hosts.joined("a", "node_1")
    hosts.left("a", "node_1")
    assert hosts.presumed("a") == []
    hosts.left("a", "node_1")
    assert hosts.presumed("a") == ["node_1"]
    hosts.left("a", "node_1")
    hosts.joined("a", "node_1")
    assert hosts.presumed("a") == []


def test_the_host_seen_least_recently_is_forgotten() -> None:
    hosts = Hosts()
    for number in range(4096):
        hosts.joined(f"host {number}", "node_1")
        hosts.left(f"host {number}", "node_1")
    hosts.joined("host 0", "node_2")
    hosts.joined("one more", "node_1")
    assert hosts.presumed("host 1") == []
    assert hosts.presumed("host 0") == hosts.presumed("host 2") == ["node_1"]


def test_a_host_is_let_in_while_one_of_the_links_that_it_lost_is_up(start_proxy: Any) -> None:
    proxy = start_proxy("direct")

    def ask() -> bool:
        for node in ("node_1", "node_2"):
            proxy.ports.hosts.joined("h", node)
            proxy.ports.hosts.left("h", node)
        proxy.ports.apply(event("partition", node="node_1"))
        one = proxy.ports.blocks_opening("h") is None
        proxy.ports.apply(event("partition", node="node_2"))
        return one and proxy.ports.blocks_opening("h") is not None and proxy.ports.blocks_opening("other") is None

    assert proxy.call(ask)


# --- the end of a connection


class Upstream:
    """An HTTP/2 server that answers the first request when told, and can be killed."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"

    def accept(self) -> socket.socket:
        sock, _ = self.listener.accept()
        sock.sendall(http2.settings() + http2.frame(http2.SETTINGS, http2.ACK, 0))
        sock.settimeout(5)
        return sock


@pytest.fixture
def server() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.listener.close()


def test_the_end_of_a_server_takes_as_long_as_the_link(start_proxy: Any, connect: Any, server: Upstream) -> None:
    proxy = start_proxy(Profile("slow", SLOW, SLOW), upstream=server.address)
    call = connect(proxy.address, "node_1").Hang.future(b"")
    sock = server.accept()
    while b"/test.Service/Hang" not in sock.recv(1 << 16):
        pass
    began = time.monotonic()
    sock.close()
    with pytest.raises(grpc.RpcError) as caught:
        call.result(5)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - began >= 0.15


def test_the_end_of_a_client_takes_as_long_as_the_link(start_proxy: Any, connect: Any, server: Upstream) -> None:
    proxy = start_proxy(Profile("slow", SLOW, SLOW), upstream=server.address)
    client = connect(proxy.address, "node_1")
    call = client.Hang.future(b"")
    sock = server.accept()
    while b"/test.Service/Hang" not in sock.recv(1 << 16):
        pass
    began = time.monotonic()
    assert not call.done()
    client.channel.close()
    with contextlib.suppress(ConnectionError):
        while sock.recv(1 << 16):
            pass
    assert time.monotonic() - began >= 0.15
    sock.close()


def is_upstream_gone(proxy: Any) -> bool:
    """Whether the proxy knows that the upstream has closed its only connection."""
    (pair,) = proxy.proxy.pairs
    return bool(pair.writers[UP.ordinal].closed)


def test_a_killed_server_is_not_heard_of_inside_a_black_hole(
    start_proxy: Any, connect: Any, server: Upstream, eventually: Any
) -> None:
    proxy = start_proxy("direct", upstream=server.address)
    call = connect(proxy.address, "node_1").Hang.future(b"")
    sock = server.accept()
    while b"/test.Service/Hang" not in sock.recv(1 << 16):
        pass
    proxy.call(proxy.ports.apply, event("disconnect", mode="black_hole"))
    sock.close()
    eventually(lambda: is_upstream_gone(proxy))
    assert not call.done()
    proxy.call(proxy.ports.clear)
    with pytest.raises(grpc.RpcError):
        call.result(5)


def test_a_reply_given_in_the_hole_arrives_before_the_end(
    start_proxy: Any, connect: Any, server: Upstream, eventually: Any
) -> None:
    proxy = start_proxy("direct", upstream=server.address)
    call = connect(proxy.address, "node_1").Hang.future(b"")
    sock = server.accept()
    while b"/test.Service/Hang" not in sock.recv(1 << 16):
        pass
    proxy.call(proxy.ports.apply, event("disconnect", mode="black_hole"))
    head = NO_TABLE + b"\x88" + literal(b"content-type", b"application/grpc")
    sock.sendall(
        http2.header_frames(1, head, False, 16_384)
        + http2.frame(http2.DATA, 0, 1, b"\0\0\0\0\x02ok")
        + http2.header_frames(1, NO_TABLE + literal(b"grpc-status", b"0"), True, 16_384)
    )
    sock.close()
    eventually(lambda: is_upstream_gone(proxy))
    assert not call.done()
    proxy.call(proxy.ports.clear)
    assert call.result(5) == b"ok"


# --- an upstream that is not what it should be


class Peer:
    """A TCP server that says something to each connection and closes it."""

    def __init__(self, says: bytes, waits: bool = True) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self._says, self._waits = says, waits
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                with sock, contextlib.suppress(OSError):
                    if self._waits:
                        sock.recv(1 << 16)
                    sock.sendall(self._says)


@pytest.mark.parametrize(
    ("says", "hint"),
    [
        (b"\x15\x03\x01\x00\x02\x02\x16", "speaks TLS"),
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", "speaks HTTP/1"),
        (b"220 mail.example.org ESMTP\r\n", "does not speak HTTP/2"),
    ],
)
def test_an_upstream_of_another_kind_is_named(start_proxy: Any, connect: Any, says: bytes, hint: str) -> None:
    peer = Peer(says)
    proxy = start_proxy("direct", upstream=peer.address)
    with capture_logs() as lines, pytest.raises(grpc.RpcError) as caught:
        connect(proxy.address, "node_1").Echo(b"")
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert f"upstream {peer.address} {hint}" in (caught.value.details() or "")
    told = [line for line in lines if line["event"] == "upstream cannot be used"]
    assert len(told) == 1
    assert hint in told[0]["reason"]
    peer.listener.close()


def test_an_upstream_that_closes_at_once_makes_nobody_ready(start_proxy: Any, connect: Any, eventually: Any) -> None:
    peer = Peer(b"", waits=False)
    proxy = start_proxy("direct", upstream=peer.address)
    client = connect(proxy.address, "node_1", options=QUICK)
    with capture_logs() as lines:
        states = States(client.channel)
        with pytest.raises(grpc.RpcError) as caught:
            client.Echo(b"")
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        eventually(lambda: any("closes each connection" in line.get("reason", "") for line in lines))
    assert grpc.ChannelConnectivity.READY not in states.seen
    peer.listener.close()


def test_mistakes_are_told_by_the_first_bytes() -> None:
    assert mistake_in(http2.settings()) is None
    assert mistake_in(http2.settings()[:8]) == "does not speak HTTP/2"
    assert mistake_in(http2.frame(http2.SETTINGS, 0, 1)) == "does not speak HTTP/2"
    assert mistake_in(http2.goaway(0, 0)) == "does not speak HTTP/2"


def test_the_same_trouble_is_logged_once_in_a_while() -> None:
    now = [0.0]
    throttle = Throttle(lambda: now[0])
    with capture_logs() as lines:
        for at in (0.0, 1.0, 9.9, 10.0):
            now[0] = at
            throttle.warning("trouble", "this", upstream="u")
        throttle.warning("trouble", "that")
    assert [(line["reason"], line.get("left_out")) for line in lines] == [("this", None), ("this", 2), ("that", None)]
