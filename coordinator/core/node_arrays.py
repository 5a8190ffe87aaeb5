"""Columns of per-node figures, so that a decision about ten thousand nodes is a few array operations."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from hypergpu.common.errors import InvalidInput, UnknownName
from hypergpu.common.statistics import quantiles

Scalar = TypeVar("Scalar", bound=np.generic)
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class NodeIndex:
    """Two-way map of node ids and rows. Rows are numbered in order of registration and never change."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self.ids: list[str] = []

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._rows

    def add(self, node_id: str) -> int | None:
        """Add a node and return its row, or None if it is already registered.

        Raises:
            InvalidInput: The id is empty.
        """
        if not node_id:
            raise InvalidInput("a node needs a non-empty id")
        if node_id in self._rows:
            return None
        row = self._rows[node_id] = len(self.ids)
        self.ids.append(node_id)
        return row

    def row(self, node_id: str) -> int:
        """Return the row of a registered node.

        Raises:
            UnknownName: The node is not registered; the error suggests the nearest known id.
        """
        try:
            return self._rows[node_id]
        except KeyError:
            raise UnknownName("node", node_id, self.ids) from None

    def rows(self, node_ids: Iterable[str]) -> Ints:
        """Return the rows of several nodes, in the given order.

        Raises:
            UnknownName: A node is not registered; the error suggests the nearest known id.
        """
        known = self._rows
        try:
            return np.fromiter(map(known.__getitem__, node_ids), dtype=np.int64)
        except KeyError as error:
            raise UnknownName("node", str(error.args[0]), self.ids) from None


class RingBuffer:
    """Ring buffers with the last `length` values of each row; unfilled places are NaN."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.values: Floats = np.full((0, length), np.nan)
        self.counts: Ints = np.zeros(0, dtype=np.int64)

    def grow(self, rows: int) -> None:
        """Make room for at least `rows` rows."""
        self.values = grow_column(self.values, rows, np.nan)
        self.counts = grow_column(self.counts, rows, 0)

    def push(self, row: int, value: float, times: int = 1) -> None:
        """Append `value` to one row `times` times, overwriting its oldest values once it is full."""
        count = self.counts.item(row)
        at = count % self.length
        if times == 1:  # nearly always, and a slice takes several times as long
            self.values[row, at] = value
        else:
            self.values[row, at : at + times] = value
            if at + times > self.length:
                self.values[row, : at + times - self.length] = value
        self.counts[row] = count + times

    def push_each(self, rows: Ints, values: Floats) -> None:
        """Append one value to each row; the rows must be distinct."""
        self.values[rows, self.counts[rows] % self.length] = values
        self.counts[rows] += 1

    def clear(self, rows: Ints) -> None:
        """Remove all values of these rows."""
        self.values[rows] = np.nan
        self.counts[rows] = 0

    def forget(self, rows: Ints, keep: int) -> None:
        """Remove all values of these rows but for the latest `keep`; `counts` stays."""
        kept = self.latest(rows, keep)
        at = (self.counts[rows] % self.length)[:, None] + np.arange(-keep, 0)
        self.values[rows] = np.nan
        self.values[rows[:, None], at % self.length] = kept

    def erase_latest(self, row: int, count: int) -> None:
        """Remove the latest `count` values of one row; `counts` stays."""
        kept = min(count, self.length)
        self.values[row, (self.counts.item(row) - 1 - np.arange(kept)) % self.length] = np.nan

    def filled(self, rows: Ints) -> Ints:
        """Return the number of values in each row."""
        held: Ints = self.length - np.isnan(self.values[rows]).sum(axis=1)
        return held

    def latest(self, rows: Ints, count: int) -> Floats:
        """Return the latest `count` values of each row, oldest first, padded with NaN in front: shape (rows, count)."""
        kept = min(count, self.length)
        at = (self.counts[rows] % self.length)[:, None] + np.arange(-kept, 0)
        at += self.length * (at < 0)  # a row with fewer values: these places are still NaN
        window: Floats = np.full((len(rows), count), np.nan)
        window[:, count - kept :] = self.values[rows[:, None], at]
        return window

    def quantiles(self, rows: Ints, wanted: Sequence[float]) -> Floats:
        """Return linearly interpolated quantiles of each row: shape (len(wanted), rows); NaN for an empty row."""
        return quantiles(self.values[rows], wanted)


def scatter_rows(values: Floats, places: Ints, length: int) -> Floats:
    """Return an array of this length with `values` at `places` and NaN elsewhere."""
    whole = np.full(length, np.nan)
    whole[places] = values
    return whole


def grow_column(array: npt.NDArray[Scalar], rows: int, fill: float) -> npt.NDArray[Scalar]:
    """Return `array` with room for at least `rows` rows; capacity doubles, and new rows hold `fill`."""
    if rows <= len(array):
        return array
    bigger = np.full((max(rows, 2 * len(array), 16), *array.shape[1:]), fill, dtype=array.dtype)
    bigger[: len(array)] = array
    return bigger
