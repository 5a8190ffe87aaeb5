"""Optimizers of the nodes' local steps, with real gradients in virtual time.

Four nodes behind good links train some rounds without adaptation. A row has a setting and a seed: the loss on held-out
data after a quarter and half of the rounds, and the best loss and metric. A setting is an optimizer and its learning
rate, as in `muon:0.01`, and `:kept` if its state is kept between rounds.

With `--times`, a row has a task and an optimizer: the CPU time of a step of 64 samples on one core, and its ratio to
that of SGD; least of five work units.
"""

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
import torch

from hypergpu.common.config.loading import parse
from hypergpu.common.local_optimizer import LocalOptimizer
from hypergpu.node.cgroup import usable_cpus
from hypergpu.node.optimizers import LocalTraining
from hypergpu.node.trainer import Trainer
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario
from hypergpu.tasks import load_task

STEPS, UNITS, BATCH = 10, 5, 64
SETTINGS = "sgd:0.1,adamw:0.001,adamw:0.003,adamw:0.01,muon:0.003,muon:0.01,muon:0.03"


class Case(NamedTuple):
    """One run."""

    task: str
    setting: str
    seed: int
    rounds: int
    local_steps: int
    recipe: str | None


class Found(NamedTuple):
    """Results on held-out data."""

    loss_of_quarter: float
    loss_of_half: float
    best_loss: float
    best_metric: float


def training_of(case: Case) -> dict[str, Any]:
    """Return the settings of the training."""
    name, rate, *state = case.setting.split(":")
    chosen = {"local_optimizer": name, "learning_rate": float(rate), "local_state": state[0] if state else "reset"}
    return {"local_steps": case.local_steps, **({"recipe": case.recipe} if case.recipe else {}), **chosen}


def run(case: Case) -> Found:
    """Return what a run reached."""
    tree = {
        "name": "local-optimizers",
        "task": case.task,
        "rounds": case.rounds,
        "policy": "none",
        "seed": case.seed,
        "nodes": [{"id": "node", "count": 4, "gpu": "T4", "profile": "good"}],
        "config": {"training": training_of(case)},
    }
    outcome = simulate(parse(Scenario, tree, where=case.setting))
    losses = [loss for _, loss in outcome.losses]
    assert outcome.best_metric is not None, "these tasks have a metric"
    return Found(losses[len(losses) // 4], losses[len(losses) // 2], min(losses), outcome.best_metric)


def step_seconds(task_name: str, optimizer: str) -> float:
    """Return the CPU time of a local step."""
    torch.set_num_threads(1)
    trainer = Trainer(load_task(task_name), 0)
    local = LocalTraining(LocalOptimizer(optimizer, 0.0001))
    samples = trainer.samples(np.arange(BATCH))
    seconds = []
    for _ in range(UNITS):
        began = time.thread_time()
        trainer.work(trainer.model.flat(), lambda _: samples, local_steps=STEPS, local=local)
        seconds.append((time.thread_time() - began) / STEPS)
    return min(seconds)


def show_times(tasks: Sequence[str]) -> None:
    """Print the times of steps, one after the other: runs side by side would disturb each other."""
    print(f"{'task':<10} {'optimizer':<10} {'ms':>7} {'ratio':>6}")
    for task in tasks:
        found = {name: step_seconds(task, name) for name in ("sgd", "adamw", "muon")}
        for name, seconds in found.items():
            print(f"{task:<10} {name:<10} {1000 * seconds:>7.2f} {seconds / found['sgd']:>6.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="digits,mnist5k", metavar="A,B,…")
    parser.add_argument("--settings", default=SETTINGS, metavar="NAME:RATE,…")
    parser.add_argument("--recipe", metavar="NAME", help="recipe that the settings change")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds per setting")
    parser.add_argument("--rounds", type=int, default=8, metavar="N")
    parser.add_argument("--local-steps", type=int, default=10, metavar="N")
    parser.add_argument("--times", action="store_true", help="measure the time of a step instead")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    if options.times:
        show_times(options.tasks.split(","))
        return
    chosen = product(options.tasks.split(","), options.settings.split(","), range(options.seeds))
    cases = [Case(*each, options.rounds, options.local_steps, options.recipe) for each in chosen]
    with ProcessPoolExecutor(usable_cpus(), mp_context=get_context("spawn")) as pool:
        found = dict(zip(cases, pool.map(run, cases), strict=True))
    if options.json:
        print(json.dumps([case._asdict() | each._asdict() for case, each in found.items()], indent=2))
        return
    print(f"{'task':<10} {'setting':<18} {'seed':>4} {'quarter':>8} {'half':>8} {'best loss':>9} {'best metric':>11}")
    for case, each in found.items():
        losses = f"{each.loss_of_quarter:>8.4f} {each.loss_of_half:>8.4f} {each.best_loss:>9.4f}"
        print(f"{case.task:<10} {case.setting:<18} {case.seed:>4} {losses} {each.best_metric:>11.4f}")


if __name__ == "__main__":
    main()
