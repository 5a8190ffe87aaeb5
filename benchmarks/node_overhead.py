"""The share of a node's work that is neither forward nor backward: loading, local SGD, checks, update, chunks.

One node, a transformer of four million parameters on Shakespeare's characters, ten local steps per round: the
parameters are received from chunks into the buffer, trained, and the update is cut into checksummed chunks again. The
network itself is not in it. Goal: at most 5 % of the round.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch

from hypergpu.common.config import SystemConfig
from hypergpu.common.local_optimizer import LocalOptimizer
from hypergpu.common.tensors import Assembler, chunks
from hypergpu.node.optimizers import LocalTraining
from hypergpu.node.worker import Worker
from hypergpu.tasks import Task, load_task
from hypergpu.tasks.chars import CharTransformer


def measure(rounds: int, steps: int, batch_size: int) -> dict[str, float]:
    chars = load_task("chars")
    task = Task(
        model=lambda: CharTransformer(width=256, layers=5, heads=4), train=chars.train, test=chars.test, name="chars-4m"
    )
    node = Worker("bench", "auto", SystemConfig(), task=task)
    node.prepare("chars", 0)
    manifest = node.trainer.model.manifest
    source, received = node.trainer.model.flat(), np.empty(manifest.size, np.float32)
    order = node.shard("iid", 0, 5, 0, 0.5)
    shares, wall = [], []
    for number in range(rounds + 1):
        incoming = list(chunks(source))  # the sender's part
        began = time.perf_counter()
        assembler = Assembler(received.view(np.uint8))
        for chunk in incoming:
            assembler.add(chunk)
        update = node.work(
            received,
            order,
            number * steps * batch_size,
            batch_size=batch_size,
            local_steps=steps,
            local=LocalTraining(LocalOptimizer("sgd", 0.1)),
            key=(number,),
        )
        for chunk in chunks(update.flat):
            assert chunk.crc32c >= 0
        seconds = time.perf_counter() - began
        inside = sum(step.forward_time + step.backward_time for step in update.steps)
        if number:  # the first round warms up
            shares.append(1 - inside / seconds)
            wall.append(seconds)
    return {
        "parameters": float(manifest.size),
        "rounds": float(rounds),
        "local_steps": float(steps),
        "batch_size": float(batch_size),
        "round_seconds": statistics.median(wall),
        "overhead_share": statistics.median(shares),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="local steps per round")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(arguments.rounds, arguments.steps, arguments.batch_size)
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{result['parameters']:,.0f} parameters, {arguments.steps} steps of {arguments.batch_size} samples")
    print(f"a round takes         {result['round_seconds']:.2f} s")
    print(f"outside forward and backward   {100 * result['overhead_share']:.2f} % (goal: at most 5 %)")


if __name__ == "__main__":
    main()
