"""Seconds to send 44 MB over lossy links on one connection and on several, by the link model.

python benchmarks/transfers.py [--samples N]
"""

import argparse

from hypergpu.netsim_proxy.link.outcomes import Direction
from hypergpu.netsim_proxy.link.profiles import find_profile
from hypergpu.netsim_proxy.link.tcp import PACKET_BYTES, SEGMENT_BYTES
from hypergpu.netsim_proxy.link.transfer import transfer_times

NBYTES = 44_000_000
PROFILES = ("good", "average", "poor", "unstable", "fibre", "cable", "dsl", "4g")
CONNECTIONS = (1, 2, 4, 8, 16)


def main() -> None:
    """Print a row for each profile: seconds at the line's rate, and by number of connections."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=3, help="transfers of each kind")
    samples: int = parser.parse_args().samples
    print(f"{'profile':<10}{'line':>8}" + "".join(f"{count:>8}" for count in CONNECTIONS))
    for name in PROFILES:
        profile = find_profile(name)
        line = NBYTES / SEGMENT_BYTES * PACKET_BYTES / profile.up.bytes_per_second
        row = [f"{name:<10}{line:>8.1f}"]
        for count in CONNECTIONS:
            times = transfer_times(profile, NBYTES, samples=samples, direction=Direction.UP, connections=count)
            row.append(f"{times['warm'].p50_seconds:>8.1f}")
        print("".join(row), flush=True)


if __name__ == "__main__":
    main()
