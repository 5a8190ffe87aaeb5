"""Packets that a TCP sender may still send in one round trip: a burst, and more as acknowledgements return."""


class AckClock:
    """Allowance of one round trip.

    Attributes:
        burst: packets that may be sent at once.
        clocked: packets that acknowledgements are still to release.
    """

    __slots__ = ("_next_at", "_spacing", "_total", "burst", "clocked")

    def __init__(self) -> None:
        self.burst = self.clocked = 0
        self._total = 1
        self._next_at = self._spacing = 0.0  # the next acknowledgement, and from one to the next

    @property
    def left(self) -> int:
        """Packets that may still be sent."""
        return self.burst + self.clocked

    def start(self, burst: int, clocked: int = 0, begin: float = 0.0, span: float = 0.0) -> None:
        """Allow a burst, and packets released evenly from `begin` for `span` seconds."""
        self.burst, self.clocked = burst, clocked
        self._next_at, self._total = begin, max(1, clocked)
        self._spacing = span / self._total

    def stop(self) -> None:
        """Allow nothing until the next round trip."""
        self.burst = self.clocked = 0

    def limit(self, packets: int) -> None:
        """Allow no more than `packets`, of which the burst comes first."""
        self.burst = min(self.burst, packets)
        self.clocked = min(self.clocked, packets - self.burst)

    def take_burst(self, want: int) -> int:
        """Use the burst for up to `want` packets; return how many."""
        taken = min(want, self.burst)
        self.burst -= taken
        return taken

    def take_clocked(self, want: int, now: float) -> tuple[int, float, float]:
        """Use acknowledgements for up to `want` packets; return how many, when the first is sent, and their span."""
        taken = min(want, self.clocked)
        self.clocked -= taken
        begin = max(now, self._next_at)
        self._next_at += taken * self._spacing
        return taken, begin, max(0.0, self._next_at - begin)

    def unused_since(self, now: float, packets: int) -> tuple[int, float]:
        """Return how many of the `packets` whose acknowledgements set this pace release nothing yet, and since when."""
        return int(packets * self.clocked / self._total), max(now, self._next_at)


class PaceClock(AckClock):
    """Allowance of one step of a paced sender. Time that it lets pass gives no credit."""

    __slots__ = ()

    @property
    def next_at(self) -> float:
        """Time from which the pace lets the next packet be sent."""
        return self._next_at

    def begin(self, packets: int, at: float, pace: float) -> None:
        """Allow packets from a time on, so many seconds apart."""
        self.start(0, packets, at, packets * pace)

    def take_clocked(self, want: int, now: float) -> tuple[int, float, float]:
        """Use the pace for up to `want` packets; return how many, when the first is sent, and the last after it."""
        taken = min(want, self.clocked)
        self.clocked -= taken
        begin = max(now, self._next_at)
        self._next_at = begin + taken * self._spacing
        return taken, begin, max(0, taken - 1) * self._spacing
