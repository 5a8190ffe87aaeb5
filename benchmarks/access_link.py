"""Transfers to many nodes at once, whose common bottleneck is the upstream's access link.

First with the kernel's own TCP beside the link model: when the first and the last transfer are complete, their mean,
and the delay that small messages on a connection of their own have meanwhile. Needs Linux, root and /dev/net/tun; a
process of ours carries the packets, first through the shared bandwidth and its drop-tail queue, then over each node's
own line. Then whole simulated rounds of a star of up to 1,000 nodes, and the time to a target of policies.
"""

import argparse
import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from hypergpu.netsim_proxy.link import Deliver, Direction, Link, LossModel
from hypergpu.netsim_proxy.link.access_lane import AccessLink, UpstreamBandwidth
from hypergpu.netsim_proxy.link.striping import longest_piece_bytes
from hypergpu.netsim_proxy.link.transfer import plain_profile
from hypergpu.simulation.kernel.delay_line import Line
from hypergpu.simulation.kernel.namespaces import missing_permission
from hypergpu.simulation.kernel.transfers import Transfer, measure
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario

_SMALL_BYTES: Final = 200
_SMALL_PERIOD_SECONDS: Final = 0.1
_START_SECONDS: Final = 0.001
"""Time between the starts of two transfers."""
_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Star:
    """Nodes that receive as many bytes each, at the same time."""

    nodes: int
    nbytes: int
    own_mbit: float
    shared_mbit: float = 20.0
    queue_bytes: int = 250_000
    rtt_ms: float = 40.0
    loss: float = 0.0

    @property
    def own_queue_bytes(self) -> int:
        """Queue of each node's line: a bandwidth-delay product, and at least 100 kB."""
        return max(100_000, int(self.own_mbit * self.rtt_ms * 125))


STARS: Final = (
    Star(1, 8_000_000, own_mbit=100),
    Star(2, 4_000_000, own_mbit=20),
    Star(4, 4_000_000, own_mbit=20),
    Star(8, 2_000_000, own_mbit=20),
    Star(16, 1_000_000, own_mbit=20),
    Star(32, 1_000_000, own_mbit=20),
    Star(16, 1_000_000, own_mbit=20, queue_bytes=100_000),
    Star(8, 2_000_000, own_mbit=20, rtt_ms=150, queue_bytes=375_000),
    Star(4, 2_000_000, own_mbit=4),
    Star(8, 2_000_000, own_mbit=20, loss=0.001),
)


def kernel_times(star: Star) -> tuple[list[float], list[float]]:
    """Return when each transfer of the kernel was complete, and the delays of small messages until the first was."""
    line = Line(
        star.rtt_ms,
        star.own_mbit,
        star.own_queue_bytes,
        loss=star.loss,
        shared=False,
        access_mbit=star.shared_mbit,
        access_queue_bytes=star.queue_bytes,
    )
    transfers = [Transfer([star.nbytes], start=_START_SECONDS * number) for number in range(star.nodes)]
    small = Transfer([_SMALL_BYTES] * 200, start=_SMALL_PERIOD_SECONDS, pause_seconds=_SMALL_PERIOD_SECONDS)
    measure(line, [*transfers, small], most_seconds=60)
    done = [transfer.start + transfer.seconds[0] for transfer in transfers]
    delays = [
        seconds for (at, _), seconds in zip(small.arrivals, small.seconds, strict=False) if at < min(done) - seconds
    ]
    return done, delays


def model_times(star: Star) -> tuple[list[float], list[float]]:
    """Return the same of the link model."""
    access = AccessLink(UpstreamBandwidth(down_mbit=star.shared_mbit, queue_bytes=star.queue_bytes))
    profile = plain_profile(star.rtt_ms, star.own_mbit, star.loss, queue_bytes=star.own_queue_bytes)
    links = [
        Link(f"node_{number}", profile, seed=0, loss_model=LossModel.TRANSPORT, access=access)
        for number in range(star.nodes + 1)
    ]
    rpcs = [link.begin(0.0) for link in links]
    due = [(_START_SECONDS * number, number) for number in range(star.nodes)]
    due.append((_SMALL_PERIOD_SECONDS, star.nodes))
    left, done, delays = [star.nbytes] * star.nodes, [0.0] * star.nodes, []
    while any(left):
        now, number = heapq.heappop(due)
        if number == star.nodes:
            delays.append((now, _offer(links[number], now, _SMALL_BYTES, links[number].begin(now), end=True) - now))
            heapq.heappush(due, (now + _SMALL_PERIOD_SECONDS, number))
            continue
        at = links[number].room_at(now, Direction.DOWN)
        if at <= now:
            piece = min(left[number], longest_piece_bytes(links[number], Direction.DOWN, _CHUNK_BYTES))
            left[number] -= piece
            done[number] = _offer(links[number], now, piece, rpcs[number], end=not left[number])
        if left[number]:
            heapq.heappush(due, (at, number))
    return done, [delay for at, delay in delays if at + delay < min(done)]


def _offer(link: Link, now: float, nbytes: int, rpc: object, *, end: bool) -> float:
    outcome = link.offer(now, Direction.DOWN, nbytes, rpc, end=end)  # type: ignore[arg-type]
    assert isinstance(outcome, Deliver)
    return outcome.at


def compare_with_kernel(stars: Sequence[Star] = STARS) -> None:
    """Print the times of the kernel and of the model."""
    print("nodes  MB each  own  shared, Mbit/s    first     mean     last, s    small, ms   last of the model / kernel")
    for star in stars:
        rows = {"kernel": kernel_times(star), "model": model_times(star)}
        for name, (done, delays) in rows.items():
            print(
                f"{star.nodes:5} {star.nbytes / 1e6:8.1f} {star.own_mbit:4.0f} {star.shared_mbit:7.0f} {name:>9} "
                f"{min(done):8.2f} {fmean(done):8.2f} {max(done):8.2f} {1000 * fmean(delays or [0.0]):10.0f}"
                + (f" {max(rows['model'][0]) / max(rows['kernel'][0]):12.3f}" if name == "model" else ""),
                flush=True,
            )


def star_scenario(nodes: int, model_bytes: int, mbit: float, rounds: int, policy: str, **config: object) -> Scenario:
    """Return a scenario of nodes with lines of 100 Mbit/s."""
    return Scenario.model_validate(
        {
            "name": f"star of {nodes}",
            "learning": "model",
            "convergence": {"model_bytes": model_bytes},
            "rounds": rounds,
            "target_accuracy": 0.95,
            "policy": policy,
            "profiles": {"line": {"rtt_ms": 40, "bandwidth_mbit": 100}},
            "nodes": [{"id": "node", "count": nodes, "gpu": "T4", "profile": "line"}],
            "upstream_bandwidth": {"down_mbit": mbit, "up_mbit": mbit},
            "config": {"training": {"learning_rate": 0.01}, **config},
        }
    )


def simulate_star(nodes: int, model_bytes: int, mbit: float, rounds: int, policy: str) -> None:
    """Print what rounds of a star take, and what its bytes take at the rate of the access link alone."""
    scenario = star_scenario(nodes, model_bytes, mbit, rounds, policy)
    began = time.process_time()
    outcome = simulate(scenario)
    line = 2 * nodes * model_bytes * 8e-6 / mbit
    print(
        f"{nodes:5} nodes × {model_bytes / 1e6:g} MB, {mbit:g} Mbit/s, {policy}: "
        f"{outcome.seconds / outcome.rounds:.1f} s a round, {line:.1f} s of them bytes at line rate; "
        f"{(time.process_time() - began) / outcome.rounds:.2f} s of CPU a round",
        flush=True,
    )


def simulate_policies(nodes: int, model_bytes: int, mbit: float, rounds: int) -> None:
    """Print the time to the target with all nodes, and with bounds on their number."""
    rows = [("none", None), ("reactive", None), *(("reactive", nodes // share) for share in (2, 4, 8))]
    for policy, most in rows:
        selector = {"max_selected_nodes": most}
        outcome = simulate(star_scenario(nodes, model_bytes, mbit, rounds, policy, selector=selector))
        reached = outcome.time_to_target_seconds
        print(
            f"{nodes:5} nodes × {model_bytes / 1e6:g} MB, {mbit:g} Mbit/s, {policy}, at most {most or nodes} a round: "
            f"{outcome.seconds / outcome.rounds:.1f} s a round, "
            f"target after {'-' if reached is None else f'{reached:.0f}'} s",
            flush=True,
        )


def main() -> None:
    """Compare, and simulate stars."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("all", "kernel", "stars", "policies"), nargs="?", default="all")
    part = parser.parse_args().part
    if part in ("all", "kernel"):
        if reason := missing_permission():
            print(f"skipped: {reason}")
        else:
            compare_with_kernel()
    if part in ("all", "stars"):
        for nodes in (1, 16, 250, 1000):
            simulate_star(nodes, 44_000_000, 500, rounds=1, policy="none")
    if part in ("all", "policies"):
        simulate_policies(16, 44_000_000, 500, rounds=50)
        simulate_policies(200, 4_000_000, 500, rounds=8)


if __name__ == "__main__":
    main()
