"""Codecs of floating-point numbers: float32 itself, and bfloat16."""

from typing import Final

import numpy as np

from hypergpu.common.codecs.codec import Codec, Rows, Values

_LARGEST_BFLOAT16: Final = np.uint32(0x7F7F_0000)
"""Bits of the largest finite bfloat16 as a float32, 3.39e38."""
_MAGNITUDE: Final = np.uint32(0x7FFF_FFFF)
_UPPER_HALF: Final = np.uint32(0xFFFF_0000)


class Float32(Codec):
    """The values themselves: 4 bytes a value."""

    name = "none"
    is_exact = True

    def block_bytes(self, values: int) -> int:
        """See `Codec.block_bytes`."""
        return 4 * values

    def encode(self, values: Values, out: Rows, decoded: Values) -> None:
        """See `Codec.encode`."""
        np.copyto(out.view(np.float32), values)
        np.copyto(decoded, values)

    def decode(self, rows: Rows, out: Values) -> None:
        """See `Codec.decode`."""
        np.copyto(out, rows.view(np.float32))


class Bfloat16(Codec):
    """The upper half of a float32: 2 bytes a value, rounded to nearest, ties to even.

    The relative error of a normal number is at most 2⁻⁸. Numbers beyond the largest bfloat16 become that number.
    """

    name = "bf16"

    def block_bytes(self, values: int) -> int:
        """See `Codec.block_bytes`."""
        return 2 * values

    def encode(self, values: Values, out: Rows, decoded: Values) -> None:
        """See `Codec.encode`."""
        bits, rounded = values.view(np.uint32), decoded.view(np.uint32)
        np.right_shift(bits, 16, out=rounded)
        rounded &= np.uint32(1)
        rounded += np.uint32(0x7FFF)
        rounded += bits
        if int((rounded & _MAGNITUDE).max(initial=0)) > _LARGEST_BFLOAT16 | 0xFFFF:
            np.minimum(rounded & _MAGNITUDE, _LARGEST_BFLOAT16, out=rounded)
            rounded |= bits & ~_MAGNITUDE
        np.copyto(out.view(np.uint16), decoded.view(np.uint16)[:, 1::2])
        rounded &= _UPPER_HALF

    def decode(self, rows: Rows, out: Values) -> None:
        """See `Codec.decode`."""
        bits = out.view(np.uint32)
        np.left_shift(rows.view(np.uint16), 16, out=bits, dtype=np.uint32)
