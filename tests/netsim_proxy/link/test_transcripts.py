"""Links against their transcripts: every profile and every event, in either loss model, to the microsecond.

Write them anew with `pytest tests/netsim_proxy/link/test_transcripts.py --update-transcripts`.
"""

import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypergpu import NetworkSimulator
from hypergpu.common.clock import ManualClock
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.netsim_proxy.link import Blocked, Deliver, Direction, Link, LossModel, NetworkEvent
from hypergpu.netsim_proxy.link.congestion import CongestionControl
from hypergpu.netsim_proxy.link.distributions import LogNormal, Uniform
from hypergpu.netsim_proxy.link.flows import open_flow
from hypergpu.netsim_proxy.link.outcomes import Cause
from hypergpu.netsim_proxy.link.profiles import LAST_MILES, PROFILES, Loss, Profile, find_profile, symmetric
from hypergpu.netsim_proxy.link.profiles import Path as NetworkPath
from hypergpu.netsim_proxy.link.transfer import plain_profile, transfer_times
from tests.transcripts import RequireTranscript

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
    rpc = link.begin(now, connection)
    left = nbytes
    while True:
        piece = min(left, 65_536)
        left -= piece
        result = link.offer(now, direction, piece, rpc, end=not left)
        if not isinstance(result, Deliver):
            what = "held until" if isinstance(result, Blocked) else "fails at"
            return f"{what} {result.at if not isinstance(result, Blocked) else result.until:.6f} ({result.cause})"
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
        yield f"  {direction}: latency ms at quantiles {latencies}, wants {link.useful_window_bytes(direction):.0f} B"
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
    # The first that blocks names the cause, and the last to end says until when.
    for event in (
        NetworkEvent("partition", nodes=("n",), group_b=("upstream",), duration_seconds=2),
        NetworkEvent("flap", "n", duration_seconds=1, period_seconds=0.5),
        NetworkEvent("disconnect", "n", duration_seconds=0.5, mode="reset", direction="up"),
        NetworkEvent("bandwidth_collapse", "n", duration_seconds=3, direction="down"),
        NetworkEvent("profile_change", "n", duration_seconds=4, new_profile="poor", direction="up"),
    ):
        link.apply(event, 10.0)
    for now in (10.1, 10.3, 10.6, 11.1, 12.1, 13.5, 14.5):
        ways = [link.blocked(now, direction) for direction in (UP, DOWN)]
        told = [f"{block.cause} until {block.until:g} resets {block.reset}" if block else "open" for block in ways]
        yield f"at {now}: {link.state(now)}, {told}, {link.profile.name}, changes at {link.next_change:g}"


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
        flow = open_flow(path, KeyedRandom(5, "windows", number), control)
        now, arrived = 0.0, []
        for pause, nbytes, more in MESSAGES:
            now = max(now, flow.sent if more else now) + pause
            arrived.append(flow.send(now, nbytes, round_trip, round_trip / 2, more))
            now = max(now, arrived[-1]) if pause else now
        yield (
            f"{control}, {1000 * round_trip:g} ms, {mbit:g} Mbit/s, loses {100 * loss.mean:g} % in runs of "
            f"{loss.burst:g}, queue {queue} B: " + " ".join(f"{each:.6f}" for each in arrived)
        )


def uneven(correlation: float = 0.0, loss: float = 0.0) -> Profile:
    """A link whose paths differ in everything."""
    return Profile(
        "uneven",
        NetworkPath(Uniform(0.01, 0.05), 20.0, Loss(loss, 2.0), 50_000),
        NetworkPath(LogNormal(0.02, 0.5, 0.003), 60.0, Loss(loss / 3)),
        correlation,
    )


def stream(link: Link, now: float, connection: int) -> Iterator[str]:
    """Messages of one RPC, some of which begin when the one before has arrived, and some before that."""
    rpc = link.begin(now, connection)
    for number, (pause, direction, nbytes) in enumerate(
        ((0.0, UP, 900), (0.001, UP, 70_000), (0.5, DOWN, 40_000), (0.5, UP, 10), (0.0, DOWN, 200_000), (0.8, DOWN, 5))
    ):
        now += pause
        result = link.offer(now, direction, nbytes, rpc, end=number >= 4, express=nbytes == 10)
        told = f"arrives {result.at:.6f}" if isinstance(result, Deliver) else f"{result}"
        after = rpc.lost_after if rpc.lost_on is not None else 0
        yield f"  {now:.3f} {direction} {nbytes} B: {told}, lost on {rpc.lost_on} after {after:.0f}"
        if not isinstance(result, Deliver):
            return


def story_of_streams() -> Iterator[str]:
    """Streams over links that differ up and down, with correlated jitter, losses, and events in one direction."""
    spike = NetworkEvent("latency_spike", "n", factor=3, added_ms=40, direction="up")
    collapse = NetworkEvent("bandwidth_collapse", "n", factor=0.25, direction="down")
    for model, correlation, loss in product(LossModel, (0.0, 0.6), (0.0, 0.6)):
        link = Link("n", uneven(correlation, loss), seed=11, loss_model=model)
        yield f"{model}, correlated {correlation:g}, loses {link.profile.loss:g}"
        for number in range(8):
            yield from stream(link, 4.0 * number, number)
            if number == 4:
                link.apply(spike, 4.0 * number + 3)
                link.apply(collapse, 4.0 * number + 3)
        control = link.connect(50.0, 3)
        told = [link.offer(50.0, way, 40, control, end=True) for way in (UP, DOWN)]
        yield f"  control {told}, {link.state(50.0)}, {link.event_summaries(50.0)}"
        for direction in (UP, DOWN):
            low, high = link.latency_bounds_ms(direction)
            counters = link.counters(direction)
            yield (
                f"  {direction}: {low:.4f} to {high:.4f} ms, {link.bandwidth_mbit(direction):g} Mbit/s, wants "
                f"{link.useful_window_bytes(direction):.0f} B, {counters.recent_seconds:.6f} s of {counters.messages}"
            )
        link.settle()
        link.disconnect(3)
        room, lost = link.room_at(50.0, DOWN), link.losses[Cause.LOSS]
        yield f"  settled: {link.queued_bytes(50.0, UP):.0f} B queued, room at {room:.3f}, {lost} lost"


def story_of_simulator() -> Iterator[str]:
    """The simulator as a library: what it answers, and the metrics of each node, through events of every kind."""
    clock = ManualClock()
    simulator = NetworkSimulator("average", seed=4, clock=clock)
    simulator.set_node_profile("far", "unstable", region="eu-west")
    simulator.schedule_event(NetworkEvent("disconnect", "a", scheduled_time=3.0, duration_seconds=2.0))
    simulator.schedule_event(NetworkEvent("partition", "*", scheduled_round=4, duration_seconds=1.5))
    simulator.schedule_event(NetworkEvent("latency_spike", "b", scheduled_round=2, added_ms=300.0))
    for number in range(1, 9):
        simulator.announce_round(number)
        if number == 6:
            simulator.inject_latency_spike("a")
            simulator.inject_event(NetworkEvent("bandwidth_collapse", "*", factor=0.02))
        for node, message in (("a", b"x" * 50_000), ("b", "text"), ("far", np.zeros(1000)), ("new", {"k": number})):
            if node == "new" and number < 7:
                continue
            success, milliseconds, answer = simulator.simulate_communication(node, message)
            yield f"{number} {node}: {success}, {milliseconds:.4f} ms, {answer is not None}"
        success, milliseconds, answer, tries = simulator.simulate_with_retry("far", b"y" * 9, max_retries=5)
        yield f"{number} far with retries: {success}, {milliseconds:.4f} ms, {answer!r} after {tries}"
        clock.advance(1.0)
    for node in ("a", "b", "far", "new", "unheard"):
        told = {key: round(value, 6) if isinstance(value, float) else value for key, value in metrics(simulator, node)}
        yield f"{node}: {told}"
    simulator.inject_event(NetworkEvent("recovery", "*"))
    for node in ("a", "late"):
        told = {key: round(value, 6) if isinstance(value, float) else value for key, value in metrics(simulator, node)}
        yield f"recovered {node}: {told}"


def metrics(simulator: NetworkSimulator, node: str) -> list[tuple[str, Any]]:
    return list(simulator.get_node_metrics(node).items())


def story_of_samples() -> Iterator[str]:
    """Summaries of transfers, and what plain profiles are like."""
    for rtt_ms, mbit, queue in (
        (0.0, math.inf, 0),
        (1.0, 10.0, 0),
        (40.0, 1000.0, 0),
        (33.3, 77.7, 0),
        (5.0, 5.0, 9_000),
    ):
        profile = plain_profile(rtt_ms, mbit, 0.01, 3.0, queue)
        for path in (profile.up, profile.down):
            told = f"{1000 * path.latency.at(0.1):.4f} to {1000 * path.latency.at(0.9):.4f} ms"
            yield f"{rtt_ms:g} ms, {mbit:g} Mbit/s: {told}, {path.bandwidth_mbit:g} Mbit/s, queue {path.queue_limit} B"
    for model, samples, direction in product(LossModel, (1, 7, 40), (UP, DOWN)):
        for kind, each in transfer_times(
            uneven(0.3, 0.3), 60_000, loss_model=model, samples=samples, seed=3, direction=direction
        ).items():
            yield (
                f"{model}, {samples} {direction} {kind}: mean {each.mean_seconds:.6f}, median {each.p50_seconds:.6f}, "
                f"90 % {each.p90_seconds:.6f}, lost {each.lost:.4f}"
            )


OTHERS = {
    "windows": story_of_windows,
    "streams": story_of_streams,
    "simulator": story_of_simulator,
    "samples": story_of_samples,
}


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
    elif kind in OTHERS:
        yield from OTHERS[kind]()
    else:
        yield from story_of_transfers()


@pytest.mark.parametrize(
    "name", ["profiles-rpc", "profiles-transport", "events-rpc", "events-transport", "overlap", "transfers", *OTHERS]
)
def test_a_link_does_as_its_transcript_says(name: str, require_transcript: RequireTranscript) -> None:
    require_transcript(DIRECTORY / f"{name}.txt", told(name))
