"""One-way delivery times of transfers, on a new connection and on a warm one."""

import math
from dataclasses import dataclass
from heapq import heappop, heappush
from statistics import fmean

from hypergpu.netsim_proxy.link.congestion import CongestionControl
from hypergpu.netsim_proxy.link.distributions import Uniform
from hypergpu.netsim_proxy.link.link import Link
from hypergpu.netsim_proxy.link.outcomes import Deliver, Direction, LinkRpc, LossModel
from hypergpu.netsim_proxy.link.profiles import Loss, Path, Profile
from hypergpu.netsim_proxy.link.striping import SharedMessage, Stripe

_PAUSE_SECONDS = 0.005
"""Pause between the arrival of the first message and the start of the second."""
_LEAST_QUEUE_BYTES = 100_000


@dataclass(frozen=True, slots=True)
class Summary:
    """Delivery times of the messages that arrived; NaN if none did."""

    mean_seconds: float
    p50_seconds: float
    p90_seconds: float
    lost: float
    """Share that did not arrive; 0 in the `transport` loss model."""


def plain_profile(
    rtt_ms: float, bandwidth_mbit: float = math.inf, loss: float = 0.0, burst: float = 1.0, queue_bytes: int = 0
) -> Profile:
    """Return a symmetric profile without jitter.

    The queue holds `queue_bytes`; by default one bandwidth-delay product, and at least 100 kB.
    """
    product = 0.0 if bandwidth_mbit == math.inf else rtt_ms * bandwidth_mbit * 125
    queue = queue_bytes or max(_LEAST_QUEUE_BYTES, math.ceil(product))
    path = Path(Uniform(rtt_ms / 2000, rtt_ms / 2000), bandwidth_mbit, Loss(loss, burst), queue)
    return Profile("plain", up=path, down=path)


def transfer_times(
    profile: Profile,
    nbytes: int,
    *,
    loss_model: LossModel = LossModel.TRANSPORT,
    samples: int = 300,
    seed: int = 0,
    direction: Direction = Direction.UP,
    congestion_control: CongestionControl = CongestionControl.CUBIC,
    connections: int = 1,
) -> dict[str, Summary]:
    """Deliver `nbytes` on new connections ("cold") and again on the same ones ("warm"), `samples` times each.

    Several connections share the link, each with a congestion window of its own, and take chunks as they have room.
    """
    times: dict[str, list[float]] = {"cold": [], "warm": []}
    for sample in range(samples):
        link = Link(f"transfer {sample}", profile, seed, loss_model=loss_model, congestion_control=congestion_control)
        now = 0.0
        for arrived in times.values():
            if connections == 1:
                outcome = link.offer(now, direction, nbytes, _survivor(link, now, direction), end=True)
                at = outcome.at if isinstance(outcome, Deliver) else None
            else:
                at = _deliver_in_chunks(link, now, direction, nbytes, connections)
            if at is not None:
                arrived.append(at - now)
                now = at + _PAUSE_SECONDS
    return {kind: _summary(values, samples) for kind, values in times.items()}


def _deliver_in_chunks(link: Link, now: float, direction: Direction, nbytes: int, connections: int) -> float | None:
    """Return when a message has arrived whose chunks several connections share; None if it was lost."""
    message = SharedMessage(link, direction, nbytes)
    stripes = [Stripe(_survivor(link, now, direction, number)) for number in range(connections)]
    free = [(now, number) for number in range(connections)]
    arrived_at = now
    while free:
        at, number = heappop(free)
        outcome = message.send(at, stripes[number])
        if outcome is None:
            continue
        if not isinstance(outcome, Deliver):
            return None
        arrived_at = max(arrived_at, outcome.at)
        heappush(free, (link.room_at(at, direction, number), number))
    return arrived_at


def _survivor(link: Link, now: float, direction: Direction, connection: int = 0) -> LinkRpc:
    """Return the next RPC; one that is lost on its other path only still delivers this message."""
    rpc = link.begin(now, connection)
    if rpc.lost_on is not None and rpc.lost_on is not direction:
        rpc.lost_on = None
    return rpc


def _summary(seconds: list[float], samples: int) -> Summary:
    if not seconds:
        return Summary(math.nan, math.nan, math.nan, 1.0)
    ordered = sorted(seconds)
    return Summary(fmean(ordered), _quantile(ordered, 0.5), _quantile(ordered, 0.9), 1 - len(ordered) / samples)


def _quantile(ordered: list[float], q: float) -> float:
    position = q * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
