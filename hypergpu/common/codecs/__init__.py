"""Codecs: formats in which parameters and updates travel, from exact float32 to 1/136 of its bytes.

A codec turns a flat float32 buffer into a payload of a known size, and back. It works on blocks of 4,096 values; each
block is coded on its own. All numbers are little-endian. Every decoded value is the exact product or copy of stored
numbers, so that all machines decode the same bits.
"""

from collections.abc import Mapping
from typing import Final

from hypergpu.common.codecs.codec import BLOCK_VALUES, Codec
from hypergpu.common.codecs.feedback import ErrorFeedback
from hypergpu.common.codecs.floats import Bfloat16, Float32
from hypergpu.common.codecs.integers import Int4, Int8
from hypergpu.common.codecs.payload import PayloadFormat, PayloadReader
from hypergpu.common.codecs.topk import TopK
from hypergpu.common.errors import UnknownName

CODECS: Final[Mapping[str, Codec]] = {codec.name: codec for codec in (Float32(), Bfloat16(), Int8(), Int4(), TopK())}
"""Codecs by name."""


def find_codec(name: str) -> Codec:
    """Return the codec of this name.

    Raises:
        UnknownName: there is none.
    """
    codec = CODECS.get(name)
    if codec is None:
        raise UnknownName("codec", name, CODECS)
    return codec


__all__ = [
    "BLOCK_VALUES",
    "CODECS",
    "Codec",
    "ErrorFeedback",
    "PayloadFormat",
    "PayloadReader",
    "find_codec",
]
