"""Transfers of the kernel's own TCP over a grid of lines, one JSON line each, for `benchmarks/link_model.py`.

Two network namespaces with a TUN device each; a process of ours carries packets between the two devices. Each
connection has a line of its own. Needs Linux, root and /dev/net/tun; `bbr` needs the kernel's module tcp_bbr.
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from random import Random
from typing import Final

from hypergpu.netsim_proxy.link.transfer import plain_profile
from hypergpu.simulation.kernel.delay_line import Line
from hypergpu.simulation.kernel.namespaces import missing_permission
from hypergpu.simulation.kernel.transfers import Transfer, measure

_MACHINE_SECONDS_PER_BYTE: Final = 8 / 40e6
"""Pace at which transfers begin: what the delay line's process carries without being late."""
_MOST_BYTES: Final = 40_000_000
"""Bytes of one condition, which set its number of transfers: at least 1, at most `--samples`."""


def measure_condition(line: Line, nbytes: int, count: int, control: str, seed: int) -> dict[str, object]:
    """Return the seconds of `count` transfers on new connections, and of a second one on each."""
    random, spread = Random(seed), 2 * count * nbytes * _MACHINE_SECONDS_PER_BYTE
    transfers = [Transfer([nbytes, nbytes], start=random.uniform(0, spread)) for _ in range(count)]
    measure(line, transfers, seed=seed, most_seconds=spread + 120, congestion_control=control)
    return {
        "rtt_ms": line.rtt_ms,
        "bandwidth_mbit": line.bandwidth_mbit,
        "loss": line.loss,
        "bytes": nbytes,
        "queue_bytes": line.queue_bytes,
        "cold_s": [round(each.seconds[0], 6) for each in transfers if each.seconds],
        "warm_s": [round(each.seconds[1], 6) for each in transfers if len(each.seconds) > 1],
    }


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--congestion-control", default="bbr")
    parser.add_argument("--rtt-ms", type=float, nargs="+", default=[10, 50, 150])
    parser.add_argument("--bandwidth-mbit", type=float, nargs="+", default=[10, 50, 100])
    parser.add_argument("--loss", type=float, nargs="+", default=[0, 0.001, 0.01, 0.03])
    parser.add_argument("--bytes", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--samples", type=int, default=24, help="most connections of a condition; 3 without loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, appended")
    arguments = parser.parse_args()
    if reason := missing_permission():
        print(f"skipped: {reason}")
        return
    grid = itertools.product(arguments.bytes, arguments.loss, arguments.rtt_ms, arguments.bandwidth_mbit)
    with arguments.out.open("a", encoding="utf-8") as out:
        for seed, (nbytes, loss, rtt, rate) in enumerate(grid, arguments.seed):
            queue = plain_profile(rtt, rate).up.queue_bytes
            count = max(1, min(arguments.samples if loss else 3, _MOST_BYTES // (2 * nbytes)))
            began = time.monotonic()
            line = Line(rtt, rate, queue, loss, shared=False)
            row = measure_condition(line, nbytes, count, arguments.congestion_control, seed)
            print(json.dumps(row), file=out, flush=True)
            print(f"{rtt} ms, {rate} Mbit/s, {loss:.1%}, {nbytes} B: {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
