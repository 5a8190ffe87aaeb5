"""Speed of adding updates to the mean, as ratios to the obvious implementations, measured in one run."""

import argparse
import json
from functools import partial
from timeit import repeat

import numpy as np

from hypergpu.common.malloc import tune_allocator
from hypergpu.common.tensors import Assembler, chunks
from hypergpu.coordinator.core.model.aggregation import StreamingMean, is_finite


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=44.0, help="of one update")
    parser.add_argument("--nodes", type=int, default=8, help="updates in a round")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    tune_allocator()
    size, times = int(arguments.megabytes * 1e6 / 4), partial(repeat, number=1, repeat=arguments.repeats)
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
        "streaming mean": gigabytes * len(updates) / min(times(streaming)),
        "stack and average": gigabytes
        * len(updates)
        / min(times(lambda: np.average(np.stack(updates), axis=0, weights=weights))),
        "finite by sums": gigabytes / min(times(lambda: is_finite(updates[0]))),
        "finite by isfinite().all()": gigabytes / min(times(lambda: np.isfinite(updates[0]).all())),
        "receive chunks, checked": gigabytes / min(times(receive)),
        "copy": gigabytes / min(times(lambda: np.copyto(buffer, updates[0]))),
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
