"""Acknowledgements that a TCP sender has seen, and its timers (RFC 6298 and RACK-TLP, RFC 8985, as in Linux)."""

from typing import Final

_MIN_DEVIATION_SECONDS: Final = 0.2
"""Least of four deviations; the retransmission timeout is a round trip longer."""
_LEAST_TIMER_SECONDS: Final = 0.002
_DELAYED_ACK_SECONDS: Final = 0.04
"""Longest time for which the receiver holds the acknowledgement of a packet back to acknowledge the next one too."""
_QUICK_ACKS: Final = 16
"""Packets that the receiver acknowledges one by one, at the start and after a pause; then every second one."""
_GAIN: Final = 1 / 8
_DEVIATION_KEPT: Final = 3 / 4
_FALLING_GAIN: Final = 1 / 8
"""Share of its weight that a round trip shorter than expected has in the deviation."""
_PEAK_SAMPLES: Final = 4
"""Samples after which the deviation is largest when all are longer than expected by the same time."""


class RoundTrips:
    """Smoothed round trip and its deviation, from one sample for each packet.

    Attributes:
        smoothed: exponentially weighted mean in seconds; 0 before the first sample.
    """

    __slots__ = ("_deviations", "_packets", "_variation", "smoothed")

    def __init__(self) -> None:
        self.smoothed = 0.0
        self._variation = _MIN_DEVIATION_SECONDS  # four deviations, the most of the latest round trips
        self._deviations = 0.0  # four deviations
        self._packets = 0  # acknowledged since the last pause

    def copy(self) -> "RoundTrips":
        """Return an estimate of its own with the same samples."""
        other = RoundTrips()
        other.smoothed, other._packets = self.smoothed, self._packets
        other._variation, other._deviations = self._variation, self._deviations
        return other

    def begin(self, handshake: float) -> None:
        """Take the round trip of the handshake as the first sample."""
        self.smoothed, self._deviations = handshake, 2 * handshake
        self._variation = max(_MIN_DEVIATION_SECONDS, self._deviations)

    def pause(self) -> None:
        """Note a pause after which the receiver acknowledges the first packets one by one again."""
        self._packets = 0

    def add(self, first: float, last: float, count: int) -> None:
        """Add the samples of one flight: `count` of them, evenly from `first` to `last` seconds."""
        self._packets += count
        most = self._add_first(first)
        slope, left = (last - first) / max(1, count - 1), count - 1
        for step in (min(_PEAK_SAMPLES, left), left - _PEAK_SAMPLES):  # the deviation may be largest soon after a jump
            if step > 0:
                left -= step
                most = max(most, self._add_ramp(last - left * slope, slope, step))
        if most > self._variation:
            self._variation = most
        else:
            self._variation -= (self._variation - max(_MIN_DEVIATION_SECONDS, most)) / 4

    @property
    def timeout_seconds(self) -> float:
        """Retransmission timeout."""
        return self.smoothed + self._variation

    def probe_seconds(self, lost: int) -> float:
        """Return the time until a tail-loss probe, counted from the acknowledgement of the last packet that arrived.

        `lost` packets were sent after it. When a single one is outstanding, the probe allows for a delayed ACK.
        """
        probe = 2 * self.smoothed + _LEAST_TIMER_SECONDS
        last = min(self.timeout_seconds, 2 * self.smoothed + _MIN_DEVIATION_SECONDS if lost == 1 else probe)
        is_held = self._packets > _QUICK_ACKS and (self._packets - _QUICK_ACKS) % 2 == 1
        if not is_held:
            return last
        return probe if probe < _DELAYED_ACK_SECONDS else _DELAYED_ACK_SECONDS + last

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
