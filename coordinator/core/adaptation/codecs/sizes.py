"""Bytes of a model in each codec, and the time that encoding takes."""

import math
from typing import Final, NamedTuple

import numpy as np

from hypergpu.common.codecs import find_codec
from hypergpu.common.transfer_codecs import TransferCodecs
from hypergpu.coordinator.core.adaptation.codecs.choice import PARAMETERS_CODECS
from hypergpu.coordinator.core.adaptation.codecs.direction_times import Direction
from hypergpu.coordinator.core.adaptation.codecs.noise import UPDATE_CODECS
from hypergpu.coordinator.core.links.transfer_time import TransferRates, transfer_seconds
from hypergpu.coordinator.core.node_arrays import Floats

_ENCODING: Final[Floats] = 1e-9 / np.array([math.inf, 1.2, 1.2, 0.9, 0.4])
"""Seconds a byte of float32 that encoding takes on one core, by `benchmarks/codecs.py`."""


class CodecPair(NamedTuple):
    """Codecs of one node, as places in `UPDATE_CODECS` and `PARAMETERS_CODECS`."""

    update: int = 0
    parameters: int = 0

    @property
    def codecs(self) -> TransferCodecs:
        """The codecs by name."""
        return TransferCodecs(UPDATE_CODECS[self.update], PARAMETERS_CODECS[self.parameters])

    def of(self, direction: Direction) -> int:
        """Return the codec of one direction."""
        return self.update if direction == "up" else self.parameters


class CodecSizes:
    """Payloads of a model in each codec. Its state, which stays exact, is counted as parameters.

    Args:
        model_bytes: Size as float32.
    """

    def __init__(self, model_bytes: int) -> None:
        values = -(-model_bytes // 4)
        self.up_bytes: Floats = np.array([find_codec(name).encoded_bytes(values) for name in UPDATE_CODECS], np.float64)
        self.down_bytes: Floats = self.up_bytes[: len(PARAMETERS_CODECS)]
        self._encoding = _ENCODING * model_bytes

    def up_seconds(self, rates: TransferRates) -> Floats:
        """Return the time of an update in each codec on each link, shape (links, `UPDATE_CODECS`); 0 if unknown."""
        seconds = transfer_seconds(self.up_bytes, rates.up.rates[:, None], rates.round_trips[:, None])
        return np.nan_to_num(seconds + self._encoding)

    def down_seconds(self, rates: TransferRates, presence: Floats) -> Floats:
        """Return the time of parameters in each codec on each link, shape (links, `PARAMETERS_CODECS`); 0 if unknown.

        After a round that it missed, a node has nothing to differ from, and receives the whole parameters. `presence`
        is the share of rounds that each node takes part in.
        """
        nbytes = np.tile(self.down_bytes, (len(presence), 1))
        nbytes[:, -1] += (1.0 - presence) * (self.down_bytes[0] - self.down_bytes[-1])
        seconds = transfer_seconds(nbytes, rates.down.rates[:, None], rates.round_trips[:, None])
        return np.nan_to_num(seconds + self._encoding[: len(PARAMETERS_CODECS)])

    def figures(self, before: CodecPair, after: CodecPair) -> dict[str, float | int | str]:
        """Return the figures of a change."""
        return {
            "from": str(before.codecs),
            "to": str(after.codecs),
            "up_bytes_before": int(self.up_bytes[before.update]),
            "up_bytes": int(self.up_bytes[after.update]),
            "down_bytes_before": int(self.down_bytes[before.parameters]),
            "down_bytes": int(self.down_bytes[after.parameters]),
        }
