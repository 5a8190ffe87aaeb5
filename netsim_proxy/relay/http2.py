"""Parts of HTTP/2 (RFC 9113) for a relay of frames. No state, no I/O."""

import struct
from collections.abc import Iterator
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER_BYTES: Final = 9
DEFAULT_MAX_FRAME_BYTES: Final = 16_384
LARGEST_FRAME_BYTES: Final = (1 << 24) - 1
LARGEST_WINDOW_BYTES: Final = (1 << 31) - 1

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

NO_ERROR: Final = 0x0
PROTOCOL_ERROR: Final = 0x1
FLOW_CONTROL_ERROR: Final = 0x3
FRAME_SIZE_ERROR: Final = 0x6
REFUSED_STREAM: Final = 0x7
CANCEL: Final = 0x8
COMPRESSION_ERROR: Final = 0x9
ENHANCE_YOUR_CALM: Final = 0xB

HEADER_TABLE_SIZE: Final = 0x1
ENABLE_PUSH: Final = 0x2
MAX_CONCURRENT_STREAMS: Final = 0x3
INITIAL_WINDOW_SIZE: Final = 0x4
MAX_FRAME_SIZE: Final = 0x5
MAX_HEADER_LIST_SIZE: Final = 0x6

_HEADER = struct.Struct(">HBBBI")
_SETTING = struct.Struct(">HI")


class Http2Error(Exception):
    """The peer broke HTTP/2; the connection ends with GOAWAY and `code`."""

    def __init__(self, message: str, code: int = PROTOCOL_ERROR) -> None:
        self.code = code
        super().__init__(message)


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Return a frame."""
    length = len(payload)
    return _HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream_id) + payload


def rst_stream(stream_id: int, code: int) -> bytes:
    """Return a frame that ends one stream."""
    return frame(RST_STREAM, 0, stream_id, code.to_bytes(4, "big"))


def increment_of(payload: bytes) -> int:
    """Return the bytes by which a WINDOW_UPDATE opens a window.

    Raises:
        Http2Error: 0 bytes, or a payload of another length than 4.
    """
    increment = int.from_bytes(payload, "big") & 0x7FFFFFFF
    if len(payload) != 4 or not increment:
        code = PROTOCOL_ERROR if len(payload) == 4 else FRAME_SIZE_ERROR
        raise Http2Error(
            "a window update of nothing" if len(payload) == 4 else "a window update of another length", code
        )
    return increment


def window_update(increment: int) -> bytes:
    """Return a frame that adds `increment` bytes (1 to 2^31 - 1) to the connection's window."""
    return frame(WINDOW_UPDATE, 0, 0, increment.to_bytes(4, "big"))


def goaway(last_stream_id: int, code: int, reason: str = "") -> bytes:
    """Return a frame that ends the connection; streams above `last_stream_id` were not processed."""
    return frame(GOAWAY, 0, 0, struct.pack(">II", last_stream_id, code) + reason.encode())


def settings(*pairs: tuple[int, int]) -> bytes:
    """Return a SETTINGS frame of (identifier, value) pairs."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*pair) for pair in pairs))


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Return the (identifier, value) pairs of a SETTINGS payload.

    Raises:
        Http2Error: a length that is no multiple of six, or a value that RFC 9113, section 6.5.2, excludes.
    """
    if len(payload) % 6:
        raise Http2Error("SETTINGS of a length that is no multiple of 6", FRAME_SIZE_ERROR)
    pairs = list(_SETTING.iter_unpack(payload))
    for key, value in pairs:
        if key == ENABLE_PUSH and value > 1:
            raise Http2Error(f"SETTINGS_ENABLE_PUSH of {value}")
        if key == INITIAL_WINDOW_SIZE and value > LARGEST_WINDOW_BYTES:
            raise Http2Error(f"SETTINGS_INITIAL_WINDOW_SIZE of {value}", FLOW_CONTROL_ERROR)
        if key == MAX_FRAME_SIZE and not DEFAULT_MAX_FRAME_BYTES <= value <= LARGEST_FRAME_BYTES:
            raise Http2Error(f"SETTINGS_MAX_FRAME_SIZE of {value}")
    return pairs


def check_control(kind: int, flags: int, payload: bytes) -> None:
    """Check the length of a PING, or of an acknowledgement of SETTINGS.

    Raises:
        Http2Error: it has another length.
    """
    if kind == PING and len(payload) != 8:
        raise Http2Error(f"PING of {len(payload)} bytes", FRAME_SIZE_ERROR)
    if kind == SETTINGS and flags & ACK and payload:
        raise Http2Error("an acknowledgement of SETTINGS that has a payload", FRAME_SIZE_ERROR)


def check_stream_frame(kind: int, payload: bytes) -> None:
    """Check the length of a frame of a stream that is not open.

    Raises:
        Http2Error: it has another length.
    """
    lengths = {RST_STREAM: 4, WINDOW_UPDATE: 4, PRIORITY: 5}
    if kind in lengths and len(payload) != lengths[kind]:
        raise Http2Error(f"a frame of type {kind} of {len(payload)} bytes", FRAME_SIZE_ERROR)


def stateless_settings(pairs: list[tuple[int, int]], refuse_push: bool = False) -> bytes:
    """Return the same settings, but with no header table and no push: then any frame may be dropped or overtaken.

    Silence allows push; `refuse_push` adds the refusal.
    """
    kept = [pair for pair in pairs if pair[0] not in (HEADER_TABLE_SIZE, ENABLE_PUSH)]
    push = [(ENABLE_PUSH, 0)] if refuse_push or any(key == ENABLE_PUSH for key, _ in pairs) else []
    return settings((HEADER_TABLE_SIZE, 0), *push, *kept)


def header_frames(stream_id: int, block: bytes, end_stream: bool, max_frame_bytes: int) -> bytes:
    """Return HEADERS and, if the block needs them, CONTINUATION frames."""
    flags = END_STREAM if end_stream else 0
    if len(block) <= max_frame_bytes:
        return frame(HEADERS, flags | END_HEADERS, stream_id, block)
    pieces = [block[at : at + max_frame_bytes] for at in range(0, len(block), max_frame_bytes)]
    out = [frame(HEADERS, flags, stream_id, pieces[0])]
    out += [frame(CONTINUATION, 0, stream_id, piece) for piece in pieces[1:-1]]
    out.append(frame(CONTINUATION, END_HEADERS, stream_id, pieces[-1]))
    return b"".join(out)


def header_fragment(payload: bytes, flags: int) -> bytes:
    """Return the part of a HEADERS payload that belongs to the header block: without padding and priority.

    Raises:
        Http2Error: padding longer than the frame.
    """
    start, end = 0, len(payload)
    if flags & PADDED:
        start, end = 1, end - (payload[0] if payload else 0)
    if flags & HAS_PRIORITY:
        start += 5
    if end < start:
        raise Http2Error("HEADERS with more padding than payload")
    return payload[start:end]


def frames(data: bytes | bytearray) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield (offset, payload length, type, flags, stream id) of each whole frame in `data`."""
    at = 0
    while at + FRAME_HEADER_BYTES <= len(data):
        high, low, kind, flags, stream_id = _HEADER.unpack_from(data, at)
        length = high << 8 | low
        yield at, length, kind, flags, stream_id & 0x7FFFFFFF
        at += FRAME_HEADER_BYTES + length


def renumbered(data: bytes, stream_id: int) -> bytes:
    """Return the frames of `data` with another stream id."""
    out = bytearray(data)
    number = stream_id.to_bytes(4, "big")
    for at, *_ in frames(data):
        out[at + 5 : at + 9] = number
    return bytes(out)


def with_block_prefix(run: bytes, prefix: bytes) -> bytes:
    """Return the frames of `run`, which begin with a plain HEADERS frame, with its block beginning with `prefix`."""
    if run.startswith(prefix, FRAME_HEADER_BYTES):
        return run
    length = int.from_bytes(run[:3], "big") + len(prefix)
    return length.to_bytes(3, "big") + run[3:FRAME_HEADER_BYTES] + prefix + run[FRAME_HEADER_BYTES:]
