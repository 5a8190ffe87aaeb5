import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.netsim_proxy.relay import http2
from hypergpu.netsim_proxy.relay.http2 import Http2Error


def test_frames_are_cut_by_their_headers() -> None:
    data = http2.frame(http2.DATA, 1, 5, b"abc") + http2.rst_stream(7, http2.CANCEL) + http2.window_update(9)
    assert [(kind, flags, sid, length) for _, length, kind, flags, sid in http2.frames(data)] == [
        (http2.DATA, 1, 5, 3),
        (http2.RST_STREAM, 0, 7, 4),
        (http2.WINDOW_UPDATE, 0, 0, 4),
    ]


def test_settings_lose_the_header_table_and_push() -> None:
    pairs = [(http2.HEADER_TABLE_SIZE, 4096), (http2.ENABLE_PUSH, 1), (4, 65535), (0xFE03, 1)]
    out = http2.stateless_settings(pairs)
    assert http2.read_settings(out[9:]) == [
        (http2.HEADER_TABLE_SIZE, 0),
        (http2.ENABLE_PUSH, 0),
        (4, 65535),
        (0xFE03, 1),
    ]
    assert http2.read_settings(http2.stateless_settings([])[9:]) == [(http2.HEADER_TABLE_SIZE, 0)]
    # Who says nothing of push would get it.
    silent = http2.read_settings(http2.stateless_settings([], refuse_push=True)[9:])
    assert silent == [(http2.HEADER_TABLE_SIZE, 0), (http2.ENABLE_PUSH, 0)]
    with pytest.raises(Http2Error):
        http2.read_settings(b"12345")


@given(st.binary(min_size=1, max_size=5000), st.integers(10, 600), st.booleans())
def test_long_header_blocks_go_on(block: bytes, limit: int, end: bool) -> None:
    out = http2.header_frames(3, block, end, limit)
    parts = list(http2.frames(out))
    assert b"".join(out[at + 9 : at + 9 + length] for at, length, *_ in parts) == block
    assert all(length <= limit for _, length, *_ in parts)
    assert [bool(flags & http2.END_HEADERS) for *_, flags, _ in parts] == [False] * (len(parts) - 1) + [True]
    assert bool(parts[0][3] & http2.END_STREAM) is end


def test_padding_and_priority_are_no_part_of_a_block() -> None:
    assert http2.header_fragment(b"\x02" + b"PRIOR" + b"block" + b"\0\0", http2.PADDED | http2.HAS_PRIORITY) == b"block"
    with pytest.raises(Http2Error):
        http2.header_fragment(b"\x09abc", http2.PADDED)


def test_renumbering_touches_the_numbers_only() -> None:
    data = http2.frame(http2.DATA, 0, 5, b"\x05" * 20) + http2.frame(http2.DATA, 1, 5, b"")
    assert http2.renumbered(data, 9) == http2.frame(http2.DATA, 0, 9, b"\x05" * 20) + http2.frame(http2.DATA, 1, 9, b"")


def test_prefixing_a_block() -> None:
    run = http2.frame(http2.HEADERS, 4, 1, b"abc") + http2.frame(http2.DATA, 1, 1, b"x")
    assert http2.with_block_prefix(run, b"\x20") == http2.frame(http2.HEADERS, 4, 1, b"\x20abc") + run[12:]
    assert http2.with_block_prefix(http2.with_block_prefix(run, b"\x20"), b"\x20").count(b"\x20abc") == 1


@pytest.mark.parametrize("payload", [bytes(4), b"\x80\0\0\0", b"\0\0\1", bytes(5)])
def test_a_window_update_opens_a_window(payload: bytes) -> None:
    assert http2.increment_of(b"\x80\0\0\7") == 7
    with pytest.raises(http2.Http2Error, match="window update"):
        http2.increment_of(payload)
