"""Codec of the largest values of each block."""

from typing import Final

import numpy as np
import numpy.typing as npt

from hypergpu.common.codecs.codec import Codec, Rows, Values, require

_KEPT: Final = 64
"""One of so many values is kept: top-64 of 4,096, as in Sarfi et al., "Communication efficient LLM pre-training with
SparseLoCo" (2025)."""
_LEVELS_BYTES: Final = 8
_HIGH, _NEGATIVE = np.uint8(1), np.uint8(2)


class TopK(Codec):
    """The largest 1/64 of the values of each block by magnitude, with 2 bits each: 1/136 of the bytes.

    Layout of a block of n values, of which k = ⌈n/64⌉ are kept:
      - two levels (float32), 0 ≤ low ≤ high;
      - k indices within the block, increasing, 12 bits each: two of them in three bytes, low bits first;
      - k codes of 2 bits, four in a byte, low bits first: bit 0 selects the high level, bit 1 the negative sign.
    Bits without an index or a code are 0. Among equal magnitudes the first ones are kept. The levels are the means of
    two groups of the kept magnitudes, which are split so that the squared error is least.
    """

    name = "topk"
    needs_feedback = True

    def block_bytes(self, values: int) -> int:
        """See `Codec.block_bytes`."""
        kept = _kept(values)
        return _LEVELS_BYTES + (3 * kept + 1) // 2 + (kept + 3) // 4

    def encode(self, values: Values, out: Rows, decoded: Values) -> None:
        """See `Codec.encode`."""
        kept = _kept(values.shape[1])
        np.abs(values, out=decoded)
        indices = _largest(decoded, kept)
        magnitudes = np.take_along_axis(decoded, indices, axis=1)
        levels, is_high = _split(magnitudes)
        codes = is_high * _HIGH
        codes |= np.signbit(np.take_along_axis(values, indices, axis=1)) * _NEGATIVE
        codes_at = _LEVELS_BYTES + (3 * kept + 1) // 2
        out[:, :_LEVELS_BYTES].view(np.float32)[:] = levels
        out[:, _LEVELS_BYTES:codes_at] = _pack_indices(indices)
        out[:, codes_at:] = _pack_codes(codes)
        _scatter(levels, indices, codes, decoded)

    def decode(self, rows: Rows, out: Values) -> None:
        """See `Codec.decode`."""
        kept = _kept(out.shape[1])
        codes_at = _LEVELS_BYTES + (3 * kept + 1) // 2
        levels = rows[:, :_LEVELS_BYTES].view(np.float32)
        low, high = levels[:, 0], levels[:, 1]
        require((low >= 0) & (low <= high) & np.isfinite(high), self, "a level that is out of range")
        indices = _unpack_indices(rows[:, _LEVELS_BYTES:codes_at], kept)
        require(indices[:, -1] < out.shape[1], self, "an index that is out of range")
        require(indices[:, 1:] > indices[:, :-1], self, "indices that do not increase")
        codes = _unpack_codes(rows[:, codes_at:], kept)
        _scatter(levels, indices, codes, out)


def _kept(values: int) -> int:
    """Return the number of values that are kept of a block."""
    return -(-values // _KEPT)


def _largest(magnitudes: Values, kept: int) -> npt.NDArray[np.intp]:
    """Return the increasing indices of the largest magnitudes of each block, shape (blocks, kept)."""
    width = magnitudes.shape[1]
    thresholds = np.partition(magnitudes, width - kept, axis=1)[:, width - kept, None]
    chosen = magnitudes >= thresholds
    for row in np.flatnonzero(np.count_nonzero(chosen, axis=1) > kept):  # more than enough equal the threshold
        above = np.flatnonzero(magnitudes[row] > thresholds[row])
        equal = np.flatnonzero(magnitudes[row] == thresholds[row])[: kept - len(above)]
        chosen[row] = False
        chosen[row, above] = chosen[row, equal] = True
    indices: npt.NDArray[np.intp] = np.flatnonzero(chosen) % width
    return indices.reshape(-1, kept)


def _split(magnitudes: Values) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return the two levels of each block, and which of its magnitudes the high level stands for.

    The best two groups are the smallest and the largest values, so all splits of the sorted values are tried: the
    squared error is least where Σ (sum of a group)² ÷ (its count) is largest (Fisher, 1958).
    """
    kept = magnitudes.shape[1]
    if kept == 1:
        return np.repeat(magnitudes, 2, axis=1), np.zeros(magnitudes.shape, np.bool_)
    ordered = np.sort(magnitudes, axis=1)
    sums = np.cumsum(ordered, axis=1, dtype=np.float64)
    counts = np.arange(1, kept)
    total, below = sums[:, -1:], sums[:, :-1]
    gains = below * below / counts + (total - below) ** 2 / (kept - counts)
    size = np.argmax(gains, axis=1)[:, None] + 1  # of the lower group
    low_sum = np.take_along_axis(sums, size - 1, axis=1)
    levels = np.concatenate((low_sum / size, (total - low_sum) / (kept - size)), axis=1).astype(np.float32)
    np.maximum(levels[:, 0], 0, out=levels[:, 0])
    np.maximum(levels[:, 1], levels[:, 0], out=levels[:, 1])  # rounding may turn equal levels around
    return levels, magnitudes > np.take_along_axis(ordered, size - 1, axis=1)


def _scatter(levels: Values, indices: npt.NDArray[np.intp], codes: Rows, out: Values) -> None:
    """Write the kept values to their places, and 0 to all others."""
    kept = np.take_along_axis(levels, (codes & _HIGH).astype(np.intp), axis=1)
    np.negative(kept, out=kept, where=(codes & _NEGATIVE) != 0)
    out.fill(0.0)
    np.put_along_axis(out, indices, kept, axis=1)


def _pack_indices(indices: npt.NDArray[np.intp]) -> Rows:
    """Return indices of 12 bits, two in three bytes; without the last byte if their number is odd."""
    blocks, kept = indices.shape
    pairs = np.zeros((blocks, (kept + 1) // 2, 2), np.uint32)
    pairs.reshape(blocks, -1)[:, :kept] = indices
    words: npt.NDArray[np.uint32] = pairs[:, :, 0] | pairs[:, :, 1] << 12
    rows = words.view(np.uint8).reshape(blocks, -1, 4)[:, :, :3].reshape(blocks, -1)
    return rows[:, : (3 * kept + 1) // 2]


def _unpack_indices(rows: Rows, kept: int) -> npt.NDArray[np.intp]:
    blocks = len(rows)
    padded = np.zeros((blocks, 3 * ((kept + 1) // 2)), np.intp)
    padded[:, : rows.shape[1]] = rows
    first, middle, last = (padded[:, start::3] for start in range(3))
    indices = np.empty((blocks, padded.shape[1] // 3, 2), np.intp)
    indices[:, :, 0] = first | (middle & 0x0F) << 8
    indices[:, :, 1] = middle >> 4 | last << 4
    return indices.reshape(blocks, -1)[:, :kept]


def _pack_codes(codes: Rows) -> Rows:
    blocks, kept = codes.shape
    padded = np.zeros((blocks, 4 * ((kept + 3) // 4)), np.uint8)
    padded[:, :kept] = codes
    rows: Rows = padded[:, 0::4] | padded[:, 1::4] << 2 | padded[:, 2::4] << 4 | padded[:, 3::4] << 6
    return rows


def _unpack_codes(rows: Rows, kept: int) -> Rows:
    codes = np.empty((len(rows), rows.shape[1], 4), np.uint8)
    for place in range(4):
        codes[:, :, place] = rows >> 2 * place & 3
    return codes.reshape(len(rows), -1)[:, :kept]
