"""Time of a transfer by the rate of its link: the formula of `rates`, the other way round."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from hypergpu.coordinator.core.links.rates import INITIAL_WINDOW_BYTES
from hypergpu.coordinator.core.node_arrays import Bools, Floats

_MOST_DOUBLINGS: Final = 40


def transfer_seconds(nbytes: Floats, rates: Floats, round_trips: Floats) -> Floats:
    """Return the time from the first to the last byte of transfers that begin in slow start.

    The sender loses a part of each round trip until its window has reached rate · round trip:

        T = n / R + Σ (r - w·2^k / R), k = 0 … K-1

    Args:
        nbytes: Sizes of the transfers.
        rates: Rate of each link in bytes per second; NaN if unknown, which leaves the time unknown.
        round_trips: Round trip of each idle link in seconds; NaN counts as none.
    """
    window = float(INITIAL_WINDOW_BYTES)
    round_trips = np.nan_to_num(round_trips)
    to_line_rate = np.ceil(np.log2(np.maximum(rates * round_trips / window, 1.0)))
    flights = np.ceil(np.log2(1.0 + nbytes / window))
    doublings = np.clip(np.minimum(to_line_rate, flights - 1.0), 0.0, _MOST_DOUBLINGS)
    seconds: Floats = (nbytes - window * (np.exp2(doublings) - 1.0)) / rates + doublings * round_trips
    return seconds


@dataclass(frozen=True, slots=True)
class DirectionRates:
    """Rate of each link in one direction."""

    rates: Floats
    """Bytes per second: the measured rate, else the rate that the link has shown at least, else NaN."""
    is_measured: Bools
    is_provisional: Bools
    """Links whose rate is that of their first transfer, or over another number of connections."""


@dataclass(frozen=True, slots=True)
class TransferRates:
    """Rates of links in both directions."""

    up: DirectionRates
    down: DirectionRates
    round_trips: Floats
    """Round trip of each idle link in seconds; NaN if unknown."""

    def seconds(self, up_bytes: Floats, down_bytes: Floats) -> Floats:
        """Return the time of an update and of parameters on each link; a direction of unknown rate counts as none."""
        up = transfer_seconds(up_bytes, self.up.rates, self.round_trips)
        return np.nan_to_num(up) + np.nan_to_num(transfer_seconds(down_bytes, self.down.rates, self.round_trips))
