"""Other people's gRPC through the proxy: all that gRPC does must pass as if the proxy were not there."""

import contextlib
import gzip
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
import pytest

from hypergpu.netsim_proxy.link.distributions import Uniform
from hypergpu.netsim_proxy.link.outcomes import Direction
from hypergpu.netsim_proxy.link.profiles import Loss, Path, Profile

Answer = TypeVar("Answer")


def fixed(rtt_ms: float, *, mbit: float = float("inf"), loss: float = 0.0) -> Profile:
    """A link without jitter."""
    path = Path(Uniform(rtt_ms / 2000, rtt_ms / 2000), mbit, Loss(loss))
    return Profile("fixed", path, path)


def at_once(call: Callable[[int], Answer], count: int) -> list[Answer]:
    """Make so many calls together, as each lost one takes its time."""
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(call, range(count)))


def timed(call: Callable[[], object]) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    call()
    return time.monotonic() - began


@pytest.fixture(params=["direct", "perfect", "20 ms"])
def client(request: Any, start_proxy: Any, connect: Any) -> Any:
    profile = fixed(20) if request.param == "20 ms" else request.param
    return connect(start_proxy(profile).address, "node_1")


def test_unary_with_metadata_of_all_kinds(client: Any, service: Any) -> None:
    reply, call = client.Echo.with_call(
        b"hello", metadata=(("x-text", "ä".encode().hex()), ("x-raw-bin", b"\x00\x01\xff"))
    )
    assert reply == b"hello"
    assert service.metadata["x-raw-bin"] == b"\x00\x01\xff"
    assert service.metadata["x-text"] == "ä".encode().hex()
    assert service.metadata["x-node-id"] == "node_1"
    assert dict(call.initial_metadata())["x-first-bin"] == b"\x00\xff"
    assert dict(call.trailing_metadata())["x-last-bin"] == b"\xff\x00"
    assert dict(call.trailing_metadata())["x-last"] == "2"


def test_status_with_details(client: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.Fail(b"")
    assert caught.value.code() == grpc.StatusCode.ALREADY_EXISTS
    assert caught.value.details() == "there is one: ü %"
    trailers: Any = caught.value.trailing_metadata()
    assert dict(trailers)["grpc-status-details-bin"] == b"\x08\x07details"


def test_unimplemented(client: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.Nothing(b"")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_streams_both_ways(client: Any) -> None:
    assert client.Count(bytes(1000) for _ in range(50)) == b"50000"
    assert [len(part) for part in client.Produce(b"50 1000")] == [1000] * 50
    assert list(client.Chat(iter([b"a", b"b", b"c"]))) == [b"a", b"b", b"c", b"end"]


def test_half_closing_late(client: Any) -> None:
    answered = threading.Event()

    def requests() -> Iterator[bytes]:
        yield b"1"
        assert answered.wait(5)
        yield b"2"

    answers = client.Chat(requests())
    assert next(answers) == b"1"
    answered.set()
    assert list(answers) == [b"2", b"end"]


def test_server_that_answers_before_the_client_has_ended(client: Any) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(10_000)

    with pytest.raises(grpc.RpcError) as caught:
        client.Early(endless())
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert client.Echo(b"after") == b"after"


def test_deadline_passes_to_the_server(client: Any, service: Any) -> None:
    client.Echo(b"", timeout=7)
    assert 5 < service.time_left <= 7
    with pytest.raises(grpc.RpcError) as caught:
        client.Hang(b"", timeout=0.2)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert service.cancelled.wait(5)


def test_cancellation_by_the_client(client: Any, service: Any) -> None:
    call = client.Hang.future(b"")
    assert service.hanging.wait(5)
    assert call.cancel()
    assert service.cancelled.wait(5)
    stream = client.Produce(b"1000000 100000")
    next(iter(stream))
    service.cancelled.clear()
    stream.cancel()
    assert service.cancelled.wait(5)
    assert client.Echo(b"after") == b"after"


def test_compression(start_proxy: Any, connect: Any) -> None:
    proxy = start_proxy("direct")
    client = connect(proxy.address, "node_1", compression=grpc.Compression.Gzip)
    assert client.Echo(bytes(1 << 20)) == bytes(1 << 20)
    assert proxy.link("node_1").counters(Direction.UP).bytes < 100_000
    assert len(gzip.compress(bytes(1 << 20))) < 100_000


def test_big_messages(client: Any) -> None:
    message = bytes(range(256)) * (32 << 12)
    assert client.Echo(message) == message


def test_a_hundred_streams_at_once(client: Any) -> None:
    calls = [client.Echo.future(str(i).encode() * 100) for i in range(100)]
    assert [call.result() for call in calls] == [str(i).encode() * 100 for i in range(100)]
    streams = [client.Chat(iter([str(i).encode()] * 5)) for i in range(30)]
    for i, stream in enumerate(streams):
        assert list(stream) == [str(i).encode()] * 5 + [b"end"]


def test_requests_overtake_on_one_connection(start_proxy: Any, connect: Any, service: Any) -> None:
    """Delays between 50 and 500 ms reorder requests, which HTTP/2 only takes if they are renumbered."""
    profile = Profile("wild", Path(Uniform(0, 0.05)), Path(Uniform(0, 0.05)))
    client = connect(start_proxy(profile).address, "node_1")
    for _ in range(3):
        calls = [client.Echo.future(bytes([i])) for i in range(60)]
        assert [call.result() for call in calls] == [bytes([i]) for i in range(60)]
    assert list(client.Chat(iter([b"x"] * 20))) == [b"x"] * 20 + [b"end"]
    assert client.Count(bytes(100_000) for _ in range(20)) == b"2000000"


def test_many_links_on_one_connection(start_proxy: Any, connect: Any) -> None:
    proxy = start_proxy("direct", ports={"node_profiles": {"slow": (fixed(120), ""), "fast": (fixed(10), "")}})
    client = connect(proxy.address)
    client.Echo(b"")
    began = time.monotonic()
    slow = client.channel.unary_unary("/test.Service/Echo").future(b"", metadata=(("x-node-id", "slow"),))
    fast = client.channel.unary_unary("/test.Service/Echo").future(b"", metadata=(("x-node-id", "fast"),))
    fast.result(5)
    assert 0.010 <= time.monotonic() - began < 0.11
    slow.result(5)
    assert time.monotonic() - began >= 0.120
    assert {port.name for port in proxy.ports} == {"slow", "fast", "default"}


def test_round_trip_is_what_the_profile_says(start_proxy: Any, connect: Any) -> None:
    client = connect(start_proxy(fixed(60)).address, "node_1")
    client.Echo(b"")
    seconds = [timed(lambda: client.Echo(b"x" * 100)) for _ in range(5)]
    assert 0.060 <= min(seconds) < 0.1  # the others may have waited for a core


def test_deliveries_are_never_early_and_on_time(start_proxy: Any, connect: Any) -> None:
    proxy = start_proxy(Profile("j", Path(Uniform(0.01, 0.05)), Path(Uniform(0.01, 0.05))))
    client = connect(proxy.address, "node_1")
    client.Echo(b"")
    proxy.lateness.clear()
    for call in [client.Echo.future(b"") for _ in range(100)]:
        call.result()
    late = sorted(proxy.lateness)
    assert len(late) >= 200 and late[0] >= 0
    assert late[len(late) // 2] < 0.005  # the figure to hold is in the benchmark; this machine is shared


def test_bandwidth_is_shared_by_the_streams_of_a_link(start_proxy: Any, connect: Any) -> None:
    proxy = start_proxy(fixed(0, mbit=80))
    clients = [connect(proxy.address, "node_1") for _ in range(2)]
    for client in clients:
        client.Echo(b"")

    def four_at_once() -> None:
        calls = [client.Echo.future(bytes(1_000_000)) for client in clients for _ in range(2)]
        for call in calls:
            call.result()

    # 4 MB up at 10 MB/s, and the first of them back meanwhile; on a busy machine one of three may have got a core.
    assert 0.4 * 0.98 <= min(timed(four_at_once) for _ in range(3)) < 0.6


@pytest.mark.parametrize("profile", ["direct", "good", "slow"])
def test_slow_reader_holds_back_its_writer(
    profile: str, start_proxy: Any, connect: Any, service: Any, at_rest: Any
) -> None:
    proxy = start_proxy(fixed(10) if profile == "slow" else profile)
    # gRPC would widen the reader's window by what it measures, with and without us: what we hold counts here.
    client = connect(proxy.address, "node_1", options=(("grpc.http2.bdp_probe", 0),))
    stream = client.Produce(b"100 1048576")
    next(iter(stream))
    assert at_rest(lambda: service.sent) <= 8 << 20
    assert proxy.call(lambda: sum(proxy.ports.known("node_1").in_flight)) <= 4 << 20
    assert sum(map(len, stream)) == 99 << 20


@pytest.mark.parametrize("rtt_ms", [0, 20])
def test_reader_that_stops_midway_holds_back_its_writer(
    rtt_ms: float, start_proxy: Any, connect: Any, service: Any, at_rest: Any
) -> None:
    """gRPC has measured the path by then, and opened its window to it."""
    proxy = start_proxy(fixed(rtt_ms, mbit=800 if rtt_ms else math.inf))
    stream = connect(proxy.address, "node_1").Produce(b"150 1048576")
    read = sum(len(part) for part in itertools.islice(stream, 60))
    assert at_rest(lambda: service.sent) - read <= 24 << 20
    assert sum(map(len, stream)) == 90 << 20


def test_slow_service_holds_back_its_client(start_proxy: Any, connect: Any, service: Any, at_rest: Any) -> None:
    sent = 0

    def requests() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(60):
            sent += 1 << 20
            yield bytes(1 << 20)

    call = connect(start_proxy("direct").address, "node_1").Wait.future(requests())
    assert 0 < at_rest(lambda: sent) <= 24 << 20
    service.released.set()
    assert call.result() == str(60 << 20).encode()


@pytest.mark.parametrize("kind", ["unary", "down", "up", "chat"])
def test_lost_rpcs_fail_as_unavailable_and_name_the_proxy(
    start_proxy: Any, connect: Any, service: Any, kind: str
) -> None:
    proxy = start_proxy(fixed(4, loss=0.5), seed=5)
    client = connect(proxy.address, "node_1")
    calls: dict[str, Callable[[], Any]] = {
        "unary": lambda: client.Echo(b"x"),
        "down": lambda: sum(map(len, client.Produce(b"20 100000"))),
        "up": lambda: client.Count(bytes(100_000) for _ in range(20)),
        "chat": lambda: list(client.Chat(iter([b"x"] * 5))),
    }

    def is_lost(_: int) -> bool:
        try:
            calls[kind]()
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            details = error.details() or ""
            assert "netsim" in details and "node_1" in details
            return True
        return False

    lost = sum(at_once(is_lost, 24))
    link = proxy.link("node_1")
    assert lost == link.rpcs_lost and 3 <= lost <= 21
    assert link.rpcs == 24
    if kind == "unary":  # some requests were lost on their way, others only after the service had acted
        assert 24 - lost < service.calls < 24


def test_flow_control_survives_losses(start_proxy: Any, connect: Any) -> None:
    """What is swallowed must be given back to the connection's window, or it would end in a stall."""
    proxy = start_proxy(fixed(1, loss=0.5), seed=2)
    client = connect(proxy.address, "node_1")

    def lose(_: int) -> None:
        with contextlib.suppress(grpc.RpcError):
            client.Count(bytes(250_000) for _ in range(4))
        with contextlib.suppress(grpc.RpcError):
            sum(map(len, client.Produce(b"4 250000")))

    at_once(lose, 30)
    assert proxy.link("node_1").rpcs_lost >= 10
    proxy.call(proxy.ports.set_profile, "node_1", fixed(0))
    assert client.Count(bytes(250_000) for _ in range(20)) == b"5000000"
    assert sum(map(len, client.Produce(b"20 250000"))) == 5_000_000
