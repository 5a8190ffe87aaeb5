import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from hypergpu.common.errors import ConfigError
from hypergpu.common.http import Action, Answer, Chunks, HttpServer, Limits, Request, Routes, Stream

Start = Callable[..., HttpServer]


@pytest.fixture
def start() -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def begin(
            routes: Routes | None = None, limits: Limits | None = None, listen: str = "127.0.0.1:0"
        ) -> HttpServer:
            routes = routes or {"/healthz": lambda: Answer(b"well\n")}
            server = HttpServer(listen, routes, limits) if limits else HttpServer(listen, routes)
            stack.callback(server.close)
            return server

        yield begin


@pytest.fixture
def dial() -> Iterator[Callable[[HttpServer], socket.socket]]:
    with contextlib.ExitStack() as stack:

        def connect(server: HttpServer) -> socket.socket:
            host, _, port = server.address.rpartition(":")
            return stack.enter_context(socket.create_connection((host, int(port)), timeout=5))

        yield connect


def read_all(sock: socket.socket) -> bytes:
    """What comes until the other side closes or resets."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while more := sock.recv(1 << 16):
            data += more
    return data


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0"])
def test_paths_are_answered_on_either_family_and_others_are_listed(listen: str, start: Start) -> None:
    try:
        server = start(listen=listen)
    except ConfigError:
        if listen.startswith("["):
            pytest.skip("there is no IPv6 here")
        raise
    with urlopen(f"http://{server.address}/healthz?full") as reply:
        assert (reply.status, reply.read()) == (200, b"well\n")
    with pytest.raises(HTTPError, match="404") as caught:
        urlopen(f"http://{server.address}/")
    with caught.value as answer:
        assert b"/healthz" in answer.read()
    with pytest.raises(ConfigError, match="cannot listen"):
        HttpServer(server.address, {})


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\n\r\n", b"200 OK"),
        (b"HEAD /healthz HTTP/1.0\r\n\r\n", b"200 OK"),
        (b"POST /healthz HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"405 Method Not Allowed"),
        (b"GET /healthz\r\n\r\n", b"400 Bad Request"),
        (b"\x16\x03\x01\r\n\r\n", b"400 Bad Request"),
        (b"GET /healthz HTTP/1.1\r\nA: " + b"a" * (17 << 10), b"431 Request Header Fields Too Large"),
    ],
)
def test_each_request_gets_its_status(
    request_: bytes, status: bytes, start: Start, dial: Callable[[HttpServer], socket.socket]
) -> None:
    sock = dial(start())
    sock.sendall(request_)
    head, _, body = read_all_after_shutdown(sock).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status + b"\r\n")
    assert (b"well" in body) == request_.startswith(b"GET /healthz HTTP/1.1\r\n\r\n")
    assert (body == b"") == request_.startswith(b"HEAD")


def read_all_after_shutdown(sock: socket.socket) -> bytes:
    sock.shutdown(socket.SHUT_WR)
    return read_all(sock)


def test_connections_that_drip_never_keep_a_probe_out(
    start: Start, dial: Callable[[HttpServer], socket.socket]
) -> None:
    server = start()
    dripping = [dial(server) for _ in range(100)]
    for _ in range(3):
        for sock in dripping:
            with contextlib.suppress(OSError):  # those that made room
                sock.sendall(b"G")
        with urlopen(f"http://{server.address}/healthz", timeout=5) as reply:
            assert reply.read() == b"well\n"


def test_the_oldest_that_has_not_asked_makes_room(start: Start, dial: Callable[[HttpServer], socket.socket]) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> Answer:
        begun.set()
        go_on.wait(10)
        return Answer(b"slow\n")

    server = start({"/slow": slow, "/healthz": lambda: Answer(b"well\n")}, Limits(connections=2))
    asked, silent = dial(server), dial(server)
    asked.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
    assert begun.wait(5)
    with urlopen(f"http://{server.address}/healthz", timeout=5) as reply:
        assert reply.read() == b"well\n"
    assert read_all(silent) == b""
    go_on.set()
    assert read_all_after_shutdown(asked).endswith(b"slow\n")


def test_a_head_that_never_ends_is_cut(start: Start, dial: Callable[[HttpServer], socket.socket]) -> None:
    sock = dial(start(limits=Limits(head_seconds=0.2)))
    began = time.monotonic()
    with contextlib.suppress(OSError):
        while time.monotonic() - began < 3:
            sock.sendall(b"x")
            time.sleep(0.02)
    assert 0.2 <= time.monotonic() - began < 3


def test_who_does_not_read_the_answer_is_cut(start: Start, dial: Callable[[HttpServer], socket.socket]) -> None:
    size = 64 << 20
    server = start({"/metrics": lambda: Answer(bytes(size))}, Limits(total_seconds=0.3))
    sock = dial(server)
    sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    time.sleep(0.6)
    assert 0 < len(read_all(sock)) < size


def test_a_route_runs_once_for_all_who_wait(start: Start) -> None:
    runs, begun, go_on = [0], threading.Event(), threading.Event()

    def route() -> Answer:
        runs[0] += 1
        begun.set()
        go_on.wait(10)
        return Answer(str(runs[0]).encode())

    server = start({"/metrics": route})
    answers: list[bytes] = []

    def ask() -> None:
        with urlopen(f"http://{server.address}/metrics", timeout=10) as reply:
            answers.append(reply.read())

    first = threading.Thread(target=ask)
    first.start()
    assert begun.wait(5)
    others = [threading.Thread(target=ask) for _ in range(8)]
    for thread in others:
        thread.start()
    time.sleep(0.3)  # they are waiting now
    go_on.set()
    for thread in [first, *others]:
        thread.join()
    assert sorted(answers) == [b"1"] + [b"2"] * 8  # who asked later gets no answer from before


def test_a_route_that_fails_answers_500_and_others_go_on(start: Start) -> None:
    def broken() -> Answer:
        raise ValueError("broken")

    server = start({"/metrics": broken, "/healthz": lambda: Answer(b"well\n")})
    for _ in range(2):
        with pytest.raises(HTTPError) as caught:
            urlopen(f"http://{server.address}/metrics")
        assert caught.value.code == 500
        caught.value.close()
    with urlopen(f"http://{server.address}/healthz") as reply:
        assert reply.read() == b"well\n"


def test_closing_does_not_wait_for_clients_or_routes(dial: Callable[[HttpServer], socket.socket]) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def stuck() -> Answer:
        begun.set()
        go_on.wait(10)
        return Answer(b"")

    server = HttpServer("127.0.0.1:0", {"/stuck": stuck})
    sock, _ = dial(server), dial(server)
    sock.sendall(b"GET /stuck HTTP/1.1\r\n\r\n")
    assert begun.wait(5)
    began = time.monotonic()
    server.close()
    server.close()
    assert time.monotonic() - began < 2
    assert read_all(sock) == b""
    go_on.set()


async def endless(piece: bytes) -> Chunks:
    while True:
        yield piece
        await asyncio.sleep(0)


def test_a_stream_goes_on_until_the_client_leaves(start: Start, dial: Callable[[HttpServer], socket.socket]) -> None:
    left = threading.Event()

    async def ticks() -> Chunks:
        try:
            for number in range(1000):
                yield f"data: {number}\n\n".encode()
                await asyncio.sleep(0.01)
        finally:
            left.set()

    sock = dial(start({"/events": Stream(lambda request: ticks())}, Limits(total_seconds=0.05)))
    sock.sendall(b"GET /events HTTP/1.1\r\n\r\n")
    seen = b""
    while b"data: 20\n" not in seen:
        seen += sock.recv(1 << 16)
    assert seen.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
    assert not left.is_set()
    sock.close()
    assert left.wait(5)


def test_who_reads_a_stream_too_slowly_is_dropped_and_nothing_is_kept_for_it(
    start: Start, dial: Callable[[HttpServer], socket.socket]
) -> None:
    sent = [0]

    async def fast() -> Chunks:
        while True:
            sent[0] += 1 << 20
            yield bytes(1 << 20)

    server = start({"/events": Stream(lambda request: fast())}, Limits(stream_write_seconds=0.3))
    slow = dial(server)
    slow.sendall(b"GET /events HTTP/1.1\r\n\r\n")
    time.sleep(0.8)
    before = sent[0]
    assert len(read_all(slow)) < sent[0] <= 32 << 20  # what two sockets hold
    assert sent[0] == before


def test_streams_make_room_last(start: Start, dial: Callable[[HttpServer], socket.socket]) -> None:
    async def quiet() -> Chunks:
        yield b"data: first\n\n"
        await asyncio.sleep(60)

    server = start({"/events": Stream(lambda _: quiet()), "/healthz": lambda: Answer(b"well\n")}, Limits(connections=2))
    stream, silent = dial(server), dial(server)
    stream.sendall(b"GET /events HTTP/1.1\r\n\r\n")
    while b"first" not in stream.recv(1 << 16):
        pass
    for _ in range(5):
        with urlopen(f"http://{server.address}/healthz", timeout=5) as reply:
            assert reply.read() == b"well\n"
    assert read_all(silent) == b""
    stream.settimeout(0.1)
    with pytest.raises(TimeoutError):
        stream.recv(1)


def test_a_stream_may_refuse(start: Start) -> None:
    server = start({"/events": Stream(lambda request: Answer(b"no\n", status=401))})
    with pytest.raises(HTTPError) as caught:
        urlopen(f"http://{server.address}/events")
    with caught.value as answer:
        assert (answer.code, answer.read()) == (401, b"no\n")


def test_a_post_reaches_its_action_with_its_headers_and_body(
    start: Start, dial: Callable[[HttpServer], socket.socket]
) -> None:
    def act(request: Request) -> Answer:
        return Answer(f"{request.address} {request.headers['authorization']} {request.body!r}".encode())

    server = start({"/pause": Action(act)})
    head = b"POST /pause HTTP/1.1\r\nAUTHORIZATION:  Bearer x \r\nContent-Length: "
    for rest, status, text in (
        (b"3\r\n\r\nabc", b"200", b"127.0.0.1 Bearer x b'abc'"),
        (b"5000\r\n\r\n", b"413", b"at most 4096 bytes"),
        (b"-1\r\n\r\n", b"200", b"b''"),
    ):
        sock = dial(server)
        sock.sendall(head + rest)
        answer = read_all_after_shutdown(sock)
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert text in answer
    with pytest.raises(HTTPError) as caught:
        urlopen(f"http://{server.address}/pause")
    with caught.value as refused:
        assert (refused.code, refused.headers["Allow"]) == (405, "POST")


def test_closing_ends_streams(dial: Callable[[HttpServer], socket.socket]) -> None:
    server = HttpServer("127.0.0.1:0", {"/events": Stream(lambda _: endless(b"data: x\n\n"))})
    sock = dial(server)
    sock.sendall(b"GET /events HTTP/1.1\r\n\r\n")
    assert sock.recv(10)
    began = time.monotonic()
    server.close()
    assert time.monotonic() - began < 2
    assert b"data: x" in read_all(sock)
