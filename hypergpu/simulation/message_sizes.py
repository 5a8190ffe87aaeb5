"""Sizes of the messages of the wire contract, in bytes including HTTP/2 and gRPC framing.

A request's header block has the method, `x-node-id` and the token as literals (the proxy switches header compression
off): about 300 bytes. A reply's is about 100, its trailers 60. Each gRPC message adds 5 bytes and each HTTP/2 frame of
16 KiB adds 9; each chunk adds 16 of protobuf.
"""

from functools import cache

from hypergpu.common.tensors import CHUNK_BYTES

REQUEST_BYTES = 340
"""PullWork, GetUploadProgress: headers and a few short fields."""
REPLY_BYTES = 200
"""Headers, a short message, trailers."""
REGISTER_BYTES = 500
REGISTERED_BYTES = 600
"""The manifest of the model is part of the answer."""
HEARTBEAT_BYTES = 900
"""With its report of figures."""
ORDER_BYTES = 600
"""A work order, with the manifest."""
HEADER_BYTES = 700
"""The header of an update, with the request's own headers."""
_CHUNK_FRAMING = 16 + 5
_FRAME_BYTES = 16 << 10
_FRAME_HEADER = 9


def chunk_count(total_bytes: int) -> int:
    """Chunks that a buffer travels in."""
    return max(1, -(-total_bytes // CHUNK_BYTES))


def chunks_bytes(total_bytes: int) -> int:
    """Return a buffer in chunks, as it travels."""
    framed = total_bytes + chunk_count(total_bytes) * _CHUNK_FRAMING
    return framed + -(-framed // _FRAME_BYTES) * _FRAME_HEADER


@cache
def transfer(payload_bytes: int) -> tuple[int, int]:
    """Return the bytes of a payload in chunks, and the messages including the one that announces them."""
    return chunks_bytes(payload_bytes), 1 + chunk_count(payload_bytes)


def bytes_in_chunks(sent_bytes: int) -> int:
    """Return how much of a buffer is in the whole chunks among the first `sent_bytes` of it as it travels."""
    return max(0, sent_bytes) // chunks_bytes(CHUNK_BYTES) * CHUNK_BYTES
