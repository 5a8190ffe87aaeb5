"""Payload of a model: its parameters in the format of a codec, then its state as float32."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from hypergpu.common.codecs.codec import BLOCK_VALUES, Codec
from hypergpu.common.codecs.floats import Float32
from hypergpu.common.errors import NonFiniteUpdate, ProtocolError
from hypergpu.common.tensors import Flat, Payload

_BATCH_BLOCKS: Final = 16
"""Blocks that are coded at once: their values, with what is computed from them, fit the CPU's second-level cache."""
_EXACT: Final = Float32()


class _Batch(NamedTuple):
    """Blocks of one length that follow each other."""

    codec: Codec
    values: slice
    data: slice
    """Their bytes in the payload."""
    blocks: int


@dataclass(frozen=True)
class PayloadFormat:
    """Format of a payload: which codec, for how many values.

    State (such as BatchNorm's running statistics) is exact: an error in it is not corrected by further steps.
    """

    codec: Codec
    parameters: int
    """Number of values in the codec's format, at the beginning of the buffer."""
    state: int = 0
    """Number of float32 values that follow."""

    @property
    def size(self) -> int:
        """Number of values in the flat buffer."""
        return self.parameters + self.state

    @property
    def payload_bytes(self) -> int:
        """Size of the payload; it does not depend on the values."""
        return self.codec.encoded_bytes(self.parameters) + _EXACT.encoded_bytes(self.state)

    def encode(self, values: Flat, out: Payload | None = None, error: Flat | None = None) -> tuple[Payload, float]:
        """Return the payload of `values`, and the noise of the codec: |decoded - values|² ÷ |values|², in 0 … 1.

        Args:
            values: shape (size,).
            out: buffer of payload_bytes to use; a new one by default.
            error: receives values - decoded, shape (parameters,).

        Returns:
            The payload of an exact codec shares the memory of `values`.

        Raises:
            NonFiniteUpdate: the values hold NaN or infinity.
            ValueError: a buffer has another shape.
        """
        if values.shape != (self.size,) or (error is not None and error.shape != (self.parameters,)):
            raise ValueError(f"a payload of {self.size} values was given {values.shape}")
        if self.codec.is_exact:
            for batch in self._batches():
                _require_finite(values[batch.values])
            if error is not None:
                error.fill(0.0)
            return np.ascontiguousarray(values).view(np.uint8), 0.0
        payload = np.empty(self.payload_bytes, np.uint8) if out is None else out
        if payload.shape != (self.payload_bytes,) or not payload.flags.c_contiguous:
            raise ValueError(f"a payload of {self.payload_bytes} bytes for a buffer of {payload.shape}")
        scratch: Flat = np.empty(_BATCH_BLOCKS * BLOCK_VALUES, np.float32)
        lost = exact = 0.0
        for batch in self._batches():
            part = values[batch.values]
            exact += _require_finite(part)
            decoded = _encode(batch, part, payload, scratch[: len(part)])
            np.subtract(part, decoded, out=decoded)
            lost += _squares(decoded)
            if error is not None and batch.codec is self.codec:
                np.copyto(error[batch.values], decoded)
        return payload, min(1.0, lost / exact) if exact else 0.0

    def decode(self, payload: Payload, out: Flat) -> None:
        """Decode a whole payload into `out`, shape (size,).

        Raises:
            ProtocolError: the payload is not in this format.
        """
        if out.shape != (self.size,):
            raise ValueError(f"a payload of {self.size} values for a buffer of {out.shape}")
        for start, part in PayloadReader(self, payload).read():
            np.copyto(out[start : start + len(part)], part)

    def add_to(self, payload: Payload, out: Flat) -> None:
        """Add the parameters of a whole payload to those in `out`, shape (size,), and replace the state there.

        Raises:
            ProtocolError: the payload is not in this format; `out` may have been changed.
        """
        if out.shape != (self.size,):
            raise ValueError(f"a payload of {self.size} values for a buffer of {out.shape}")
        for start, part in PayloadReader(self, payload).read():
            place = out[start : start + len(part)]
            np.add(place, part, out=place) if start < self.parameters else np.copyto(place, part)

    def _batches(self) -> Iterator[_Batch]:
        start = at = 0
        for codec, values in ((self.codec, self.parameters), (_EXACT, self.state)):
            end = start + values
            while start < end:
                width = min(BLOCK_VALUES, end - start)
                blocks = min(_BATCH_BLOCKS, (end - start) // width)
                stop, until = start + blocks * width, at + blocks * codec.block_bytes(width)
                yield _Batch(codec, slice(start, stop), slice(at, until), blocks)
                start, at = stop, until


class PayloadReader:
    """Decodes a payload in order, also while its bytes still arrive.

    Args:
        form: format of the payload.
        payload: buffer of the whole payload.

    Raises:
        ProtocolError: the payload has another length.
    """

    def __init__(self, form: PayloadFormat, payload: Payload) -> None:
        if payload.shape != (form.payload_bytes,):
            raise ProtocolError(
                f"a payload of {payload.size} bytes; codec {form.codec.name} has {form.payload_bytes} for this model"
            )
        self._payload = payload
        self._batches = form._batches()
        self._next = next(self._batches, None)
        self._scratch: Flat = np.empty(min(form.size, _BATCH_BLOCKS * BLOCK_VALUES), np.float32)

    def read(self, received: int | None = None) -> Iterator[tuple[int, Flat]]:
        """Yield what can be decoded and was not yet: the index of the first value, and the values.

        The values are read-only, in a buffer that the next ones overwrite, or in the payload.

        Args:
            received: number of bytes of the payload that are there; by default all.

        Raises:
            ProtocolError: the bytes are not what the codec writes.
        """
        available = len(self._payload) if received is None else received
        while self._next is not None and self._next.data.stop <= available:
            batch = self._next
            rows = self._payload[batch.data].reshape(batch.blocks, -1)
            if batch.codec.is_exact:
                part = self._payload[batch.data].view(np.float32)
            else:
                part = self._scratch[: batch.values.stop - batch.values.start]
                batch.codec.decode(rows, part.reshape(batch.blocks, -1))
            self._next = next(self._batches, None)
            yield batch.values.start, part


def _encode(batch: _Batch, values: Flat, payload: Payload, decoded: Flat) -> Flat:
    """Encode a batch into its place in the payload, and return the decoded values."""
    rows = payload[batch.data].reshape(batch.blocks, -1)
    batch.codec.encode(values.reshape(batch.blocks, -1), rows, decoded.reshape(batch.blocks, -1))
    return decoded


def _require_finite(values: Flat) -> float:
    """Return Σ values².

    Raises:
        NonFiniteUpdate: a value is NaN or infinite.
    """
    square = _squares(values)
    if not math.isfinite(square):
        raise NonFiniteUpdate("the values to encode hold NaN or infinity")
    return square


def _squares(values: Flat) -> float:
    """Return Σ values²; it is NaN or infinite only if one of them is."""
    with np.errstate(over="ignore", invalid="ignore"):
        square = float(np.dot(values, values))
        if not math.isfinite(square):  # the squares may overflow float32
            wide = values.astype(np.float64)
            square = float(np.dot(wide, wide))
    return square
