"""Links against their transcripts: every profile and every event, in either loss model, to the microsecond.

Write them anew with `pytest tests/netsim_proxy/link/test_transcripts.py --update-transcripts`.
"""

import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from hypergpu.common.draws import Draws
from hypergpu.netsim_proxy.link import Deliver, Direction, Hold, Link, LossModel, NetworkEvent
from hypergpu.netsim_proxy.link.distributions import Uniform
from hypergpu.netsim_proxy.link.profiles import LAST_MILES, PROFILES, Loss, Profile, find_profile, symmetric
from hypergpu.netsim_proxy.link.profiles import Path as NetworkPath
from hypergpu.netsim_proxy.link.tcp import TcpFlow
from hypergpu.netsim_proxy.link.window import CongestionControl

DIRECTORY = Path(__file__).parent / "transcripts"
UP, DOWN = Direction.UP, Direction.DOWN
SIZES = (100, 20_000, 3_000_000)
EVENTS = {
    "latency_spike": NetworkEvent("latency_spike", "n", duration_seconds=2),
    "latency_spike_factor": NetworkEvent("latency_spike", "n", duration_seconds=2, factor=3),
    "latency_spike_added": NetworkEvent("latency_spike", "n", duration_seconds=2, added_ms=500),
    "bandwidth_collapse": NetworkEvent("bandwidth_collapse", "n", duration_seconds=2),
    "bandwidth_collapse_factor": NetworkEvent("bandwidth_collapse", "n", duration_seconds=2, factor=0.5),
    "profile_change": NetworkEvent("profile_change", "n", new_profile="poor", duration_seconds=2),
    "profile_change_for_good": NetworkEvent("profile_change", "n", new_profile="unstable"),
    "disconnect": NetworkEvent("disconnect", "n", duration_seconds=2),
    "disconnect_black_hole": NetworkEvent("disconnect", "n", duration_seconds=2, mode="black_hole"),
    "disconnect_half_open": NetworkEvent("disconnect", "n", mode="half_open"),
    "partition": NetworkEvent("partition", nodes=("n",), group_b=("upstream",), duration_seconds=2),
    "flap": NetworkEvent("flap", "n", duration_seconds=2, period_seconds=0.5),
    "flap_black_hole": NetworkEvent("flap", "n", duration_seconds=2, mode="black_hole"),
}


def outcome(link: Link, now: float, direction: Direction, nbytes: int, connection: int) -> str:
    """Offer a message in pieces of 64 KiB, and tell what came of the last."""
    exchange = link.begin(now, connection)
    left = nbytes
    while True:
        piece = min(left, 65_536)
        left -= piece
        result = link.offer(now, direction, piece, exchange, end=not left)
        if not isinstance(result, Deliver):
            what = "held until" if isinstance(result, Hold) else "fails at"
            return f"{what} {result.at if not isinstance(result, Hold) else result.until:.6f} ({result.cause})"
        if not left:
            return f"arrives {result.at:.6f}"


def calls(link: Link, start: float, count: int, every: float = 0.25) -> Iterator[str]:
    for number in range(count):
        now = start + every * number
        for direction in (UP, DOWN):
            size = SIZES[number % len(SIZES)]
            told = outcome(link, now, direction, size, connection=number % 2)
            queue = f"queued {link.queued_bytes(now, direction):.0f} room {link.room_at(now, direction):.6f}"
            yield f"{now:7.3f} {direction:4} {size:9,} B  {told}  {queue}"


def story_of_profile(profile: Profile, loss_model: LossModel) -> Iterator[str]:
    link = Link("n", profile, seed=7, loss_model=loss_model)
    yield f"{profile.name}, {loss_model}: loses {profile.loss:g}, jitter correlated {profile.jitter_correlation:g}"
    for direction in (UP, DOWN):
        path = profile.up if direction is UP else profile.down
        latencies = " ".join(f"{1000 * path.latency.at(u):.4f}" for u in (0.01, 0.25, 0.5, 0.75, 0.99))
        yield f"  {direction}: {path.bandwidth_mbit:g} Mbit/s, queue {path.queue_limit:.0f} B"
        yield f"  {direction}: latency ms at quantiles {latencies}, wants {link.appetite_bytes(direction):.0f} B"
    yield from calls(link, 0.0, 9)
    for direction in (UP, DOWN):
        counters = link.counters(direction)
        yield f"  {direction}: {counters.bytes} B, {counters.messages} messages, {counters.delay_seconds:.6f} s"
    yield f"  {link.rpcs} RPCs, {link.rpcs_lost} lost"


def story_of_event(name: str, event: NetworkEvent, loss_model: LossModel) -> Iterator[str]:
    link = Link("n", find_profile("average"), seed=3, loss_model=loss_model)
    yield f"{name}, {loss_model}: {event.summary()}"
    yield from calls(link, 0.0, 1)
    link.apply(event, 1.0)
    yield f"  at 1: {link.state(1.0)}, changes at {link.next_change:g}"
    yield from calls(link, 1.1, 9, every=0.3)
    yield f"  then: {link.state(3.6)}, {len(link.active_events(3.6))} run, {link.clear(3.6)} cleared"
    yield from calls(link, 4.0, 3)


def story_of_overlap() -> Iterator[str]:
    link = Link("n", find_profile("good"), seed=5)
    for at, name in (
        (1.0, "latency_spike"),
        (1.5, "bandwidth_collapse"),
        (2.0, "disconnect_black_hole"),
        (2.5, "disconnect"),
    ):
        link.apply(EVENTS[name], at)
        yield f"{name} at {at}: {link.state(at)}, blocked {link.blocked(at)}, next change {link.next_change:g}"
        yield from calls(link, at, 2, every=0.1)
    for now in (2.9, 3.1, 3.6, 4.1, 4.6):
        yield f"at {now}: {link.state(now)}, blocked {link.blocked(now)}, {len(link.active_events(now))} run"


def story_of_transfers() -> Iterator[str]:
    for rtt_ms, loss in ((20.0, 0.0), (100.0, 0.01), (300.0, 0.05)):
        for nbytes in (1_000, 1_000_000, 20_000_000):
            profile = symmetric("plain", (rtt_ms, rtt_ms), loss, down_mbit=100, up_mbit=50)
            link = Link("n", profile, seed=2, loss_model=LossModel.TRANSPORT)
            cold = outcome(link, 0.0, UP, nbytes, 0)
            warm = outcome(link, 300.0, UP, nbytes, 0)
            yield f"{rtt_ms:g} ms, loss {loss:g}, {nbytes:,} B: cold {cold}, warm {warm}"


MESSAGES = (
    (0.0, 30_000, False),
    (0.02, 400_000, True),
    (0.1, 65_536, True),
    (0.0, 1_000_000, False),
    (0.0, 900, False),
    (2.0, 250_000, False),
    (0.3, 4_500, False),
    (60.0, 700_000, False),
    (0.0, 1, False),
)
"""Seconds after the message before (or after its arrival, where it is later), bytes, and whether more follow."""


def story_of_windows() -> Iterator[str]:
    """Messages of one connection after the other on paths of every kind: when each has arrived, in seconds."""
    losses = (Loss(0.0), Loss(0.002), Loss(0.02, 4.0), Loss(0.15))
    grid = product(CongestionControl, (0.006, 0.08, 0.4), (1.5, 40.0, math.inf), losses, (25_000, 400_000))
    for number, (control, round_trip, mbit, loss, queue) in enumerate(grid):
        path = NetworkPath(Uniform(round_trip / 2, round_trip / 2), mbit, loss, queue)
        flow = TcpFlow(path, Draws(5, "windows", number), control)
        now, arrived = 0.0, []
        for pause, nbytes, more in MESSAGES:
            now = max(now, flow.sent if more else now) + pause
            arrived.append(flow.send(now, nbytes, round_trip, round_trip / 2, more))
            now = max(now, arrived[-1]) if pause else now
        yield (
            f"{control}, {1000 * round_trip:g} ms, {mbit:g} Mbit/s, loses {100 * loss.mean:g} % in runs of "
            f"{loss.burst:g}, queue {queue} B: " + " ".join(f"{each:.6f}" for each in arrived)
        )


def told(name: str) -> Iterator[str]:
    kind, _, model = name.partition("-")
    if kind == "profiles":
        for profile in (*PROFILES.values(), *LAST_MILES.values()):
            yield from story_of_profile(profile, LossModel(model))
    elif kind == "events":
        for event_name, event in EVENTS.items():
            yield from story_of_event(event_name, event, LossModel(model))
    elif kind == "overlap":
        yield from story_of_overlap()
    elif kind == "windows":
        yield from story_of_windows()
    else:
        yield from story_of_transfers()


@pytest.mark.parametrize(
    "name", ["profiles-rpc", "profiles-transport", "events-rpc", "events-transport", "overlap", "transfers", "windows"]
)
def test_a_link_does_as_its_transcript_says(name: str, request: pytest.FixtureRequest) -> None:
    lines = list(told(name))
    file = DIRECTORY / f"{name}.txt"
    if request.config.getoption("--update-transcripts"):
        file.write_text("\n".join(lines) + "\n")
    assert lines == file.read_text().splitlines()
