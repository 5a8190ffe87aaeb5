"""BBR version 1: pace and window of a sender from the rate and the least round trip of its path.

As the kernel's `tcp_bbr` and draft-cardwell-iccrg-bbr-congestion-control-00: startup with a gain of 2 / ln 2, drain, a
cycle of gains that probes for more rate, and every 10 s a dip to four packets that measures the round trip. A loss
reduces nothing by itself: for a round the sender sends one packet for each that is delivered. What the kernel adds for
acknowledgements that come in bunches has no counterpart here, because those of the model come evenly.

A pure state machine: each event comes with its time, and nothing here reads a clock.
"""

import math
from enum import StrEnum
from typing import Final

from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.netsim_proxy.link.congestion import INITIAL_WINDOW
from hypergpu.netsim_proxy.link.path_estimate import Delivery, FullPipe, Policer, RateFilter, Rounds

HIGH_GAIN: Final = 2 / math.log(2)
"""Least gain with which the rate doubles in a round trip."""
CYCLE: Final = (1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
"""Gains of the pace, each for about a least round trip: one that probes, and one that drains what it has queued."""
WINDOW_GAIN: Final = 2.0
LEAST_WINDOW: Final = 4
ROUND_TRIP_SECONDS: Final = 10.0
"""Age from which the least round trip is measured anew, in a dip."""
DIP_SECONDS: Final = 0.2
_MARGIN: Final = 0.99
"""Share of the estimated rate that the sender paces at, so that queues drain."""
_LEAST_ROUND_TRIP_SECONDS: Final = 20e-6
"""A round trip within a machine. A model of a path without any delay would have no rate."""
_BURST_SECONDS: Final = 1 / 1024
"""Time of sending that Linux hands over at once: at least two packets."""
_BURSTS: Final = 3
"""Bursts beyond the window that are on their way through the two hosts."""
_MOST_BURST: Final = 127
_WHOLE_ROUND_TRIP: Final = 1 - 1e-6
_LEAST_PACKET_SECONDS: Final = 1e-8
"""Pace on a path whose bandwidth has no limit: more than 1 Tbit/s."""
_CYCLE_DRAWS: Final = 1 << 60
"""First index of the draws of phases; losses count from 0."""


class Mode(StrEnum):
    """State of the sender."""

    STARTUP = "startup"
    DRAIN = "drain"
    PROBE_BANDWIDTH = "probe_bandwidth"
    PROBE_ROUND_TRIP = "probe_round_trip"


class Bbr:
    """Sender by the model of its path.

    Attributes:
        packets: how many may be in flight.
        packet_seconds: seconds between two packets.
        mode: state.
        least_round_trip: least round trip in seconds of the last 10 s, or since the last dip.
        pipe: whether the path is full.
    """

    __slots__ = (
        "_cycle", "_dip", "_policer", "_prior", "_rates", "_recovery", "_rounds", "least_round_trip", "mode",
        "packet_seconds", "packets", "pipe",
    )  # fmt: skip

    def __init__(self, draws: KeyedRandom) -> None:
        self.packets = INITIAL_WINDOW
        self._prior = 0  # window before a recovery or a dip
        self.packet_seconds = 0.0
        self.mode = Mode.STARTUP
        self.least_round_trip = math.inf
        self.pipe = FullPipe()
        self._rounds = Rounds()
        self._rates = RateFilter()
        self._policer = Policer()
        self._cycle = GainCycle(draws)
        self._recovery = Recovery()
        self._dip = Dip()

    # ------------------------------------------------------------ events

    def begin(self, now: float, round_trip: float) -> None:
        """Take the round trip of the handshake."""
        self.least_round_trip = max(round_trip, _LEAST_ROUND_TRIP_SECONDS)
        self._dip.measured_at = now
        self.packet_seconds = self.least_round_trip / (HIGH_GAIN * INITIAL_WINDOW)

    def delivered(self, delivery: Delivery) -> None:
        """Take a measurement."""
        is_round_end = self._rounds.note(delivery)
        if is_round_end:
            self._recovery.conserves = False
        cruises = self.mode is Mode.PROBE_BANDWIDTH
        if self._policer.note(delivery, is_round_end=is_round_end, cruises=cruises):
            self._cycle.begin(delivery.at)
        if delivery.seconds >= _WHOLE_ROUND_TRIP * self.least_round_trip:  # a shorter one shows no rate, as in Linux
            self._rates.note(delivery, self._rounds.count)
        if cruises:
            self._advance_cycle(delivery)
        if is_round_end and not delivery.is_app_limited:
            self.pipe.note_round(self._rates.most)
        self._drain(delivery)
        self._measure_round_trip(delivery, is_round_end=is_round_end)
        self._set_pace()
        self._set_window(delivery)

    def resume(self) -> None:
        """Send again after a pause: pace at the estimated rate, as there is no queue to drain or need to probe."""
        if self.mode is Mode.PROBE_BANDWIDTH and self.rate:
            self.packet_seconds = 1 / (_MARGIN * self.rate)

    def collapse(self) -> None:
        """Start from one packet after a retransmission timeout."""
        self._save_window()
        self.packets = 1
        self.pipe.forget()

    def recover(self) -> None:
        """Take the window before a retransmission timeout again."""
        self.packets = max(self.packets, self._prior)

    # ------------------------------------------------------------ the model

    @property
    def rate(self) -> float:
        """Estimated rate of the path in packets per second; 0 before the first measurement."""
        return self._policer.rate or self._rates.most

    @property
    def grows(self) -> bool:
        """True if a delivered packet lets two be sent."""
        return not self.pipe.is_full and not self._recovery.conserves

    @property
    def gain(self) -> float:
        """Gain of the pace."""
        if self.mode is Mode.STARTUP:
            return HIGH_GAIN
        if self.mode is Mode.DRAIN:
            return 1 / HIGH_GAIN
        return self._cycle.gain if self.mode is Mode.PROBE_BANDWIDTH and not self._policer.rate else 1.0

    def target(self, gain: float) -> int:
        """Return the packets in flight that fill the path `gain` times, with room for bursts within the hosts."""
        burst = min(max(int(_BURST_SECONDS / self.packet_seconds), 2), _MOST_BURST)
        packets = math.ceil(gain * self.rate * self.least_round_trip) + _BURSTS * burst
        packets += packets & 1
        return packets + 2 if self.mode is Mode.PROBE_BANDWIDTH and self._cycle.index == 0 else packets

    def _advance_cycle(self, delivery: Delivery) -> None:
        """End a phase after a least round trip, once it has probed, or as soon as it has drained."""
        gain = self.gain
        has_lasted = delivery.at - self._cycle.since > self.least_round_trip
        if gain > 1.0:
            ends = has_lasted and (bool(delivery.lost) or delivery.in_flight + delivery.acked >= self.target(gain))
        else:
            ends = has_lasted or (gain < 1.0 and delivery.in_flight <= self.target(1.0))
        if ends:
            self._cycle.advance(delivery.at)

    def _drain(self, delivery: Delivery) -> None:
        if self.mode is Mode.STARTUP and self.pipe.is_full:
            self.mode = Mode.DRAIN
        if self.mode is Mode.DRAIN and delivery.in_flight <= self.target(1.0):
            self._probe_bandwidth(delivery.at)

    def _probe_bandwidth(self, now: float) -> None:
        self.mode = Mode.PROBE_BANDWIDTH
        self._cycle.begin(now)

    def _measure_round_trip(self, delivery: Delivery, *, is_round_end: bool) -> None:
        """Keep the least round trip, and begin and end the dip that measures it anew."""
        dip, round_trip = self._dip, max(delivery.round_trip, _LEAST_ROUND_TRIP_SECONDS)
        has_expired = delivery.at > dip.measured_at + ROUND_TRIP_SECONDS
        if round_trip <= self.least_round_trip or has_expired:
            self.least_round_trip, dip.measured_at = round_trip, delivery.at
        if has_expired and self.mode is not Mode.PROBE_ROUND_TRIP:
            self._save_window()
            self.mode = Mode.PROBE_ROUND_TRIP
            dip.begin()
        if self.mode is not Mode.PROBE_ROUND_TRIP:
            return
        if dip.ends_at == math.inf:
            if delivery.in_flight <= LEAST_WINDOW:
                dip.ends_at, dip.round_ended = delivery.at + DIP_SECONDS, False
                self._rounds.restart(delivery.total)
            return
        dip.round_ended = dip.round_ended or is_round_end
        if dip.round_ended and delivery.at > dip.ends_at:
            dip.measured_at = delivery.at
            self.packets = max(self.packets, self._prior)
            self.mode = Mode.STARTUP
            if self.pipe.is_full:
                self._probe_bandwidth(delivery.at)

    def _save_window(self) -> None:
        """Keep the window for the end of a recovery or a dip; within one, the larger of both."""
        is_cut = self._recovery.is_on or self.mode is Mode.PROBE_ROUND_TRIP
        self._prior = max(self._prior, self.packets) if is_cut else self.packets

    def _set_pace(self) -> None:
        if not self.rate:
            return
        packet_seconds = max(1 / (_MARGIN * self.gain * self.rate), _LEAST_PACKET_SECONDS)
        packet_seconds = min(packet_seconds, self.least_round_trip)  # a collapse leaves a packet in a round trip
        if self.pipe.is_full or packet_seconds < self.packet_seconds:
            self.packet_seconds = packet_seconds

    def _set_window(self, delivery: Delivery) -> None:
        recovery, acked = self._recovery, round(delivery.acked)
        if recovery.has_ended(delivery.at):
            recovery.end()
            self.packets = max(self.packets, self._prior)
        if delivery.lost:
            if not recovery.is_on:
                self._save_window()
            if recovery.begin(delivery):
                self._rounds.restart(delivery.total)
                self.packets = max(int(delivery.in_flight) + acked, 1)
            else:
                self.packets = max(self.packets - delivery.lost, 1)
        if recovery.conserves:
            self.packets = max(self.packets, int(delivery.in_flight))
        else:
            target = self.target(HIGH_GAIN if self.mode in {Mode.STARTUP, Mode.DRAIN} else WINDOW_GAIN)
            if self.pipe.is_full:
                self.packets = min(self.packets + acked, target)
            elif self.packets < target or delivery.total < INITIAL_WINDOW:
                self.packets += acked
            self.packets = max(self.packets, LEAST_WINDOW)
        if self.mode is Mode.PROBE_ROUND_TRIP:
            self.packets = min(self.packets, LEAST_WINDOW)


class GainCycle:
    """Phases in which the pace probes, drains, and keeps to the estimated rate.

    Attributes:
        index: number of the phase.
        since: when it began.
    """

    __slots__ = ("_begun", "_draws", "index", "since")

    def __init__(self, draws: KeyedRandom) -> None:
        self._draws = draws
        self._begun = 0
        self.index = 0
        self.since = -math.inf

    @property
    def gain(self) -> float:
        """Gain of the pace."""
        return CYCLE[self.index]

    def begin(self, now: float) -> None:
        """Begin in a random phase other than the one that drains, so that flows do not probe in step."""
        self._begun += 1
        last = len(CYCLE) - 1
        self.index = last - int(last * self._draws.uniform(_CYCLE_DRAWS + self._begun))
        self.advance(now)

    def advance(self, now: float) -> None:
        """Go on to the next phase."""
        self.index, self.since = (self.index + 1) % len(CYCLE), now


class Recovery:
    """Recovery of losses: from the first that is noticed until all that was sent before it is acknowledged.

    Attributes:
        conserves: whether it is in its first round, in which a delivered packet lets one other be sent.
    """

    __slots__ = ("_began", "_until", "conserves")

    def __init__(self) -> None:
        self.conserves = False
        self._began = self._until = -math.inf

    @property
    def is_on(self) -> bool:
        """True during one."""
        return self._until > -math.inf

    def begin(self, delivery: Delivery) -> bool:
        """Note losses; return whether a recovery begins with them."""
        if self.is_on:
            if delivery.sent_at <= self._began:
                self._until = max(self._until, delivery.mended_at)
            return False
        self._began, self._until = delivery.at, delivery.mended_at
        self.conserves = True
        return True

    def has_ended(self, now: float) -> bool:
        """Return whether all is acknowledged that was sent before it."""
        return self.is_on and self._until <= now

    def end(self) -> None:
        """End it."""
        self._until, self.conserves = -math.inf, False


class Dip:
    """Time with four packets in flight, in which the queue drains and the round trip is measured.

    Attributes:
        measured_at: when the least round trip was measured last.
        ends_at: when it has lasted long enough; infinite until the packets before it are delivered.
        round_ended: whether a round of it has ended.
    """

    __slots__ = ("ends_at", "measured_at", "round_ended")

    def __init__(self) -> None:
        self.measured_at = -math.inf
        self.begin()

    def begin(self) -> None:
        """Begin."""
        self.ends_at, self.round_ended = math.inf, False
