"""Round-trip estimate of whole flights, beside Linux's arithmetic for each acknowledgement (tcp_rtt_estimator)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypergpu.netsim_proxy.link.round_trips import RoundTrips

Flight = tuple[float, float, int]


class Linux:
    """Estimate as Linux keeps it: deviations are fourfold."""

    def __init__(self) -> None:
        self.smoothed = self.deviation = self.variation = 0.0

    def add(self, samples: list[float]) -> None:
        most = 0.2
        for sample in samples:
            if not self.smoothed:
                self.smoothed, self.deviation = sample, 2 * sample
                self.variation = most = max(self.deviation, 0.2)
                continue
            error = sample - self.smoothed
            self.smoothed += error / 8
            excess = abs(error) - self.deviation / 4
            self.deviation += excess / 8 if error < 0 and excess > 0 else excess
            most = max(most, self.deviation)
        self.variation = max(self.variation, most)
        self.variation -= (self.variation - most) / 4


def ramp(first: float, last: float, count: int) -> list[float]:
    return [first + (last - first) * index / max(1, count - 1) for index in range(count)]


FLIGHTS = st.lists(st.tuples(st.floats(0.01, 0.5), st.floats(1.0, 4.0), st.integers(1, 80)), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(FLIGHTS)
def test_flights_are_smoothed_as_their_acknowledgements_would_be(flights: list[Flight]) -> None:
    ours, linux = RoundTrips(), Linux()
    ours.begin(0.1)
    linux.add([0.1])
    for first, growth, count in flights:
        last = first * growth if count > 1 else first
        ours.add(first, last, count)
        linux.add(ramp(first, last, count))
        assert ours.smoothed == pytest.approx(linux.smoothed, rel=1e-6)


@settings(max_examples=200, deadline=None)
@given(least=st.floats(0.01, 0.5), jump=st.floats(1.0, 6.0), growth=st.floats(1.0, 4.0), count=st.integers(1, 80))
def test_the_timeout_rises_with_round_trips_as_that_of_linux(
    least: float, jump: float, growth: float, count: int
) -> None:
    ours, linux = RoundTrips(), Linux()
    ours.begin(least)
    linux.add([least])
    first = least * jump
    last = first * growth if count > 1 else first
    for samples in ((least, least, 20), (first, last, count)):
        ours.add(*samples)
        linux.add(ramp(*samples))
    assert ours.timeout_seconds == pytest.approx(linux.smoothed + linux.variation, rel=0.1)


def test_the_timeout_starts_at_three_round_trips_and_falls_to_one_and_200_ms() -> None:
    trips = RoundTrips()
    trips.begin(0.15)
    assert trips.timeout_seconds == pytest.approx(0.45)
    for _ in range(40):
        trips.add(0.15, 0.15, 10)
    assert trips.smoothed == pytest.approx(0.15)
    assert trips.timeout_seconds == pytest.approx(0.35, abs=1e-3)


def test_a_queue_that_grows_raises_the_timeout() -> None:
    trips = RoundTrips()
    trips.begin(0.05)
    trips.add(0.06, 0.45, 40)  # 10 ms more with each packet
    assert trips.smoothed == pytest.approx(0.45 - 7 * 0.01, abs=0.002)
    assert trips.timeout_seconds == pytest.approx(0.38 + 0.32, abs=0.02)


def test_a_copy_does_not_change_the_original() -> None:
    trips = RoundTrips()
    trips.begin(0.1)
    other = trips.copy()
    other.add(0.5, 0.5, 10)
    assert trips.smoothed == 0.1
    assert other.smoothed > 0.3


def probing(packets: int, round_trip: float) -> RoundTrips:
    """Return an estimate after so many packets of a steady round trip."""
    trips = RoundTrips()
    trips.begin(round_trip)
    for _ in range(40):
        trips.add(round_trip, round_trip, 2)
    trips.pause()
    trips.add(round_trip, round_trip, packets)
    return trips


@pytest.mark.parametrize(
    ("packets", "round_trip", "lost", "seconds"),
    [
        (13, 0.01, 1, 0.21),  # acknowledged at once: one packet is outstanding, and the timeout comes first
        (16, 0.01, 1, 0.21),
        (17, 0.01, 1, 0.022),  # its ACK is held back for longer than the probe takes
        (18, 0.01, 1, 0.21),
        (17, 0.04, 1, 0.04 + 0.24),  # the delayed ACK comes first, and one packet is outstanding then
        (18, 0.01, 2, 0.022),
        (18, 0.04, 2, 0.082),
        (17, 0.04, 2, 0.04 + 0.082),
    ],
)
def test_the_probe_of_a_tail_waits_for_a_delayed_ack(
    packets: int, round_trip: float, lost: int, seconds: float
) -> None:
    assert probing(packets, round_trip).probe_seconds(lost) == pytest.approx(seconds, abs=1e-3)
