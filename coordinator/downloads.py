"""Downloads: the parameters of a work unit on their way to its node, over one connection or several.

The streams of a download share the chunks: each takes the next one when flow control lets it send. So a fast connection
carries more of them than a slow one, and none waits for another.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from hypergpu.common.byte_ranges import ByteRange, ByteRanges
from hypergpu.common.connections import MAX_CONNECTIONS
from hypergpu.common.errors import ProtocolError, ResourceExhausted, StaleWork
from hypergpu.common.tensors import CHUNK_BYTES, MAX_GAPS, STRIPE_BYTES, Chunk, checksum
from hypergpu.common.wire import decode_work_part, encode_part
from hypergpu.coordinator.core.model.outgoing import Sending

WorkKey = tuple[int, int]
"""(round, attempt) of a node's work unit."""
MAX_STREAMS: Final = 2 * MAX_CONNECTIONS
"""Most streams that send to a node at once: those of one transfer, and as many that broke without a notice."""


@dataclass(eq=False, slots=True)
class Download:
    """Parameters of one work unit."""

    work: WorkKey
    sending: Sending
    nbytes: int
    """Size of the payload."""
    waiting: ByteRanges
    """Bytes that no stream has taken yet."""
    chunk_bytes: int
    parts: Sequence[bytes] | None = None
    """Payload in encoded chunks, until all were taken: its round may close meanwhile."""

    def take(self) -> ByteRange | None:
        """Return the next chunk for a stream; None if all were taken."""
        first = next(iter(self.waiting), None)
        if first is None:
            return None
        return self.waiting.take(self.chunk_bytes - first.start % self.chunk_bytes)


class Downloads:
    """Latest download of each node."""

    def __init__(self) -> None:
        self._held: dict[str, Download] = {}
        self._streams: Counter[str] = Counter()

    def begin(self, node: str, work: WorkKey, sending: Sending, nbytes: int, connections: int) -> Download:
        """Begin the download of a work unit, in place of an earlier one of its node."""
        chunk_bytes = CHUNK_BYTES if connections == 1 else STRIPE_BYTES
        download = self._held[node] = Download(work, sending, nbytes, ByteRanges([(0, nbytes)]), chunk_bytes)
        return download

    def join(self, node: str, work: WorkKey) -> Download:
        """Return the download of a work unit for a further stream.

        Raises:
            StaleWork: No such download is in progress.
        """
        download = self._held.get(node)
        if download is None or download.work != work:
            raise StaleWork(f"no parameters of round {work[0]}, attempt {work[1]}, are on their way to {node}")
        return download

    @contextmanager
    def streaming(self, node: str) -> Iterator[None]:
        """Count a stream while it sends.

        Raises:
            ResourceExhausted: `MAX_STREAMS` others send to this node.
        """
        if self._streams[node] >= MAX_STREAMS:
            raise ResourceExhausted(f"{MAX_STREAMS} streams send parameters to {node}; at most {MAX_STREAMS} may")
        self._streams[node] += 1
        try:
            yield
        finally:
            self._streams[node] -= 1
            if not self._streams[node]:
                del self._streams[node]


def chosen_ranges(pairs: Sequence[tuple[int, int]], nbytes: int) -> ByteRanges:
    """Return the ranges that a node asks for, checked.

    Raises:
        ProtocolError: Too many ranges, or one that is empty, out of bounds, or not behind the one before it.
    """
    if len(pairs) > MAX_GAPS:
        raise ProtocolError(f"{len(pairs)} ranges of parameters; at most {MAX_GAPS} may be asked for at once")
    before = 0
    for start, end in pairs:
        if not before <= start < end <= nbytes:
            raise ProtocolError(
                f"bytes {start} to {end} of {nbytes}: expected ranges in order, without overlaps and within the payload"
            )
        before = end
    return ByteRanges(pairs)


def encoded(parts: Sequence[bytes], piece: ByteRange) -> bytes:
    """Return a chunk of the parameters as it is sent.

    Args:
        parts: encoded chunks of `CHUNK_BYTES` of the whole payload, in order.
        piece: bytes of the chunk, all of them in one of these parts.
    """
    part = parts[piece.start // CHUNK_BYTES]
    if piece.end - piece.start == CHUNK_BYTES:  # nearly all on a single connection, as they are
        return part
    whole = decode_work_part(part)
    if not isinstance(whole, Chunk):
        raise ProtocolError("the parameters are not encoded in chunks")
    if len(whole.data) == piece.end - piece.start:
        return part
    data = whole.data[piece.start - whole.offset : piece.end - whole.offset]
    return encode_part(Chunk(piece.start, data, checksum(data)))
