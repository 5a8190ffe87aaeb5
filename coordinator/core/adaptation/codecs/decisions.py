"""Decisions about codecs, with their reasons and the figures behind them."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from hypergpu.coordinator.core.adaptation.codecs.choice import Codecs, RoundForecast
from hypergpu.coordinator.core.adaptation.codecs.sizes import CodecPair
from hypergpu.coordinator.core.decisions import Figures
from hypergpu.coordinator.core.links.profile import MBIT
from hypergpu.coordinator.core.links.transfer_time import TransferRates
from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints


class CompressionReason(StrEnum):
    """Reason for a change of codecs, or verdict on one."""

    RATE_NOT_MEASURED = "rate_not_measured"
    """First transfers of a large model: a mild codec costs next to nothing, whatever the link.

    What it saves is not known before the rate was measured by more than a first transfer."""
    TRANSFERS_LENGTHEN_ROUND = "transfers_lengthen_round"
    """The others would wait for the transfers of the node in a milder codec."""
    TRANSFERS_KEEP_OUT = "transfers_keep_out"
    """The node seldom takes part: it is too slow in a milder codec."""
    TRANSFERS_FIT_ROUND = "transfers_fit_round"
    """The node is done in time with a milder codec."""
    NOISE_ABOVE_BOUND = "noise_above_bound"
    """The measured noise exceeds `compression.max_noise`."""
    SAVED_AS_EXPECTED = "saved_as_expected"
    """The change is kept: it saves at least half of what was expected, within the error of the measurement."""
    SAVED_LESS_THAN_EXPECTED = "saved_less_than_expected"
    """The change is taken back."""
    TRAINING_DIVERGED = "training_diverged"
    """Codecs with much noise are left until training has recovered."""
    POLICY_NONE = "policy_none"
    """Policy `none` sends float32."""


@dataclass(frozen=True, slots=True)
class CodecDecision:
    """One change of a node's codecs, or the verdict on one."""

    node: str
    reason: CompressionReason
    figures: Figures


class CodecMove:
    """Move of all nodes of a round from their present codecs to others."""

    def __init__(
        self,
        forecast: RoundForecast,
        rates: TransferRates,
        present: Codecs,
        found: Codecs,
        *,
        down_seconds: Floats,
        settled_rates: tuple[Bools, Bools],
    ) -> None:
        self.forecast, self.rates, self.present, self.found = forecast, rates, present, found
        self._down_seconds = down_seconds
        """Time of the parameters in a round that is usual for each node, shape (nodes, `PARAMETERS_CODECS`)."""
        self.saving: Floats = self._transfers(present) - self._transfers(found)
        """Seconds that each node saves in a usual round; NaN if a rate behind it was not measured.

        It is sent a difference if it takes part in most rounds; else it returns, and is sent whole parameters."""
        up, down = (~settled for settled in settled_rates)
        unknown = (up & (present.update != found.update)) | (down & (present.parameters != found.parameters))
        self.saving[unknown] = np.nan
        self.changed: Ints = np.flatnonzero(found.differ(present))
        """Places of the nodes whose codecs change."""

    def _transfers(self, codecs: Codecs) -> Floats:
        every = np.arange(len(codecs.update))
        seconds: Floats = self.forecast.up_seconds[every, codecs.update] + self._down_seconds[every, codecs.parameters]
        return seconds

    def pair(self, at: int) -> tuple[CodecPair, CodecPair]:
        """Return the codecs of a node before and after."""
        before, after = (
            CodecPair(int(codecs.update[at]), int(codecs.parameters[at])) for codecs in (self.present, self.found)
        )
        return before, after

    def reason(self, at: int) -> CompressionReason:
        """Return why the codecs of a node change."""
        before, after = self.pair(at)
        if before.update > self.forecast.most_update[at]:
            return CompressionReason.NOISE_ABOVE_BOUND
        if not self.forecast.counts[at]:
            return CompressionReason.TRANSFERS_KEEP_OUT
        is_smaller = after.update > before.update or after.parameters > before.parameters
        if is_smaller and np.isnan(self.saving[at]):
            return CompressionReason.RATE_NOT_MEASURED
        if is_smaller and self.saving[at] > 0.0:
            return CompressionReason.TRANSFERS_LENGTHEN_ROUND
        return CompressionReason.TRANSFERS_FIT_ROUND

    def figures(self, at: int) -> dict[str, float | int | str]:
        """Return the figures of a node's change that do not concern its bytes; what is unknown is left out."""
        rates = {"up_mbit": self.rates.up.rates[at], "down_mbit": self.rates.down.rates[at]}
        saving = float(self.saving[at])
        return {
            **({} if np.isnan(saving) else {"expected_saving_seconds": saving}),
            "noise": float(self.forecast.noise[at, self.found.update[at]]),
            **{name: MBIT * float(rate) for name, rate in rates.items() if not np.isnan(rate)},
        }
