"""Events of one direction, and events that end connections, with real gRPC through the proxy."""

import queue
import threading
import time
from typing import Any

import grpc
import pytest

from hypergpu.netsim_proxy.link.events import NetworkEvent
from hypergpu.netsim_proxy.link.outcomes import Cause, Direction
from hypergpu.netsim_proxy.link.profiles import find_profile
from hypergpu.netsim_proxy.relay import http2
from hypergpu.netsim_proxy.relay.header_blocks import NO_TABLE, literal
from tests.netsim_proxy.virtual import Relayed
from tests.patience import patience, until


def event(kind: str, **fields: Any) -> NetworkEvent:
    return NetworkEvent(kind, target_node="node_1", **fields)


@pytest.fixture
def proxy(start_proxy: Any) -> Any:
    return start_proxy("direct")


@pytest.fixture
def client(proxy: Any, connect: Any) -> Any:
    client = connect(proxy.address, "node_1", options=(("grpc.max_reconnect_backoff_ms", 100),))
    client.Echo(b"")
    return client


def code_of(call: Any) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code()


def echo_again(client: Any, request: bytes) -> bytes:
    """Return the echo over the next connection; a call that begins on the one that ends fails with it."""

    def echo() -> bytes | None:
        try:
            return bytes(client.Echo(request, wait_for_ready=True))
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE, error
            return None

    return until(echo, "an echo over another connection") or b""


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_spike_of_one_direction_is_paid_once(direction: str, proxy: Any, client: Any) -> None:
    proxy.call(proxy.ports.apply, event("latency_spike", added_ms=150.0, direction=direction))
    began = time.monotonic()
    client.Echo(b"")
    assert 0.150 <= time.monotonic() - began < 0.29  # 0.3 s were it paid both ways


def test_a_request_passes_and_its_answer_does_not(proxy: Any, client: Any, service: Any) -> None:
    calls = service.calls
    proxy.call(proxy.ports.apply, event("partition", direction="down"))
    call = client.Echo.future(b"held")
    assert code_of(lambda: client.Echo(b"", timeout=0.3)) == grpc.StatusCode.DEADLINE_EXCEEDED
    assert service.calls == calls + 2  # the server has acted
    proxy.call(proxy.ports.apply, event("recovery"))
    assert call.result(5) == b"held"


def test_a_request_does_not_pass_though_answers_do(proxy: Any, client: Any, service: Any, eventually: Any) -> None:
    stream = client.Produce(b"100000 100")
    next(stream)
    calls = service.calls
    proxy.call(proxy.ports.apply, event("disconnect", direction="up"))
    call = client.Echo.future(b"held")
    read = sum(1 for _, _ in zip(range(200), stream, strict=False))
    assert (read, service.calls) == (200, calls)
    proxy.call(proxy.ports.clear)
    assert call.result(5) == b"held"
    stream.cancel()


def test_a_reset_of_one_direction_strikes_whoever_sends_there(proxy: Any, client: Any, eventually: Any) -> None:
    stream = client.Produce(b"3 100")
    list(stream)
    proxy.call(proxy.ports.apply, event("disconnect", mode="reset", direction="up", duration_seconds=0.5))
    assert code_of(lambda: client.Echo(b"")) == grpc.StatusCode.UNAVAILABLE
    assert proxy.link("node_1").losses[Cause.DISCONNECTED] >= 1
    eventually(lambda: proxy.call(lambda: proxy.link("node_1").state(time.monotonic())) == "up")
    assert echo_again(client, b"again") == b"again"


def test_a_connection_ends_after_its_bytes_and_what_came_before_arrives(proxy: Any, client: Any, service: Any) -> None:
    before = proxy.link("node_1").counters(Direction.DOWN).bytes
    proxy.call(proxy.ports.apply, event("limit_data", limit_bytes=300_000, direction="down"))
    # One message at a time: gRPC throws away what its user has not taken when a connection ends.
    asked: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    answers = client.Chat(iter(asked.get, b""))
    received = 0
    with pytest.raises(grpc.RpcError) as caught:
        while True:
            asked.put(bytes(100_000))
            received += len(next(answers))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert received == 200_000
    asked.put(b"")
    assert proxy.link("node_1").counters(Direction.DOWN).bytes - before <= 300_000
    assert proxy.link("node_1").losses[Cause.LIMIT_DATA] >= 1
    assert echo_again(client, bytes(100_000)) == bytes(100_000)  # another connection
    proxy.call(proxy.ports.clear)
    assert len(list(client.Produce(b"10 100000"))) == 10


def test_a_connection_lasts_so_long_and_carries_data_meanwhile(proxy: Any, client: Any, service: Any) -> None:
    began = time.monotonic()
    proxy.call(proxy.ports.apply, event("limit_time", close_after_seconds=0.4))
    assert client.Echo(b"x") == b"x"
    assert code_of(lambda: client.Hang(b"", timeout=patience(5))) == grpc.StatusCode.UNAVAILABLE
    assert 0.4 <= time.monotonic() - began < patience(2)
    service.cancelled = threading.Event()  # the first call sets its own when it is cancelled
    began = time.monotonic()
    assert echo_again(client, b"x") == b"x"
    assert code_of(lambda: client.Hang(b"", timeout=patience(5))) == grpc.StatusCode.UNAVAILABLE
    assert 0.2 <= time.monotonic() - began < patience(2)  # the second has its own time


def test_a_timeout_carries_nothing_and_then_closes(proxy: Any, client: Any, service: Any) -> None:
    calls = service.calls
    began = time.monotonic()
    proxy.call(proxy.ports.apply, event("timeout", close_after_seconds=0.4))
    assert code_of(lambda: client.Echo(b"", timeout=patience(5))) == grpc.StatusCode.UNAVAILABLE
    assert 0.4 <= time.monotonic() - began < patience(2) and service.calls == calls
    proxy.call(proxy.ports.clear)
    assert echo_again(client, b"x") == b"x"


@pytest.mark.parametrize("cleared", [True, False])
def test_an_event_that_is_ended_closes_no_connection(cleared: bool) -> None:
    both = Relayed(find_profile("direct"))
    block = NO_TABLE + literal(b":path", b"/a/b") + literal(b"x-node-id", b"node_1")
    both.up(http2.settings(), http2.header_frames(1, block, False, 16_384))
    both.links.apply(event("limit_time", close_after_seconds=0.3))
    if cleared:
        both.links.clear()
    both.pacer.wait(0.29)
    assert not both.pair.closed
    both.pacer.wait(0.02)
    assert both.pair.closed is not cleared
