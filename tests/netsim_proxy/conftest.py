"""A gRPC service that is not ours, and a proxy in a thread of its own in front of it."""

import asyncio
import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop

from hypergpu.netsim_proxy.io.link_registry import LinkRegistry
from hypergpu.netsim_proxy.io.pacer import Pacer
from hypergpu.netsim_proxy.io.passthrough import PassThrough
from hypergpu.netsim_proxy.io.server import Proxy
from hypergpu.netsim_proxy.link.profiles import Profile, find_profile

UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
Method = Callable[..., Any]


class Service:
    """Echoes, counts, streams, fails: what tests need of a service; it remembers what it saw."""

    def __init__(self) -> None:
        self.calls = 0
        self.sent = 0
        self.cancelled = threading.Event()
        self.hanging = threading.Event()
        """A call of Hang has begun."""
        self.released = threading.Event()
        """Wait may read what it was sent."""
        self.metadata: dict[str, str | bytes] = {}
        self.time_left = 0.0

    def echo(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.calls += 1
        self.metadata = dict(context.invocation_metadata())
        self.time_left = context.time_remaining() or 0.0
        context.send_initial_metadata((("x-first", "1"), ("x-first-bin", b"\x00\xff")))
        context.set_trailing_metadata((("x-last", "2"), ("x-last-bin", b"\xff\x00")))
        return request

    def fail(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\x08\x07details"),))
        context.abort(grpc.StatusCode.ALREADY_EXISTS, "there is one: ü %")
        return b""

    def hang(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        context.add_callback(self.cancelled.set)
        self.hanging.set()
        self.cancelled.wait(10)
        return b""

    def count(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        return str(sum(len(request) for request in requests)).encode()

    def wait(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        self.released.wait(10)
        return self.count(requests, context)

    def produce(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(self.cancelled.set)
        count, size = map(int, request.split())
        for _ in range(count):
            self.sent += size
            yield bytes(size)

    def chat(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield from requests
        yield b"end"

    def early(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        next(requests)
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "enough")
        return b""

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "test.Service",
            {
                "Echo": grpc.unary_unary_rpc_method_handler(self.echo),
                "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
                "Hang": grpc.unary_unary_rpc_method_handler(self.hang),
                "Count": grpc.stream_unary_rpc_method_handler(self.count),
                "Wait": grpc.stream_unary_rpc_method_handler(self.wait),
                "Early": grpc.stream_unary_rpc_method_handler(self.early),
                "Produce": grpc.unary_stream_rpc_method_handler(self.produce),
                "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
            },
        )


class Running:
    """A proxy that runs in its own thread: `call` runs a function in its event loop."""

    def __init__(self, upstream: str, profile: Profile, seed: int, **options: Any) -> None:
        self.lateness: list[float] = []
        self._started = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=lambda: uvloop.run(self._main(upstream, profile, seed, options)))
        self._thread.start()
        self._started.wait(10)
        if self._error is not None:
            raise self._error

    async def _main(self, upstream: str, profile: Profile, seed: int, options: dict[str, Any]) -> None:
        try:
            self.loop = asyncio.get_running_loop()
            self._stop = asyncio.Event()
            self.errors: list[dict[str, Any]] = []
            self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
            self.pacer = Pacer(self.lateness.append)
            self.ports = LinkRegistry(self.pacer, profile, seed, **options.pop("ports", {}))
            self.proxy = Proxy(upstream, self.ports, self.pacer, **options)
            self.address = await self.proxy.listen("127.0.0.1:0")
            self.passing = PassThrough(
                upstream, self.ports, self.pacer, link_map=lambda: self.proxy.link_map, numbers=self.proxy.numbers
            )
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._started.set()
        await self._stop.wait()
        await self.passing.drain(0.0)
        await self.proxy.drain(0.0)
        self.pacer.close()

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        async def run() -> Any:
            return function(*args)

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def wait_for(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def link(self, node_id: str) -> Any:
        return self.ports.known(node_id).link

    def close(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(10)
        assert not self.errors, self.errors


class Client:
    """The service through some address."""

    def __init__(self, channel: grpc.Channel, node_id: str | None) -> None:
        self.channel = channel
        self.metadata = (("x-node-id", node_id),) if node_id else ()

    def __getattr__(self, name: str) -> Method:
        kind = {
            "Count": "stream_unary",
            "Early": "stream_unary",
            "Wait": "stream_unary",
            "Produce": "unary_stream",
            "Chat": "stream_stream",
        }
        method = getattr(self.channel, kind.get(name, "unary_unary"))(f"/test.Service/{name}")

        def call(request: Any, **options: Any) -> Any:
            options["metadata"] = (*self.metadata, *options.get("metadata", ()))
            return method(request, **{"timeout": 20, **options})

        def with_call(request: Any, **options: Any) -> Any:
            options["metadata"] = (*self.metadata, *options.get("metadata", ()))
            return method.with_call(request, **{"timeout": 20, **options})

        def future(request: Any, **options: Any) -> Any:
            return method.future(request, metadata=self.metadata, **{"timeout": 20, **options})

        call.with_call, call.future = with_call, future  # type: ignore[attr-defined]  # as grpc's own callables have
        return call


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def upstream(service: Service) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(128), options=UNLIMITED)
    server.add_generic_rpc_handlers((service.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.fixture
def start_proxy(upstream: str) -> Iterator[Callable[..., Running]]:
    """Starts a proxy before the service: `start_proxy("good", seed=3)`."""
    with contextlib.ExitStack() as stack:

        def start(profile: str | Profile = "direct", seed: int = 1, **options: Any) -> Running:
            found = find_profile(profile) if isinstance(profile, str) else profile
            running = Running(options.pop("upstream", upstream), found, seed, **options)
            stack.callback(running.close)
            return running

        yield start


@pytest.fixture
def connect() -> Iterator[Callable[..., Client]]:
    """A client of an address: `connect(address, "node_1")`."""
    with contextlib.ExitStack() as stack:

        def open_client(address: str, node_id: str | None = None, **options: Any) -> Client:
            pairs = (*UNLIMITED, ("grpc.use_local_subchannel_pool", 1), *options.pop("options", ()))
            credentials = options.pop("credentials", None)
            channel = (
                grpc.secure_channel(address, credentials, pairs, **options)
                if credentials
                else grpc.insecure_channel(address, pairs, **options)
            )
            stack.callback(channel.close)
            return Client(channel, node_id)

        yield open_client


@pytest.fixture
def eventually() -> Callable[[Callable[[], Any]], None]:
    """Waits until something holds: `eventually(lambda: counter == 3)`."""

    def wait(condition: Callable[[], Any], seconds: float = 5.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it never came true"
            time.sleep(0.005)

    return wait


@pytest.fixture
def at_rest() -> Callable[[Callable[[], int]], int]:
    """Waits until a figure does not change any longer, and returns it: `at_rest(lambda: service.sent)`."""

    def wait(figure: Callable[[], int], for_seconds: float = 0.3, seconds: float = 30.0) -> int:
        end = time.monotonic() + seconds
        last, since = figure(), time.monotonic()
        while time.monotonic() - since < for_seconds:
            assert time.monotonic() < end, "it never came to rest"
            time.sleep(0.005)
            if figure() != last:
                last, since = figure(), time.monotonic()
        return last

    return wait


class Authority:
    """Signs certificates for names on this machine."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.certificate, self.key = directory / f"{name}.crt", directory / f"{name}.key"
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
            *("-keyout", self.key, "-out", self.certificate, "-subj", f"/CN={name}"),
            *("-addext", "basicConstraints=critical,CA:TRUE"),
        )

    def sign(self, name: str) -> tuple[Path, Path]:
        """A certificate for this name and localhost, and its key."""
        certificate, key = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        request, extension = self.directory / f"{name}.csr", self.directory / f"{name}.ext"
        extension.write_text(f"subjectAltName=DNS:{name},DNS:localhost,IP:127.0.0.1\n")
        _openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", key, "-out", request, "-subj", f"/CN={name}"),
        )
        _openssl(
            *("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key, "-CAcreateserial"),
            *("-days", "2", "-extfile", extension, "-out", certificate),
        )
        return certificate, key


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority whom nobody knows."""
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")
