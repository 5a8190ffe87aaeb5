"""Interface of a codec."""

from abc import ABC, abstractmethod
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from hypergpu.common.errors import ProtocolError

BLOCK_VALUES: Final = 4096
"""Values per block: few enough that one large value costs the precision of few others, many enough that the scale of a
block costs 0.1 % of the bytes of int8 (Dettmers et al., "8-bit optimizers via block-wise quantization", ICLR 2022)."""

Values = npt.NDArray[np.float32]
"""Blocks of values, shape (blocks, values of a block)."""
Rows = npt.NDArray[np.uint8]
"""Encoded blocks, shape (blocks, bytes of a block)."""


class Codec(ABC):
    """Turns blocks of float32 values into blocks of bytes, and back.

    All blocks of a buffer have `BLOCK_VALUES` values, but for a shorter one at its end.

    Attributes:
        name: name in the settings and on the wire.
        version: number of the byte layout; a change of the layout needs another one.
        is_exact: True if decoding returns the values themselves, so that a payload is the buffer's own bytes.
        needs_feedback: True if so much is lost that the sender must add it to its next update, see `ErrorFeedback`.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    is_exact: ClassVar[bool] = False
    needs_feedback: ClassVar[bool] = False

    @abstractmethod
    def block_bytes(self, values: int) -> int:
        """Return the size of an encoded block."""

    def encoded_bytes(self, values: int) -> int:
        """Return the size of an encoded buffer."""
        blocks, rest = divmod(values, BLOCK_VALUES)
        return blocks * self.block_bytes(BLOCK_VALUES) + (self.block_bytes(rest) if rest else 0)

    @abstractmethod
    def encode(self, values: Values, out: Rows, decoded: Values) -> None:
        """Encode blocks of one length, of finite values, into `out`; `decoded` receives what `decode` returns of it."""

    @abstractmethod
    def decode(self, rows: Rows, out: Values) -> None:
        """Decode blocks of one length.

        Raises:
            ProtocolError: the bytes are not what `encode` writes. `out` may have been overwritten, and nothing else.
        """


def require(sound: npt.NDArray[np.bool_], codec: Codec, fault: str) -> None:
    """Check that a condition holds for every block.

    Raises:
        ProtocolError: it does not.
    """
    if not sound.all():
        raise ProtocolError(f"a payload of codec {codec.name} has a block with {fault}; encode the values again")
