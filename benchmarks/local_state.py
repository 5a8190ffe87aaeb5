"""State of the nodes' optimizers between rounds: reset against kept, with real gradients in virtual time.

Four nodes behind good links follow the recipe `diloco` with 50 local steps. A row has the best held-out loss and metric
of each way, and the difference of the metrics.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from typing import NamedTuple

from hypergpu.common.config.loading import parse
from hypergpu.node.cgroup import usable_cpus
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario

STATES = ("reset", "kept")


class Case(NamedTuple):
    """One run."""

    task: str
    seed: int
    state: str
    rounds: int
    local_steps: int


class Found(NamedTuple):
    """Best loss and metric on held-out data."""

    loss: float
    metric: float


def run(case: Case) -> Found:
    """Return what a run reached."""
    training = {"recipe": "diloco", "local_steps": case.local_steps, "local_state": case.state}
    tree = {
        "name": "local-state",
        "task": case.task,
        "rounds": case.rounds,
        "policy": "none",
        "seed": case.seed,
        "nodes": [{"id": "node", "count": 4, "gpu": "T4", "profile": "good"}],
        "config": {"training": training},
    }
    outcome = simulate(parse(Scenario, tree, where="local_state.py"))
    assert outcome.best_metric is not None, "these tasks have a metric"
    return Found(min(loss for _, loss in outcome.losses), outcome.best_metric)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="digits,mnist5k", metavar="A,B,…")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds per task")
    parser.add_argument("--rounds", type=int, default=12, metavar="N")
    parser.add_argument("--local-steps", type=int, default=50, metavar="N")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    pairs = list(product(options.tasks.split(","), range(options.seeds)))
    cases = [Case(task, seed, state, options.rounds, options.local_steps) for task, seed in pairs for state in STATES]
    with ProcessPoolExecutor(usable_cpus(), mp_context=get_context("spawn")) as pool:
        found = dict(zip(cases, pool.map(run, cases), strict=True))
    if options.json:
        print(json.dumps([case._asdict() | each._asdict() for case, each in found.items()], indent=2))
        return
    print(f"{'task':<10} {'seed':>4} {'loss, reset':>12} {'kept':>8} {'metric, reset':>14} {'kept':>8} {'points':>7}")
    for task, seed in pairs:
        reset, kept = (found[Case(task, seed, state, options.rounds, options.local_steps)] for state in STATES)
        points = 100 * (kept.metric - reset.metric)
        losses = f"{reset.loss:>12.4f} {kept.loss:>8.4f}"
        print(f"{task:<10} {seed:>4} {losses} {reset.metric:>14.4f} {kept.metric:>8.4f} {points:>+7.2f}")


if __name__ == "__main__":
    main()
