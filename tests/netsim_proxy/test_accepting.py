"""Clients that cannot be accepted, and work for them that fails: told once, and the proxy goes on."""

import asyncio
import errno
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from hypergpu.common.background import Background
from hypergpu.netsim_proxy.io import listener as module
from hypergpu.netsim_proxy.io.listener import Listener, bind_sockets
from hypergpu.netsim_proxy.io.throttle import Throttle
from hypergpu.netsim_proxy.io.tls import ServerTls


class Scarce:
    """A listening socket for whose clients there is at times no descriptor."""

    def __init__(self, real: socket.socket, code: int = errno.EMFILE) -> None:
        self.real, self.code = real, code
        self.refusals_left = 0
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def accept(self) -> tuple[socket.socket, Any]:
        if self.refusals_left:
            self.refusals_left -= 1
            self.refused += 1
            raise OSError(self.code, "Too many open files")
        return self.real.accept()


class Accepted(asyncio.Protocol):
    def __init__(self, seen: asyncio.Queue[Any]) -> None:
        self._seen = seen

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._seen.put_nowait(transport.get_extra_info("peername"))
        transport.close()


@pytest.fixture
async def scarce() -> Scarce:
    return Scarce((await bind_sockets("127.0.0.1", 0, 10))[0])


@pytest.fixture
async def seen() -> asyncio.Queue[Any]:
    return asyncio.Queue()


@pytest.fixture
async def accepting(
    scarce: Scarce, seen: asyncio.Queue[Any], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Listener]:
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.001)
    background = Background()
    listener = Listener([scarce], lambda: Accepted(seen), None, background, Throttle())  # type: ignore[list-item]
    yield listener
    listener.close()
    listener.close()  # a second drain
    await background.settle()


async def connect(scarce: Scarce, seen: asyncio.Queue[Any]) -> None:
    """Connect and wait until the proxy has the client."""
    _, writer = await asyncio.open_connection(*scarce.getsockname())
    own = writer.get_extra_info("sockname")
    assert await asyncio.wait_for(seen.get(), 10) == own
    writer.close()


@pytest.mark.usefixtures("accepting")
@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
async def test_clients_wait_while_there_is_no_descriptor_and_it_is_told_once(
    scarce: Scarce, seen: asyncio.Queue[Any], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 4096))
    scarce.code, scarce.refusals_left = code, 5
    with capture_logs() as logs:
        await connect(scarce, seen)
        await connect(scarce, seen)
    assert scarce.refused == 5
    assert [(line["log_level"], line["event"]) for line in logs] == [
        ("error", "no client can be accepted: they wait until descriptors are free"),
        ("info", "clients are accepted again"),
    ]
    assert (logs[0]["limit"], logs[0]["hard_limit"], logs[0]["reason"]) == (1024, 4096, "Too many open files")
    assert "ulimit -n" in logs[0]["advice"]
    scarce.refusals_left = 1
    with capture_logs() as logs:
        await connect(scarce, seen)
    assert len(logs) == 2  # another shortage is told again


@pytest.mark.usefixtures("accepting")
async def test_any_other_failure_to_accept_is_survived_too(scarce: Scarce, seen: asyncio.Queue[Any]) -> None:
    scarce.code, scarce.refusals_left = errno.EPROTO, 2
    with capture_logs() as logs:
        await connect(scarce, seen)
    assert [line["event"] for line in logs] == ["cannot accept a client"]


async def test_between_two_tries_nothing_is_tried(
    scarce: Scarce, seen: asyncio.Queue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", 1000.0)
    listener = Listener([scarce], lambda: Accepted(seen), None, Background(), Throttle())  # type: ignore[list-item]
    scarce.refusals_left = 1000
    _, writer = await asyncio.open_connection(*scarce.getsockname())
    for _ in range(20):
        await asyncio.sleep(0)
    assert scarce.refused <= 1
    writer.close()
    listener.close()


def test_a_refused_tls_handshake_is_told_once_per_cause(
    start_proxy: Any, authority: Any, eventually: Any, capsys: Any
) -> None:
    certificate, key = authority.sign("proxy.example")
    running = start_proxy("direct", server_tls=ServerTls(certificate, key, authority.certificate))
    host, _, port = running.address.rpartition(":")

    def fail(speak: Any) -> str:
        with socket.create_connection((host, int(port)), timeout=10) as client:
            name = client.getsockname()
            speak(client)
            return f"{name[0]}:{name[1]}"

    def plaintext(client: socket.socket) -> None:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        while client.recv(100):
            pass

    def nameless(client: socket.socket) -> None:
        context = ssl.create_default_context(cafile=str(authority.certificate))
        context.set_alpn_protocols(["h2"])
        with pytest.raises(ssl.SSLError), context.wrap_socket(client, server_hostname="localhost") as wrapped:
            wrapped.recv(1)
            raise ssl.SSLError("ended")  # TLS 1.3: the server's alert comes with the first read

    with capture_logs() as logs:
        first = fail(plaintext)
        fail(plaintext)
        second = fail(nameless)
        eventually(lambda: len(logs) == 2)
    assert [(line["event"], line["peer"], line["reason"]) for line in logs] == [
        ("TLS handshake failed", first, "http request"),
        ("TLS handshake failed", second, "peer did not return a certificate"),
    ]


def test_a_client_whose_connection_fails_unexpectedly_is_reset_and_it_is_told_once(
    start_proxy: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start_proxy("direct")

    def broken(*_: Any) -> None:
        raise KeyError("odd")

    monkeypatch.setattr(running.ports, "blocks_opening", broken)
    monkeypatch.setattr(running.ports, "of", broken)
    passed = running.wait_for(running.passing.listen("127.0.0.1:0"))
    with capture_logs() as logs:
        for address in (running.address, running.address, passed, passed):
            host, _, port = address.rpartition(":")
            with (  # the reset may come before connect has returned
                pytest.raises(ConnectionResetError),
                socket.create_connection((host, int(port)), timeout=10) as client,
            ):
                client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
                client.recv(1)
        eventually(lambda: len(logs) >= 2)
    assert [(line["event"], line["what"], line["reason"]) for line in logs] == [
        ("a background task failed", "connecting to the upstream", "KeyError: 'odd'")
    ] * 2
