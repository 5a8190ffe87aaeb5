"""A model on the wire: one flat float32 buffer, a manifest of what lies where, and checksummed chunks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import google_crc32c
import numpy as np
import numpy.typing as npt

from hypergpu.common.errors import CorruptData, ProtocolError

CHUNK_BYTES = 1 << 20
"""1 MiB streams at two to six times the speed of one large message."""

Flat = npt.NDArray[np.float32]
"""All parameters or gradients of a model, one after the other, shape (manifest.size,)."""


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
    """The tensors of a flat buffer, in the order in which they lie in it."""

    tensors: tuple[TensorSpec, ...]

    @cached_property
    def size(self) -> int:
        """Number of float32 elements of the buffer."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def total_bytes(self) -> int:
        """Bytes of the buffer."""
        return 4 * self.size

    def offsets(self) -> Iterator[tuple[TensorSpec, int]]:
        """Each tensor with the index of its first element."""
        start = 0
        for tensor in self.tensors:
            yield tensor, start
            start += tensor.size

    def views(self, flat: Flat) -> dict[str, Flat]:
        """Each tensor by name, as a view of `flat`.

        Raises:
            ProtocolError: `flat` is not of shape (size,).
        """
        if flat.shape != (self.size,):
            raise ProtocolError(f"a flat buffer of shape {flat.shape} where ({self.size},) belongs")
        return {t.name: flat[start : start + t.size].reshape(t.shape) for t, start in self.offsets()}

    def require_same(self, other: "Manifest") -> None:
        """Check that `other` describes the same buffer as this one.

        Raises:
            ProtocolError: names the tensors that are missing, extra, misshaped or out of order.
        """
        if self.tensors == other.tensors:
            return
        mine, theirs = ({t.name: t.shape for t in m.tensors} for m in (self, other))
        faults = [f"missing {name!r}" for name in mine if name not in theirs]
        faults += [f"unexpected {name!r}" for name in theirs if name not in mine]
        faults += [
            f"{name!r} is {theirs[name]} and should be {shape}"
            for name, shape in mine.items()
            if name in theirs and theirs[name] != shape
        ]
        raise ProtocolError("the tensors differ from the model's: " + "; ".join(faults[:5] or ["their order"]))


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a flat buffer: `data` starts `offset` bytes into it."""

    offset: int
    data: memoryview
    crc32c: int


def chunks(flat: Flat, start: int = 0, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """The chunks of `flat` from byte `start` on, each a view (nothing is copied)."""
    view = np.ascontiguousarray(flat).view(np.uint8).data
    for offset in range(start, len(view), chunk_bytes):
        data = view[offset : offset + chunk_bytes]
        yield Chunk(offset, data, checksum(data))


def checksum(data: memoryview | bytes) -> int:
    """CRC-32C (Castagnoli, as in RFC 3720), in hardware where there is any."""
    # The C extension takes read-only buffers of bytes; a numpy wrapper hands them over without a copy.
    return int(google_crc32c.value(data if isinstance(data, bytes) else np.frombuffer(data, np.uint8)))


class Assembler:
    """Receives chunks, in order and without gaps, into one preallocated flat buffer.

    `next_offset` says how much is held, so that a broken transfer can go on where it stopped.
    """

    def __init__(self, total_bytes: int, out: Flat | None = None) -> None:
        if total_bytes % 4 or total_bytes < 0:
            raise ProtocolError(f"a buffer of {total_bytes} bytes does not hold whole float32 numbers")
        self.flat: Flat = np.empty(total_bytes // 4, np.float32) if out is None else out
        if self.flat.nbytes != total_bytes:
            raise ProtocolError(f"{total_bytes} bytes do not fit a buffer of {self.flat.nbytes}")
        self._bytes = self.flat.view(np.uint8).data
        self.next_offset = 0

    @property
    def complete(self) -> bool:
        """Whether every byte has arrived."""
        return self.next_offset == len(self._bytes)

    def add(self, chunk: Chunk) -> None:
        """Take the next chunk; one that is held already is checked and passed over.

        Raises:
            CorruptData: the bytes do not match their checksum; nothing was taken.
            ProtocolError: a gap before the chunk, an overlap, or bytes beyond the end.
        """
        end = chunk.offset + len(chunk.data)
        if end > len(self._bytes):
            raise ProtocolError(f"a chunk ends at byte {end} of a buffer of {len(self._bytes)}")
        if checksum(chunk.data) != chunk.crc32c:
            raise CorruptData(f"the chunk at byte {chunk.offset} does not match its checksum; send it again")
        if end <= self.next_offset:
            return
        if chunk.offset != self.next_offset:
            raise ProtocolError(f"a chunk at byte {chunk.offset} where byte {self.next_offset} comes next")
        self._bytes[chunk.offset : end] = chunk.data
        self.next_offset = end
