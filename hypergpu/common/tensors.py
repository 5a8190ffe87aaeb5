"""A model on the wire: one flat float32 buffer, a manifest of its tensors, and a payload in chunks with checksums."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import google_crc32c
import numpy as np
import numpy.typing as npt

from hypergpu.common.byte_ranges import ByteRanges
from hypergpu.common.errors import CorruptData, ProtocolError

CHUNK_BYTES = 1 << 20
"""Chunks of 1 MiB stream at two to six times the speed of one large message."""
STRIPE_BYTES = 64 << 10
"""Chunks of a transfer over several connections are shorter: at its end, all others wait for the slowest chunk."""
MAX_GAPS = 1024
"""Most gaps in a payload on its way, far above those that `MAX_CONNECTIONS` leave: they take memory and time."""

Flat = npt.NDArray[np.float32]
"""All parameters or gradients of a model in one buffer, shape (manifest.size,)."""
Payload = npt.NDArray[np.uint8]
"""Bytes that a transfer moves; a codec turns a flat buffer into a payload and back (`hypergpu.common.codecs`)."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name and shape of one tensor."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Manifest:
    """Tensors of a flat buffer, in their order there."""

    tensors: tuple[TensorSpec, ...]

    @cached_property
    def size(self) -> int:
        """Number of float32 elements in the buffer."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def total_bytes(self) -> int:
        """Size of the buffer."""
        return 4 * self.size

    def offsets(self) -> Iterator[tuple[TensorSpec, int]]:
        """Yield each tensor with the index of its first element."""
        start = 0
        for tensor in self.tensors:
            yield tensor, start
            start += tensor.size

    def views(self, flat: Flat) -> dict[str, Flat]:
        """Return each tensor by name, as a view of `flat`.

        Raises:
            ProtocolError: `flat` is not of shape (size,).
        """
        if flat.shape != (self.size,):
            raise ProtocolError(f"expected a flat buffer of shape ({self.size},), got {flat.shape}")
        return {t.name: flat[start : start + t.size].reshape(t.shape) for t, start in self.offsets()}

    def require_same(self, other: "Manifest") -> None:
        """Check that `other` describes the same buffer as this one.

        Raises:
            ProtocolError: tensors are missing, unexpected, misshaped or out of order; the message names them.
        """
        if self.tensors == other.tensors:
            return
        mine, theirs = ({t.name: t.shape for t in m.tensors} for m in (self, other))
        faults = [f"missing {name!r}" for name in mine if name not in theirs]
        faults += [f"unexpected {name!r}" for name in theirs if name not in mine]
        faults += [
            f"{name!r} has shape {theirs[name]}, expected {shape}"
            for name, shape in mine.items()
            if name in theirs and theirs[name] != shape
        ]
        raise ProtocolError("the tensors differ from the model's: " + "; ".join(faults[:5] or ["their order"]))


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a payload: `data` starts `offset` bytes into it."""

    offset: int
    data: memoryview
    crc32c: int


def chunks(payload: Payload | Flat, start: int = 0, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Yield the chunks of a payload from byte `start` on, each a view without a copy."""
    view = np.ascontiguousarray(payload).view(np.uint8).data
    for offset in range(start, len(view), chunk_bytes):
        data = view[offset : offset + chunk_bytes]
        yield Chunk(offset, data, checksum(data))


def checksum(data: memoryview | bytes) -> int:
    """Return the CRC-32C of bytes (Castagnoli, as in RFC 3720), computed in hardware if possible."""
    # The C extension takes only bytes or arrays; wrapping the view in an array avoids a copy.
    return int(google_crc32c.value(data if isinstance(data, bytes) else np.frombuffer(data, np.uint8)))


class Assembler:
    """Receives chunks, in any order, into the buffer of a payload."""

    def __init__(self, payload: Payload) -> None:
        self.payload = payload
        self._bytes = payload.data
        self.missing = ByteRanges([(0, len(self._bytes))])
        """Bytes that have not arrived: a broken transfer continues with them."""

    @property
    def received(self) -> int:
        """Number of bytes that have arrived."""
        return len(self._bytes) - self.missing.total

    @property
    def next_offset(self) -> int:
        """Number of bytes before the first one that is missing."""
        return next(iter(self.missing)).start if self.missing else len(self._bytes)

    @property
    def complete(self) -> bool:
        """True if every byte has arrived."""
        return not self.missing

    def add(self, chunk: Chunk) -> int:
        """Add a chunk; return how many of its bytes had not arrived before. The others are checked and skipped.

        Raises:
            CorruptData: the bytes do not match their checksum; nothing was added.
            ProtocolError: bytes beyond the end, or one gap more than `MAX_GAPS`.
        """
        start, end = chunk.offset, chunk.offset + len(chunk.data)
        if end > len(self._bytes):
            raise ProtocolError(f"a chunk ends at byte {end} of a buffer of {len(self._bytes)}")
        if checksum(chunk.data) != chunk.crc32c:
            raise CorruptData(f"the chunk at byte {start} does not match its checksum; send it again")
        new = self.missing.within(start, end)
        added = self.missing.remove(start, end)
        if len(self.missing) > MAX_GAPS:
            for part in new:
                self.missing.add(*part)
            raise ProtocolError(f"a chunk at byte {start} leaves more than {MAX_GAPS} gaps; send earlier bytes first")
        for part in new:
            self._bytes[part.start : part.end] = chunk.data[part.start - start : part.end - start]
        return added
