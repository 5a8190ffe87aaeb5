"""Detection of changes of a link in its round trips, so that old ones do not outvote new ones."""

import math

import numpy as np

from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints

SHIFT = 1.5
"""Factor between the range of the round trips since a change and that of those before it."""
RETURN = 2
"""Round trips in the range before a change that show that it is over."""
_FEWEST, _MOST = 3, 8
"""Round trips since a change with which it is looked for. Up to two longer ones may be jitter."""
_ORDERS = 165
"""Least number of ways to choose the ranks of the latest values: those of 3 of 11."""
_LEAST_BEFORE = {
    since: next(before for before in range(1, 64) if math.comb(before + since, since) >= _ORDERS)
    for since in range(_FEWEST, _MOST + 1)
}
"""Fewest round trips before a change, by the number of those since."""


def find_changes(window: Floats) -> tuple[Ints, Floats, Floats]:
    """Find the links whose latest round trips are all beyond the range of all earlier ones, by a factor of `SHIFT`.

    Of a steady link, whatever its distribution, each number of latest round trips is beyond that range with a
    probability of 2 / `_ORDERS` at most, even without the factor: all orders of its round trips are as likely.

    Args:
        window: Round trips of each link, oldest first, with NaN in front: shape (links, length).

    Returns:
        Number of the round trips since the change, 0 without one; the shortest before it, and the longest.
    """
    length = window.shape[1]
    lowest, highest = np.fmin.accumulate(window, axis=1), np.fmax.accumulate(window, axis=1)
    known = np.cumsum(~np.isnan(window), axis=1)
    latest = window[:, : -_MOST - 1 : -1]
    least, most = np.fmin.accumulate(latest, axis=1), np.fmax.accumulate(latest, axis=1)
    since, low, high = np.zeros(len(window), np.int64), np.full(len(window), np.nan), np.full(len(window), np.nan)
    for count in range(_FEWEST, min(_MOST, length - 1) + 1):
        last = length - count - 1  # of those before
        enough = known[:, last] >= _LEAST_BEFORE[count]
        longer = least[:, count - 1] > SHIFT * highest[:, last]
        shorter = most[:, count - 1] * SHIFT < lowest[:, last]
        found = enough & (longer | shorter)
        since[found], low[found], high[found] = count, lowest[found, last], highest[found, last]
    return since, low, high


def find_returns(window: Floats, before_low: Floats, before_high: Floats) -> tuple[Bools, Floats, Floats]:
    """Find the links whose latest `RETURN` round trips are in the range before a change, and beyond the present one.

    Returns:
        Mask of these links; the shortest of the earlier round trips, and the longest.
    """
    low, high = np.fmin.reduce(window[:, :-RETURN], axis=1), np.fmax.reduce(window[:, :-RETURN], axis=1)
    least, most = np.fmin.reduce(window[:, -RETURN:], axis=1), np.fmax.reduce(window[:, -RETURN:], axis=1)
    up = (least >= before_low) & (least > SHIFT * high)
    down = (most <= before_high) & (most * SHIFT < low)
    return up | down, low, high
