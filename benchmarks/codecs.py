"""Speed of the codecs on one core, in gigabytes of float32 per second, with their size and their noise."""

import argparse
import json
from functools import partial
from timeit import repeat

import numpy as np

from hypergpu.common.codecs import CODECS, Codec, PayloadFormat, PayloadReader
from hypergpu.common.malloc import tune_allocator
from hypergpu.common.tensors import Flat

SPREAD = 1.0
"""Standard deviation of the logarithm of the values' scales: updates have heavier tails than a normal distribution."""


def measured(codec: Codec, values: Flat, repeats: int) -> dict[str, float]:
    """Return the figures of one codec: encoding with the noise, decoding alone, and decoding into a sum."""
    form, gigabytes = PayloadFormat(codec, len(values)), 1e-9 * values.nbytes
    buffer = np.zeros(form.payload_bytes, np.uint8)
    payload, noise = form.encode(values, buffer)
    times = partial(repeat, number=1, repeat=repeats)
    total, weight, scratch = np.zeros_like(values), np.float32(64.0), np.empty(1 << 16, np.float32)

    def decode() -> None:
        for _ in PayloadReader(form, payload).read():
            pass

    def add() -> None:
        for start, part in PayloadReader(form, payload).read():
            total[start : start + len(part)] += np.multiply(part, weight, out=scratch[: len(part)])

    return {
        "ratio": values.nbytes / form.payload_bytes,
        "noise": noise,
        "encode": gigabytes / min(times(lambda: form.encode(values, buffer))),
        "decode": gigabytes / min(times(decode)),
        "decode and add": gigabytes / min(times(add)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=44.0, help="of the model as float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    tune_allocator()
    rng = np.random.default_rng(0)
    size = int(arguments.megabytes * 1e6 / 4)
    values = (rng.standard_normal(size) * np.exp(SPREAD * rng.standard_normal(size))).astype(np.float32)
    figures = {name: measured(codec, values, arguments.repeats) for name, codec in CODECS.items()}
    if arguments.json:
        print(json.dumps({"bytes": values.nbytes, "gigabytes_per_second": figures}, indent=2))
        return
    print(f"{'codec':6} {'bytes':>8} {'noise':>8} {'encode':>8} {'decode':>8} {'decode+add':>10}  GB/s of float32")
    for name, row in figures.items():
        speeds = f"{row['encode']:8.2f} {row['decode']:8.2f} {row['decode and add']:10.2f}"
        print(f"{name:6} 1/{row['ratio']:<6.1f} {row['noise']:8.2g} {speeds}")


if __name__ == "__main__":
    main()
