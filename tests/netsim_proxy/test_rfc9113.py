"""What a server refuses, the proxy refuses: frames that RFC 9113 excludes, header blocks without bounds, odd names."""

import resource
import socket
import struct
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from hypergpu.netsim_proxy.io import descriptors
from hypergpu.netsim_proxy.relay import header_blocks, http2
from hypergpu.netsim_proxy.relay.header_blocks import MAX_BLOCK_BYTES, NO_TABLE, literal, node_id_in

HEADERS = NO_TABLE + b"\x83\x86\x84" + literal(b":authority", b"x")


def goaway_after(address: str, frames: bytes) -> int | None:
    """The error of the GOAWAY that follows; None = a PING was answered instead."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        opening = http2.PREFACE + http2.settings() + http2.frame(http2.SETTINGS, http2.ACK, 0)
        sock.sendall(opening + frames + http2.frame(http2.PING, 0, 0, b"are you "))
        data = b""
        while received := sock.recv(1 << 16):
            data += received
            for at, length, kind, flags, _ in http2.frames(data):
                if at + 9 + length > len(data):
                    break
                if kind == http2.GOAWAY:
                    return int(struct.unpack(">I", data[at + 13 : at + 17])[0])
                if kind == http2.PING and flags & http2.ACK:
                    return None
    raise AssertionError("closed without a GOAWAY")


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (http2.settings((http2.ENABLE_PUSH, 2)), http2.PROTOCOL_ERROR),
        (http2.settings((http2.ENABLE_PUSH, 1)), None),
        (http2.settings((http2.INITIAL_WINDOW_SIZE, 1 << 31)), http2.FLOW_CONTROL_ERROR),
        (http2.settings((http2.INITIAL_WINDOW_SIZE, (1 << 31) - 1)), None),
        (http2.settings((http2.MAX_FRAME_SIZE, 16_383)), http2.PROTOCOL_ERROR),
        (http2.settings((http2.MAX_FRAME_SIZE, 16_384)), None),
        (http2.settings((http2.MAX_FRAME_SIZE, 1 << 24)), http2.PROTOCOL_ERROR),
        (http2.settings((http2.MAX_FRAME_SIZE, (1 << 24) - 1)), None),
        (http2.settings((0xF000, 7)), None),
        (http2.frame(http2.SETTINGS, 0, 0, b"\0\0\0"), http2.FRAME_SIZE_ERROR),
        (http2.frame(http2.SETTINGS, http2.ACK, 0, b"\0"), http2.FRAME_SIZE_ERROR),
        (http2.frame(http2.SETTINGS, 0, 1), http2.PROTOCOL_ERROR),
        (http2.frame(http2.PING, 0, 0, b"7 bytes"), http2.FRAME_SIZE_ERROR),
        (http2.frame(http2.PING, 0, 0, b"9 bytes.."), http2.FRAME_SIZE_ERROR),
        (http2.frame(http2.PING, 0, 1, b"8 bytes."), http2.PROTOCOL_ERROR),
        (http2.frame(http2.WINDOW_UPDATE, 0, 0, b"\0\0\1"), http2.FRAME_SIZE_ERROR),
        (http2.frame(http2.WINDOW_UPDATE, 0, 0, b"\0\0\0\0"), http2.PROTOCOL_ERROR),
        (http2.frame(http2.WINDOW_UPDATE, 0, 1, b"\0\0\0\1"), http2.PROTOCOL_ERROR),
        (http2.frame(http2.RST_STREAM, 0, 1, b"\0\0\0\0"), http2.PROTOCOL_ERROR),
        (http2.frame(http2.RST_STREAM, 0, 0, b"\0\0\0\0"), http2.PROTOCOL_ERROR),
        (http2.frame(http2.RST_STREAM, 0, 1, b"\0\0\0"), http2.FRAME_SIZE_ERROR),
        (http2.frame(http2.PRIORITY, 0, 0, bytes(5)), http2.PROTOCOL_ERROR),
        (http2.frame(http2.PRIORITY, 0, 1, bytes(4)), http2.FRAME_SIZE_ERROR),
        (http2.frame(http2.PRIORITY, 0, 1, b"\0\0\0\3\1"), None),
        (http2.frame(http2.GOAWAY, 0, 1, bytes(8)), http2.PROTOCOL_ERROR),
        (http2.frame(http2.DATA, 0, 0, b"x"), http2.PROTOCOL_ERROR),
        (http2.frame(http2.DATA, 0, 1, b"x"), http2.PROTOCOL_ERROR),
        (http2.frame(http2.CONTINUATION, 0, 1, b""), http2.PROTOCOL_ERROR),
        (http2.frame(http2.PUSH_PROMISE, 0, 1, bytes(4)), http2.PROTOCOL_ERROR),
        (http2.frame(http2.HEADERS, http2.END_HEADERS, 0, HEADERS), http2.PROTOCOL_ERROR),
        (http2.frame(http2.HEADERS, http2.END_HEADERS, 2, HEADERS), http2.PROTOCOL_ERROR),
        (http2.frame(99, 0, 0, b"unknown"), None),
    ],
)
@pytest.mark.parametrize("profile", ["direct", "perfect"])
def test_frames_that_the_rfc_excludes_end_the_connection(
    start_proxy: Any, frames: bytes, code: int | None, profile: str
) -> None:
    assert goaway_after(start_proxy(profile).address, frames) == code


# --- large header blocks


@pytest.mark.parametrize("profile", ["direct", "perfect"])
def test_a_large_header_block_fails_its_own_call_only(start_proxy: Any, connect: Any, profile: str) -> None:
    client = connect(start_proxy(profile).address, "node_1", options=(("grpc.max_metadata_size", 1 << 22),))
    client.Echo(b"")
    call = client.Hang.future(b"")
    for size in (MAX_BLOCK_BYTES + 1, 3 * MAX_BLOCK_BYTES):
        with pytest.raises(grpc.RpcError) as caught:
            client.Echo(b"", metadata=(("x-large", "x" * size),))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "262144 bytes" in (caught.value.details() or "")
    assert client.Echo(b"next") == b"next"
    assert not call.done()
    call.cancel()


def test_a_block_without_an_end_ends_the_connection(start_proxy: Any) -> None:
    parts = http2.frame(http2.CONTINUATION, 0, 1, bytes(16_384)) * 64
    frames = http2.frame(http2.HEADERS, 0, 1, HEADERS) + parts
    assert goaway_after(start_proxy("direct").address, frames) == http2.ENHANCE_YOUR_CALM


# --- names of nodes


@pytest.mark.parametrize(
    ("node_id", "link"),
    [
        ("a" * 64, "a" * 64), ("a" * 65, "default"), ("a" * 7000, "default"), ("node 1", "default"),
        ("<b>", "default"), ("-x", "default"), ("node_1.eu-west", "node_1.eu-west"),
    ],
)  # fmt: skip
def test_names_that_no_node_may_have_share_the_default_link(
    start_proxy: Any, connect: Any, node_id: str, link: str
) -> None:
    proxy = start_proxy("direct")
    client = connect(proxy.address)
    for _ in range(2):  # the first block is decoded, the second one is searched
        client.Echo(b"", metadata=(("x-node-id", node_id),))
    assert [port.name for port in proxy.ports] == [link]


def test_the_cache_of_blocks_holds_no_block_and_is_bounded() -> None:
    block = NO_TABLE + literal(b"x-node-id", b"node_1") + literal(b"authorization", b"Bearer secret" * 100)
    assert node_id_in(block) == node_id_in(block) == "node_1"
    assert all(len(key) == 16 for key in header_blocks._node_ids)
    for number in range(3000):
        node_id_in(NO_TABLE + literal(b"x-node-id", b"node_%d" % number))
    assert len(header_blocks._node_ids) <= 1024
    assert node_id_in(block) == "node_1"


# --- descriptors


def test_the_limit_of_open_files_is_raised_to_the_hard_one(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(1024, 8192)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    with capture_logs() as lines:
        assert descriptors.raise_limit() == 8192
    assert limits[-1] == (8192, 8192)
    assert lines == []


def test_a_low_hard_limit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    with capture_logs() as lines:
        assert descriptors.raise_limit() == 1024
    assert [(line["limit"], line["clients"]) for line in lines] == [(1024, 512)]
