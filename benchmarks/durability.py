"""The share of a round that its durability costs: two real nodes on this machine, models of 400 kB and 44 MB.

    python benchmarks/durability.py

In one run, rounds with the log and without it take turns. `held_ms` is the time for which a round was held back until
it was on the disk, beside its evaluation; `share` is that time over the time from one round to the next, and
`with_over_without` the ratio of rounds with the log (and checkpoints as the default has them) to rounds without it.
Goal: a share of 2 % at most.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hypergpu.common.config import SystemConfig
from hypergpu.coordinator.app import Coordinator, Options
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.durability import Durability
from hypergpu.coordinator.engine import Engine
from hypergpu.tasks import Task, load_task

WIDTHS = {"small": 120, "large": 3_290}
"""Width of the hidden layers, for models of 400 kB and 44 MB."""


def _task(width: int) -> Task:
    inputs = torch.randn(600, 64, generator=torch.Generator().manual_seed(0))
    targets = (inputs[:, 0] > 0).long()
    layers = 6 if width < 1000 else 1
    hidden = [each for _ in range(layers) for each in (nn.Linear(width, width), nn.ReLU())]

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(64, width), nn.ReLU(), *hidden, nn.Linear(width, 2))

    return Task(model=model, train=(inputs[:500], targets[:500]), test=(inputs[500:], targets[500:]))


def small() -> Task:
    """Return a task with a model of 400 kB."""
    return _task(WIDTHS["small"])


def large() -> Task:
    """Return a task with a model of 44 MB."""
    return _task(WIDTHS["large"])


class Timed:
    """Times of rounds, of which every second is not logged."""

    def __init__(self, patch: Callable[[type, str, Any], None]) -> None:
        self.held: list[float] = []
        """Seconds for which each logged round was held back."""
        self.rounds: dict[bool, list[float]] = {True: [], False: []}
        """Seconds from one round to the next, with the log or without it."""
        self._at = 0.0
        commit, begin_step, told = Durability.commit, Durability.begin_step, Durability.told
        timed = self

        def is_logged(number: int) -> bool:
            return number % 2 == 0

        async def begin(self: Durability, number: int) -> None:
            await begin_step(self, number)
            self._writers.round = number if is_logged(number) else 0

        async def committed(
            self: Durability,
            closed: ev.CloseRound,
            state: Mapping[str, Any],
            record: Callable[[bool], Mapping[str, Any]],
        ) -> None:
            if is_logged(closed.round):
                began = time.perf_counter()
                await commit(self, closed, state, record)
                timed.held.append(time.perf_counter() - began)
            now = time.perf_counter()
            if timed._at and closed.round > 3:
                timed.rounds[is_logged(closed.round)].append(now - timed._at)
            timed._at = now

        patch(Durability, "begin_step", begin)
        patch(Durability, "commit", committed)
        patch(Durability, "told", told)


async def measure(size: str, rounds: int, steps: int) -> dict[str, Any]:
    """Train with two nodes; return what the log cost."""
    timed = Timed(setattr)
    task_name = f"durability:{size}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory:
        tree = {
            "training": {"task": task_name, "rounds": rounds, "local_steps": steps, "batch_size": 32, "min_nodes": 2},
            "server": {"listen": "127.0.0.1:0", "http_listen": "127.0.0.1:0", "linger_seconds": 0.0},
            "orchestrator": {"policy": "none"},
        }
        config = SystemConfig.model_validate(tree)
        coordinator = Coordinator(config, load_task(task_name, 0), Options(Path(directory) / "run"))
        nodes: list[subprocess.Popen[bytes]] = []

        def announce(address: str, _: str) -> None:
            for name in ("a", "b"):
                command = [sys.executable, "-m", "hypergpu", "node", f"--coordinator={address}", f"--node-id={name}"]
                command += [f"--task={task_name}", "--insecure", "--log-level=error"]
                nodes.append(subprocess.Popen(command, env=environment))

        await coordinator.run(announce, asyncio.Event())
        for node in nodes:
            node.wait(60)
        engine: Engine = coordinator.engine
        model_bytes = engine.model.manifest.total_bytes
    return {
        "model_bytes": model_bytes,
        "rounds": rounds,
        "round_ms": round(1e3 * statistics.median(timed.rounds[False]), 1),
        "held_ms": round(1e3 * statistics.median(timed.held), 2),
        "held_ms_most": round(1e3 * max(timed.held), 2),
        "share": round(sum(timed.held[2:]) / sum(timed.rounds[True]), 4),
        "with_over_without": round(statistics.median(timed.rounds[True]) / statistics.median(timed.rounds[False]), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=WIDTHS, default=None)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--steps", type=int, default=10, help="local steps of a node per round")
    options = parser.parse_args()
    for size in (options.size,) if options.size else WIDTHS:
        print(json.dumps({"model": size, **asyncio.run(measure(size, options.rounds, options.steps))}))


if __name__ == "__main__":
    main()
