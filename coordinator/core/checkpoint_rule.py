"""Decision when a checkpoint is due: by rounds, time, size of the log, or the share of the time that it takes."""

import math

from hypergpu.common.config.checkpoint import Interval

LARGEST_LOG_BYTES = 1_000_000_000
"""Bytes of the log that make a checkpoint due in any case, unless models are large."""
LARGEST_LOG_MODELS = 16
"""The same in models."""


class CheckpointRule:
    """Decides when checkpoints are written.

    Args:
        interval: Interval between them.
        model_bytes: Size of the model.
        began_at: Beginning of the run, or of this process.
    """

    def __init__(self, interval: Interval, model_bytes: int, began_at: float) -> None:
        self._interval = interval
        self._largest_log = max(LARGEST_LOG_BYTES, LARGEST_LOG_MODELS * model_bytes)
        self._at = began_at
        self._seconds = 0.0
        """Seconds that the last one took."""
        self._failed = False

    def is_due(self, round_number: int, now: float, log_bytes: int) -> bool:
        """Return whether a checkpoint is due after a round.

        Args:
            round_number: Number of the round.
            now: Present time.
            log_bytes: Bytes in the log since the last checkpoint.
        """
        if self._failed or log_bytes > self._largest_log:
            return True
        rounds, seconds, nbytes, share = self._interval
        if rounds:
            return round_number % rounds == 0
        if nbytes:
            return log_bytes >= nbytes
        pause = seconds or (self._seconds / share if share else math.inf)
        return now - self._at >= pause

    def is_asked(self, round_number: int) -> bool:
        """Return whether the user asked for a checkpoint of this very round."""
        return self._interval.rounds > 0 and round_number % self._interval.rounds == 0

    def written(self, began_at: float, now: float) -> None:
        """Note that a checkpoint was written."""
        self._at, self._seconds, self._failed = began_at, now - began_at, False

    def failed(self) -> None:
        """Note that a checkpoint could not be written: the next round tries again."""
        self._failed = True
