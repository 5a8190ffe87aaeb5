"""Round trips that a TCP sender has measured, and its timers that follow from them (RFC 6298 as Linux keeps it)."""

from typing import Final

MIN_DEVIATION_SECONDS: Final = 0.2
"""Least of four deviations; the retransmission timeout is a round trip longer."""
_GAIN: Final = 1 / 8
_DEVIATION_KEPT: Final = 3 / 4
_FALLING_GAIN: Final = 1 / 8
"""Share of its weight that a round trip shorter than expected has in the deviation."""
_PEAK_SAMPLES: Final = 4
"""Samples after which the deviation is largest when all are longer than expected by the same time."""


class RoundTrips:
    """Smoothed round trip and its deviation, from one sample for each acknowledgement.

    Attributes:
        smoothed: exponentially weighted mean in seconds; 0 before the first sample.
    """

    __slots__ = ("_deviations", "_variation", "smoothed")

    def __init__(self) -> None:
        self.smoothed = 0.0
        self._variation = MIN_DEVIATION_SECONDS  # four deviations, the most of the latest round trips
        self._deviations = 0.0  # four deviations

    def copy(self) -> "RoundTrips":
        """Return an estimate of its own with the same samples."""
        other = RoundTrips()
        other.smoothed, other._variation, other._deviations = self.smoothed, self._variation, self._deviations
        return other

    def add(self, first: float, last: float, count: int) -> None:
        """Add the samples of one flight: `count` of them, evenly from `first` to `last` seconds."""
        if not self.smoothed:
            self.smoothed, self._deviations = first, 2 * first
            self._variation = max(MIN_DEVIATION_SECONDS, self._deviations)
            most = self._deviations
        else:
            most = self._add_first(first)
        slope, left = (last - first) / max(1, count - 1), count - 1
        for step in (min(_PEAK_SAMPLES, left), left - _PEAK_SAMPLES):  # the deviation may be largest soon after a jump
            if step > 0:
                left -= step
                most = max(most, self._add_ramp(last - left * slope, slope, step))
        if most > self._variation:
            self._variation = most
        else:
            self._variation -= (self._variation - max(MIN_DEVIATION_SECONDS, most)) / 4

    @property
    def timeout_seconds(self) -> float:
        """Retransmission timeout."""
        return self.smoothed + self._variation

    def _add_first(self, sample: float) -> float:
        error = sample - self.smoothed
        self.smoothed += _GAIN * error
        self._add_deviation(error)
        return self._deviations

    def _add_ramp(self, last: float, slope: float, count: int) -> float:
        """Add `count` samples that change by `slope` to `last`; return four deviations after them.

        The mean follows a ramp at a distance of 7 slopes, which it approaches by an eighth with each sample. So errors
        approach 8 slopes, and the deviation sums them with weights that fall by a quarter.
        """
        lag = (1 / _GAIN - 1) * slope
        behind = last - count * slope - lag - self.smoothed
        mean_kept, deviation_kept = (1 - _GAIN) ** count, _DEVIATION_KEPT**count
        self.smoothed = last - lag - behind * mean_kept
        self._deviations = self._deviations * deviation_kept + 4 * abs(slope + lag) * (1 - deviation_kept)
        if slope + lag + behind > 0:  # shorter ones than expected count little
            self._deviations += behind * (mean_kept - deviation_kept) / (1 - _GAIN - _DEVIATION_KEPT)
        return self._deviations

    def _add_deviation(self, error: float) -> None:
        excess = abs(error) - self._deviations / 4
        if error < 0 and excess > 0:
            excess *= _FALLING_GAIN
        self._deviations += excess
