"""Search for the number of connections of one node's transfers in one direction.

On a lossy link one connection carries about 1.22 · MSS / (R · √p) bytes a second (see ADR 0013), and k carry k times
as much until the line is full. Neither the packet loss p nor the rate of the line is known, so the rate is measured
with more connections, and the number is taken back where that gains nothing. The first transfer of a large model would
be the longest of the run with one connection on a lossy link, so it has several, and fewer are tried later.

Rates of single transfers differ, because losses are random. In virtual time, the standard deviation of their logarithm
is 0.2 to 0.45 for 1 MB, 0.1 to 0.3 for 4 MB and 0.07 to 0.3 for 16 MB with the profiles `average` and `poor`, and 0.01
to 0.2 with `cable`. A verdict needs a difference of more than one standard error, or the most samples. The first
transfer on new connections begins in slow start, without the losses of a window that has grown, so it is compared with
others of its kind only.
"""

import math
from enum import StrEnum
from statistics import fmean
from typing import Final, NamedTuple

from hypergpu.common.connections import MAX_CONNECTIONS, useful_connections
from hypergpu.common.tensors import STRIPE_BYTES
from hypergpu.common.transfer_meter import Transfer
from hypergpu.coordinator.core.decisions import Figures
from hypergpu.coordinator.core.links.profile import MBIT
from hypergpu.coordinator.core.links.rates import SHIFT

RAISE: Final = 4
"""Factor of a raise: 1, 4 and 16 connections take two rounds to try."""
LEAST_GAIN: Final = 1.1
"""Factor between two rates from which one counts as higher."""
MOST_SAMPLES: Final = 4
"""Transfers with one number of connections that count, and after which a verdict is due."""
RETRY_ROUNDS: Final = 50
"""Rounds after which a number is tried again: a slow change of the link shows in no two transfers."""
LEAST_ROUND_TRIPS: Final = 2.0
LEAST_SHARE: Final = 0.05
LEAST_SECONDS: Final = 0.2
"""Transfers shorter than these round trips, this share of a round, or this time are not worth more connections.

A transfer that takes less than TCP's least timeout shows the rate of the machines, not of a line that loses packets."""
FAR_SECONDS: Final = 0.005
"""Round trip of a call from which a line may lose so much that one connection does not fill it. A call on one machine
takes 2 ms while others are served."""
_ASSUMED_SPREAD: Final = 0.35
"""Standard deviation of the logarithm of a rate before it is measured; it counts as one sample."""
_SURE: Final = 3.0
"""Standard deviations between a rate and the usual one from which two transfers in a row show a change."""


class ConnectionsReason(StrEnum):
    """Reason for a number of connections."""

    RATE_NOT_MEASURED = "rate_not_measured"
    """First transfers of a large model: on a lossy link one connection would take several times as long."""
    SHORT_TRANSFERS = "short_transfers"
    """The first transfers, or the round trip, were so short that one connection is enough."""
    TRIES_MORE = "tries_more"
    """More may carry more; the next transfers show whether they do."""
    GAINED = "gained"
    """The last raise made transfers faster. If more are permitted, they are tried."""
    GAINED_NOTHING = "gained_nothing"
    """The last raise made transfers no faster, so it is taken back."""
    FEWER_MAY_SUFFICE = "fewer_may_suffice"
    """The last raise gained so little that half of it, or of the number before, may fill the line."""
    FEWER_SUFFICE = "fewer_suffice"
    """Half as many were no slower."""
    FEWER_ARE_SLOWER = "fewer_are_slower"
    """Half as many were slower, so that is taken back."""
    LINK_CHANGED = "link_changed"
    """Two transfers in a row were far from the usual rate, so other numbers are tried."""
    TRIES_AGAIN = "tries_again"
    """The number was found long ago, so other numbers are tried."""


class Outlook(NamedTuple):
    """Facts about the coming round."""

    round: int
    round_seconds: float = 0.0
    """Duration of the latest round."""
    round_trip_seconds: float = math.nan
    """Round trip of the idle link; NaN if unknown."""
    is_queueing: bool = True
    """Round trips beside transfers are so long that packets wait for the line: what connections carry may fill it."""


class ConnectionsChange(NamedTuple):
    """Change of a number of connections, or a verdict that keeps it."""

    before: int
    after: int
    reason: ConnectionsReason
    figures: Figures
    """Rates behind it."""


class ConnectionSearch:
    """Number of connections of one node in one direction, and what was measured with it and with others.

    Attributes:
        count: number of connections in force, 1 to `MAX_CONNECTIONS`.
        transfer_seconds: duration of the latest transfer; 0 before the first.
    """

    __slots__ = (
        "_before", "_first", "_held_since", "_is_guess", "_logs", "_nbytes", "_since", "count", "transfer_seconds"
    )  # fmt: skip

    def __init__(self, count: int = 1, *, is_guess: bool = False) -> None:
        self.count = count
        self.transfer_seconds = 0.0
        self._is_guess = is_guess and count > 1
        """Nothing was measured before the number was set."""
        self._nbytes = 0
        self._first: dict[int, float] = {}
        """Logarithm of the rate of the first transfer with each number, since the search began."""
        self._logs: dict[int, list[float]] = {}
        """Those of the latest transfers after it."""
        self._before = 0  # number that a trial is compared with; 0 without a trial
        self._held_since: int | None = None  # round since which the search is over
        self._since: list[float] = []  # latest ones since then, beyond the first `MOST_SAMPLES`

    def record(self, transfer: Transfer) -> None:
        """Record a transfer over the connections in force."""
        self._nbytes = transfer.nbytes + transfer.bytes_before
        self.transfer_seconds = transfer.seconds + transfer.seconds_before
        if self._nbytes <= STRIPE_BYTES or transfer.seconds <= 0.0:
            return
        log = math.log(self._nbytes / self.transfer_seconds)
        if self.count not in self._first:
            self._first[self.count] = log
            if self.count >= self._before:  # fewer connections are no new ones
                return
        logs = self._logs.setdefault(self.count, [])
        if self._held_since is not None and len(logs) >= MOST_SAMPLES:
            logs = self._since
        logs.append(log)
        del logs[:-MOST_SAMPLES]

    @property
    def is_trying(self) -> bool:
        """True during a trial of another number."""
        return self._before > 0

    def decide(self, outlook: Outlook) -> ConnectionsChange | None:
        """Choose the number for the coming round; return what changed and why, or a verdict. None: nothing is new."""
        if self._held_since is not None:
            return self._review(self._held_since, outlook)
        if self.count not in self._first:
            return None
        if not self._before:
            return (
                self._judge_guess(outlook)
                if self._is_guess
                else self._try_others(ConnectionsReason.TRIES_MORE, outlook)
            )
        if self.count > self._before:
            gained = self._is_above(math.log(LEAST_GAIN))
            return None if gained is None else self._judge_raise(gained, outlook)
        same = self._is_above(-math.log(LEAST_GAIN))
        return None if same is None else self._judge_fewer(same, outlook)

    # ------------------------------------------------------------ verdicts

    def _judge_guess(self, outlook: Outlook) -> ConnectionsChange | None:
        """Keep several connections if the line is long and its transfers are, or go to one."""
        if self._is_long(outlook) and math.isnan(outlook.round_trip_seconds):
            return None  # the first heartbeats will show how far the other end is
        self._is_guess = False
        if self._is_long(outlook) and self._is_far(outlook):
            return self._try_others(ConnectionsReason.TRIES_MORE, outlook)
        return self._begin_with_one(outlook)

    def _begin_with_one(self, outlook: Outlook) -> ConnectionsChange:
        """Go to one connection; if its transfers become long, more are tried."""
        change = self._end(1, ConnectionsReason.SHORT_TRANSFERS, outlook)
        self._first, self._held_since = {}, None
        return change

    def _judge_raise(self, gained: bool, outlook: Outlook) -> ConnectionsChange:
        if not gained:
            back = self._end(self._before, ConnectionsReason.GAINED_NOTHING, outlook)
            self._held_since = None if self._may_be_too_many else self._held_since
            return back
        half = self.count // 2
        is_new = half > self._before and half not in self._first
        if is_new and self._is_above(math.log(half / self._before)) is False:
            return self._go(half, ConnectionsReason.FEWER_MAY_SUFFICE)
        if self._more() > self.count and self._matters(outlook):
            return self._go(self._more(), ConnectionsReason.GAINED)
        return self._end(self.count, ConnectionsReason.GAINED, outlook)

    def _judge_fewer(self, same: bool, outlook: Outlook) -> ConnectionsChange:
        half = self.count // 2
        if same and half and half not in self._first:
            return self._go(half, ConnectionsReason.FEWER_SUFFICE)
        if same:
            return self._end(self.count, ConnectionsReason.FEWER_SUFFICE, outlook)
        back = self._end(self._before, ConnectionsReason.FEWER_ARE_SLOWER, outlook)
        if self._more() > self.count and self._more() not in self._first:  # the line is not full
            self._held_since = None
        return back

    def _review(self, held_since: int, outlook: Outlook) -> ConnectionsChange | None:
        """Begin a new search if the link has changed, or after many rounds."""
        logs = self._logs.get(self.count)
        if not logs:
            return None
        limit = max(math.log(SHIFT), _SURE * self._spread())
        latest = [log - fmean(logs) for log in self._since[-2:]]
        has_changed = len(latest) == 2 and (min(latest) > limit or max(latest) < -limit)
        if not has_changed and outlook.round - held_since < RETRY_ROUNDS:
            if not (self._may_be_too_many and outlook.is_queueing and self._matters(outlook)):
                return None
            self._held_since = None
            return self._go(self.count // 2, ConnectionsReason.FEWER_MAY_SUFFICE)
        kept = self._since[-2:] if has_changed else self._since or logs
        self._logs, self._first = {self.count: kept}, {self.count: fmean(kept)}
        self._since, self._held_since, self._before = [], None, 0
        reason = ConnectionsReason.LINK_CHANGED if has_changed else ConnectionsReason.TRIES_AGAIN
        return self._try_others(reason, outlook)

    def _try_others(self, reason: ConnectionsReason, outlook: Outlook) -> ConnectionsChange | None:
        """Try more connections, or fewer where no more are permitted."""
        if not self._matters(outlook):
            return None
        if self._more() > self.count and self._more() not in self._first:
            return self._go(self._more(), reason)
        if self._may_be_too_many and outlook.is_queueing and reason is ConnectionsReason.TRIES_MORE:
            return self._go(self.count // 2, ConnectionsReason.FEWER_MAY_SUFFICE)
        if reason is not ConnectionsReason.TRIES_MORE and self.count > 1:
            return self._go(self.count // 2, reason)
        self._hold(outlook)
        return None

    def _go(self, count: int, reason: ConnectionsReason) -> ConnectionsChange:
        """Begin a trial of a number."""
        change = self._change(count, reason)
        self._before, self.count = self.count, count
        self._logs.pop(count, None)
        self._first.pop(count, None)
        return change

    def _end(self, count: int, reason: ConnectionsReason, outlook: Outlook) -> ConnectionsChange:
        """End the search with a number."""
        change = self._change(count, reason)
        self.count = count
        self._hold(outlook)
        return change

    def _hold(self, outlook: Outlook) -> None:
        self._before, self._held_since, self._since = 0, outlook.round, []

    def _change(self, after: int, reason: ConnectionsReason) -> ConnectionsChange:
        here, there = self._compared() if self._before else (self._latest(), [])
        rate = math.exp(fmean(here))
        figures: dict[str, float | int | str] = {"mbit": MBIT * rate, "transfer_seconds": self.transfer_seconds}
        if there:
            before = math.exp(fmean(there))
            figures |= {"compared_with": self._before, "compared_mbit": MBIT * before, "gain": rate / before}
        return ConnectionsChange(self.count, after, reason, figures)

    # ------------------------------------------------------------ measurements

    def _more(self) -> int:
        """Return the next higher number that is permitted and of use."""
        return useful_connections(min(RAISE * self.count, MAX_CONNECTIONS), self._nbytes)

    @property
    def _may_be_too_many(self) -> bool:
        """True if more than one connection are in force, and none of fewer was measured in this search."""
        return self.count > 1 and min(self._first, default=self.count) >= self.count

    def _is_long(self, outlook: Outlook) -> bool:
        """Return whether a transfer took longer than what shows the machines and not the line."""
        round_trips = 0.0 if math.isnan(outlook.round_trip_seconds) else LEAST_ROUND_TRIPS * outlook.round_trip_seconds
        return self.transfer_seconds >= max(round_trips, LEAST_SECONDS)

    def _is_far(self, outlook: Outlook) -> bool:
        """Return whether the other end is not in the same building, as far as that is known."""
        return outlook.round_trip_seconds >= FAR_SECONDS

    def _matters(self, outlook: Outlook) -> bool:
        """Return whether transfers are long enough for a faster one to save time."""
        return self._is_long(outlook) and self.transfer_seconds >= LEAST_SHARE * outlook.round_seconds

    def _latest(self) -> list[float]:
        """Return the logarithms of the rates with the number in force."""
        return self._logs.get(self.count) or [self._first[self.count]]

    def _compared(self) -> tuple[list[float], list[float]]:
        """Return those of a trial and of what it is compared with: both on new connections, or neither."""
        here, there = self._logs.get(self.count), self._logs.get(self._before)
        if here and there:
            return here, there
        return [self._first[self.count]], [self._first[self._before]]

    def _spread(self) -> float:
        """Return the standard deviation of the logarithm of a rate, with the assumed one as one sample."""
        squares = sum((log - fmean(logs)) ** 2 for logs in self._logs.values() for log in logs)
        samples = sum(len(logs) - 1 for logs in self._logs.values())
        return math.sqrt((_ASSUMED_SPREAD**2 + squares) / (1 + samples))

    def _is_above(self, threshold: float) -> bool | None:
        """Return whether a trial's rate is above the other one by a factor of e^threshold; None until that is clear.

        After `MOST_SAMPLES` transfers the means decide.
        """
        here, there = self._compared()
        excess = fmean(here) - fmean(there) - threshold
        error = self._spread() * math.sqrt(1 / len(here) + 1 / len(there))
        is_due = len(self._logs.get(self.count, ())) >= MOST_SAMPLES
        return excess > 0.0 if is_due or abs(excess) > error else None
