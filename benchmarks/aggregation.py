"""Speed of adding updates to the mean, as ratios to the obvious implementations, measured in one run."""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

from hypergpu.common.malloc import tune_allocator
from hypergpu.common.tensors import Assembler, chunks
from hypergpu.coordinator.core.model.aggregation import StreamingMean, is_finite


def best(run: Callable[[], object], repeats: int) -> float:
    """The shortest of some times in seconds: the one with the least of everything else in it."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=44.0, help="of one update")
    parser.add_argument("--nodes", type=int, default=8, help="updates in a round")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    tune_allocator()
    size = int(arguments.megabytes * 1e6 / 4)
    updates = [np.random.default_rng(n).standard_normal(size).astype(np.float32) for n in range(arguments.nodes)]
    weights = np.arange(1, arguments.nodes + 1, dtype=np.float32)
    mean, buffer, parts = StreamingMean(size), np.empty(size, np.float32), list(chunks(updates[0]))

    def streaming() -> None:
        mean.reset()
        for update, weight in zip(updates, weights.tolist(), strict=True):
            mean.add(update, weight)
        mean.take()

    def receive() -> None:
        assembler = Assembler(buffer.view(np.uint8))
        for part in parts:
            assembler.add(part)

    gigabytes = 4e-9 * size
    rates = {
        "streaming mean": gigabytes * len(updates) / best(streaming, arguments.repeats),
        "stack and average": gigabytes
        * len(updates)
        / best(lambda: np.average(np.stack(updates), axis=0, weights=weights), arguments.repeats),
        "finite by sums": gigabytes / best(lambda: is_finite(updates[0]), arguments.repeats),
        "finite by isfinite().all()": gigabytes / best(lambda: np.isfinite(updates[0]).all(), arguments.repeats),
        "receive chunks, checked": gigabytes / best(receive, arguments.repeats),
        "copy": gigabytes / best(lambda: np.copyto(buffer, updates[0]), arguments.repeats),
    }
    result = {
        "gigabytes_per_second": rates,
        "streaming_over_stacking": rates["streaming mean"] / rates["stack and average"],
        "sums_over_isfinite": rates["finite by sums"] / rates["finite by isfinite().all()"],
        "receiving_over_copying": rates["receive chunks, checked"] / rates["copy"],
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{arguments.nodes} updates of {arguments.megabytes:g} MB")
    for name, rate in rates.items():
        print(f"  {name:28} {rate:7.2f} GB/s")
    for name, value in result.items():
        if isinstance(value, float):
            print(f"  {name.replace('_', ' '):28} {value:7.2f}")


if __name__ == "__main__":
    main()
