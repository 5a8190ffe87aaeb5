"""Shares of 1 to 16 flows of the kernel's own TCP on one line, beside those of the link model: sum and fairness.

Two network namespaces with a TUN device each; a process of ours carries packets between the two devices. Each direction
has a bandwidth, a drop-tail queue, a constant delay and independent losses. Needs Linux, root and /dev/net/tun.
"""

import argparse
import heapq
from typing import Final

from hypergpu.netsim_proxy.link import Deliver, Direction, Link, LossModel
from hypergpu.netsim_proxy.link.congestion import CongestionControl
from hypergpu.netsim_proxy.link.transfer import plain_profile
from hypergpu.simulation.kernel.delay_line import Line
from hypergpu.simulation.kernel.namespaces import missing_permission
from hypergpu.simulation.kernel.transfers import Transfer, measure

_PIECE_BYTES: Final = 16 << 10
_WARM_UP_SECONDS: Final = 3.0


def kernel_shares(line: Line, flows: int, seconds: float, control: CongestionControl) -> list[float]:
    """Return the Mbit/s of each connection of the kernel, after a warm-up."""
    transfers = [Transfer([10**9], start=0.001 * number) for number in range(flows)]
    measure(line, transfers, most_seconds=seconds, congestion_control=control)
    return [
        sum(nbytes for at, nbytes in transfer.arrivals if at >= _WARM_UP_SECONDS) * 8e-6 / (seconds - _WARM_UP_SECONDS)
        for transfer in transfers
    ]


def model_shares(line: Line, flows: int, seconds: float, control: CongestionControl) -> list[float]:
    """Return the same of the link model."""
    profile = plain_profile(line.rtt_ms, line.bandwidth_mbit, line.loss, queue_bytes=line.queue_bytes)
    link = Link("n", profile, seed=0, loss_model=LossModel.TRANSPORT, congestion_control=control)
    rpcs = [link.begin(0.0, number) for number in range(flows)]
    due, received = [(0.001 * number, number) for number in range(flows)], [0] * flows
    while due[0][0] < seconds:
        now, number = heapq.heappop(due)
        outcome = link.offer(now, Direction.UP, _PIECE_BYTES, rpcs[number])
        assert isinstance(outcome, Deliver)
        received[number] += _PIECE_BYTES if _WARM_UP_SECONDS <= outcome.at < seconds else 0
        heapq.heappush(due, (link.room_at(now, Direction.UP, number), number))
    return [nbytes * 8e-6 / (seconds - _WARM_UP_SECONDS) for nbytes in received]


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rtt-ms", type=float, default=40)
    parser.add_argument("--bandwidth-mbit", type=float, default=20)
    parser.add_argument("--queue-bytes", type=int, default=100_000)
    parser.add_argument("--loss", type=float, default=0.01)
    parser.add_argument("--seconds", type=float, default=15, help="length of each measurement")
    parser.add_argument("--congestion-control", choices=list(CongestionControl), default=CongestionControl.CUBIC)
    arguments = parser.parse_args()
    control = CongestionControl(arguments.congestion_control)
    if reason := missing_permission():
        print(f"skipped: {reason}")
        return
    line = Line(arguments.rtt_ms, arguments.bandwidth_mbit, arguments.queue_bytes, arguments.loss)
    for flows in (1, 2, 4, 8, 16):
        for name, shares in (
            ("kernel", kernel_shares(line, flows, arguments.seconds, control)),
            ("model", model_shares(line, flows, arguments.seconds, control)),
        ):
            fairness = sum(shares) ** 2 / (flows * sum(share * share for share in shares))
            print(f"{flows:3} flows, {name:6} {sum(shares):6.2f} Mbit/s, Jain's index {fairness:.2f}")


if __name__ == "__main__":
    main()
