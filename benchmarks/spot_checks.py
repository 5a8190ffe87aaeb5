"""Spot checks under real gradients in virtual time: how soon a cheater is named, and whether anybody else is.

    python benchmarks/spot_checks.py caught --runs 300
    python benchmarks/spot_checks.py honest --seeds 20
    python benchmarks/spot_checks.py rounding

`caught` has eight nodes, one of them lazy: it computes a quarter of each batch, and claims all of it. Only spot checks
can name it. A run ends with the round in which it is named, or after 100 rounds. `honest` has honest nodes alone, in
several ways of training. `rounding` trains the same order on one thread and on several, and prints the distances.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from hypergpu.common.config.loading import parse
from hypergpu.common.local_optimizer import PLAIN, LocalOptimizer
from hypergpu.node.cgroup import usable_cpus
from hypergpu.node.optimizers import KeptState
from hypergpu.node.trainer import Trainer
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario
from hypergpu.tasks import load_task

SHARE: Final = 0.05
WAYS: Final[dict[str, dict[str, Any]]] = {
    "one local step": {"training": {"local_steps": 1}},
    "8 local steps": {},
    "8 steps of AdamW": {"training": {"local_optimizer": "adamw", "learning_rate": 0.003}},
    "skewed data": {"training": {"partition": "dirichlet", "dirichlet_alpha": 0.1}},
    "int8 both ways": {"compression": {"strategy": "fixed", "update_codec": "int8", "parameters_codec": "int8"}},
    "late rounds": {"training": {"mode": "late"}},
}
STEPS: Final = (1, 10, 100)


class _Named(Exception):
    """The cheater was named: the rest of the run says nothing more."""


def scenario(seed: int, *, rounds: int, lazy: int, share: float, config: dict[str, Any]) -> Scenario:
    """Return a run of eight nodes."""
    node = {"gpu": "T4", "profile": "good"}
    nodes: list[dict[str, Any]] = [{"id": "honest", "count": 8 - lazy, **node}]
    nodes += [{"id": "lazy", "count": lazy, "byzantine": "lazy", **node}] if lazy else []
    training = {"local_steps": 8, "batch_size": 16, "evaluate_every": 10} | config.get("training", {})
    contribution = {"spot_check_share": share, "measured_share": 0}
    whole = config | {"training": training, "contribution": contribution}
    tree = {"name": "spot_checks", "task": "digits", "rounds": rounds, "seed": seed, "policy": "none"}
    return parse(Scenario, tree | {"nodes": nodes, "config": whole}, where="spot_checks")


def events_of(folder: Path) -> list[dict[str, Any]]:
    """Return the events of a run so far."""
    return [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def caught(seed: int, *, rounds: int, share: float) -> tuple[int, Sequence[str]]:
    """Return the round in which the lazy node was named, 0 if it was not, and who else was."""
    with TemporaryDirectory() as name:
        folder = Path(name)

        def look(_: int) -> None:
            if any(each["kind"] == "node_suspected" and each["node"] == "lazy_0" for each in events_of(folder)):
                raise _Named

        config = {"training": {"local_steps": 1, "evaluate_every": 100}}
        with contextlib.suppress(_Named):
            simulate(scenario(seed, rounds=rounds, lazy=1, share=share, config=config), folder, progress=look)
        named = [(each["node"], each["round"]) for each in events_of(folder) if each["kind"] == "node_suspected"]
    when = next((number for node, number in named if node == "lazy_0"), 0)
    return when, [node for node, _ in named if node != "lazy_0"]


def honest(case: tuple[str, int], *, rounds: int, share: float) -> tuple[Counter[str], float, int]:
    """Return the results of the checks of honest nodes, the largest distance, and how many were suspected."""
    way, seed = case
    with TemporaryDirectory() as folder:
        simulate(scenario(seed, rounds=rounds, lazy=0, share=share, config=WAYS[way]), Path(folder))
        events = events_of(Path(folder))
    checks = [each for each in events if each["kind"] == "decision" and each["text"].startswith("spot_check")]
    farthest = max((each["figures"].get("distance", 0.0) for each in checks), default=0.0)
    return Counter(each["reason"] for each in checks), farthest, sum(e["kind"] == "node_suspected" for e in events)


def main_caught(runs: int, rounds: int, share: float) -> None:
    with ProcessPoolExecutor(usable_cpus(), mp_context=get_context("spawn")) as pool:
        found = list(pool.map(partial(caught, rounds=rounds, share=share), range(runs)))
    when = sorted(each for each, _ in found if each)
    others = sum(bool(each) for _, each in found)
    print(f"share {share:g}: named in {len(when)} of {runs} runs, within {rounds} rounds")
    print(f"runs that named an honest node: {others}")
    if when:
        nine = when[int(0.9 * (len(when) - 1))]
        print(f"round of the naming: median {median(when):g}, nine of ten {nine}, last {when[-1]}")


def main_honest(seeds: int, rounds: int, share: float) -> None:
    print("way                checks  reproduced  other  farthest  suspected")
    with ProcessPoolExecutor(usable_cpus(), mp_context=get_context("spawn")) as pool:
        cases = [(way, seed) for way in WAYS for seed in range(seeds)]
        results = dict(zip(cases, pool.map(partial(honest, rounds=rounds, share=share), cases), strict=True))
    for way in WAYS:
        found = [each for case, each in results.items() if case[0] == way]
        reasons = sum((each[0] for each in found), Counter[str]())
        same, whole = reasons["reproduced"], reasons.total()
        farthest, suspected = max(each[1] for each in found), sum(each[2] for each in found)
        print(f"{way:<18} {whole:>6} {same:>11} {whole - same:>6} {farthest:9.2g} {suspected:>10}")


def train(task: str, steps: int) -> None:
    """Write the update of an order to the output, computed with as many threads as the environment says."""
    trainer = Trainer(load_task(task, 0), 0)
    local = KeptState().local_training(LocalOptimizer("sgd", 0.1), PLAIN, 0)
    batch = lambda step: trainer.samples(range(64 * step % 1024, 64 * step % 1024 + 64))  # noqa: E731
    update = trainer.work(trainer.model.flat(), batch, local_steps=steps, local=local, key=(1, 0))
    sys.stdout.buffer.write(update.flat.tobytes())


def main_rounding(tasks: Sequence[str]) -> None:
    print("task        steps  threads  distance to one thread")
    for task in tasks:
        for steps in STEPS:
            one, *others = (_trained(task, steps, threads) for threads in (1, 2, 4))
            for threads, other in zip((2, 4), others, strict=True):
                away = float(np.linalg.norm(other - one) / np.linalg.norm(one))
                print(f"{task:<11} {steps:>5} {threads:>8}  {away:.2g}")


def _trained(task: str, steps: int, threads: int) -> np.ndarray[Any, Any]:
    command = [sys.executable, __file__, "train", "--task", task, "--steps", str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["caught", "honest", "rounding", "train"])
    parser.add_argument("--runs", type=int, default=300, metavar="N")
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="runs for each way of training")
    parser.add_argument("--rounds", type=int, default=100, metavar="N")
    parser.add_argument("--share", type=float, default=SHARE, metavar="P")
    parser.add_argument("--task", default="digits,mnist5k", metavar="A,B,…")
    parser.add_argument("--steps", type=int, default=1, metavar="N", help="of `train`, which `rounding` runs")
    options = parser.parse_args()
    if options.what == "caught":
        main_caught(options.runs, options.rounds, options.share)
    elif options.what == "honest":
        main_honest(options.seeds, options.rounds, options.share)
    elif options.what == "rounding":
        main_rounding(options.task.split(","))
    else:
        train(options.task, options.steps)


if __name__ == "__main__":
    main()
