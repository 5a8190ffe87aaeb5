"""Codecs of small integers: multiples of a scale of their block."""

from typing import Final

import numpy as np
import numpy.typing as npt

from hypergpu.common.codecs.codec import Codec, Rows, Values, require

_SCALE_BYTES: Final = 4
_SMALLEST_SCALE: Final = np.finfo(np.float32).tiny
"""Smallest normal number: its reciprocal is finite."""
_DROPPED_BITS: Final = np.uint32(0xFF)
"""Bits that a scale does not use. With 16 bits of precision, its product with an integer of up to 8 bits is exact: all
machines decode the same numbers, and encoding them again gives the same bytes."""


class _Integers(Codec):
    """Blocks that begin with a scale.

    The scale is (largest magnitude ÷ largest integer), rounded up to 16 bits of precision. Values are rounded to the
    nearest multiple of it, ties to even; the error of a value is at most half the scale.
    """

    limit: int
    """Largest integer; the smallest is its negative."""

    def __init__(self) -> None:
        self._largest_scale = _floor(np.float32(np.finfo(np.float32).max) / np.float32(self.limit))

    def _write_scales(self, values: Values, out: Rows) -> npt.NDArray[np.float32]:
        """Write the scale of each block, and return them, shape (blocks, 1)."""
        scales: npt.NDArray[np.float32] = np.maximum(values.max(axis=1), -values.min(axis=1))
        scales /= np.float32(self.limit)
        bits = scales.view(np.uint32)
        bits += _DROPPED_BITS
        bits &= ~_DROPPED_BITS
        np.clip(scales, _SMALLEST_SCALE, self._largest_scale, out=scales)
        out[:, :_SCALE_BYTES].view(np.float32)[:, 0] = scales
        return scales[:, None]

    @staticmethod
    def _round(values: Values, scales: Values, out: Values) -> None:
        """Write the integers, as floats."""
        np.multiply(values, np.reciprocal(scales), out=out)
        np.rint(out, out=out)

    def _read_scales(self, rows: Rows) -> npt.NDArray[np.float32]:
        """Return the scale of each block, shape (blocks, 1)."""
        scales = rows[:, :_SCALE_BYTES].view(np.float32)
        require((scales >= _SMALLEST_SCALE) & (scales <= self._largest_scale), self, "a scale that is out of range")
        return scales

    def _require_in_range(self, integers: npt.NDArray[np.int8]) -> None:
        require(integers.min(axis=1) >= -self.limit, self, "an integer that is out of range")


class Int8(_Integers):
    """8 bits a value, and 32 a block: a quarter of the bytes.

    Layout of a block: scale (float32), then one signed byte in -127 … 127 for each value. The error of a value is at
    most (largest magnitude of its block) ÷ 254.
    """

    name = "int8"
    limit = 127

    def block_bytes(self, values: int) -> int:
        """See `Codec.block_bytes`."""
        return _SCALE_BYTES + values

    def encode(self, values: Values, out: Rows, decoded: Values) -> None:
        """See `Codec.encode`."""
        scales = self._write_scales(values, out)
        self._round(values, scales, decoded)
        np.copyto(out[:, _SCALE_BYTES:].view(np.int8), decoded, casting="unsafe")
        decoded *= scales

    def decode(self, rows: Rows, out: Values) -> None:
        """See `Codec.decode`."""
        scales, integers = self._read_scales(rows), rows[:, _SCALE_BYTES:].view(np.int8)
        self._require_in_range(integers)
        np.multiply(integers, scales, out=out)


class Int4(_Integers):
    """4 bits a value, and 32 a block: an eighth of the bytes.

    Layout of a block of n values: scale (float32), then ⌈n/2⌉ bytes. The low half of byte j is value j and its high
    half value ⌈n/2⌉ + j, or 0 if there is no such value; each is a signed integer in -7 … 7. The error of a value is at
    most (largest magnitude of its block) ÷ 14.
    """

    name = "int4"
    needs_feedback = True
    limit = 7

    def block_bytes(self, values: int) -> int:
        """See `Codec.block_bytes`."""
        return _SCALE_BYTES + (values + 1) // 2

    def encode(self, values: Values, out: Rows, decoded: Values) -> None:
        """See `Codec.encode`."""
        scales = self._write_scales(values, out)
        self._round(values, scales, decoded)
        integers = decoded.astype(np.int8).view(np.uint8)
        packed, half = out[:, _SCALE_BYTES:], (values.shape[1] + 1) // 2
        np.bitwise_and(integers[:, :half], 0x0F, out=packed)
        packed[:, : values.shape[1] - half] |= integers[:, half:] << 4
        decoded *= scales

    def decode(self, rows: Rows, out: Values) -> None:
        """See `Codec.decode`."""
        scales, packed = self._read_scales(rows), rows[:, _SCALE_BYTES:]
        half = packed.shape[1]
        for integers, part in (
            ((packed << 4).view(np.int8) >> 4, out[:, :half]),
            (packed.view(np.int8)[:, : out.shape[1] - half] >> 4, out[:, half:]),
        ):
            if part.size:
                self._require_in_range(integers)
                np.multiply(integers, scales, out=part)


def _floor(scale: np.float32) -> np.float32:
    """Return the largest number with 16 bits of precision that does not exceed `scale`."""
    bits = np.array([scale], np.float32).view(np.uint32)
    bits &= ~_DROPPED_BITS
    return np.float32(bits.view(np.float32)[0])
