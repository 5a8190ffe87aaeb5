"""Goodput while nodes crash and come back, against that of the undisturbed run.

    python benchmarks/churn.py --variants none,first-80,reactive --up 40,120
    python benchmarks/churn.py --up 60 --down 10    # half of the nodes are killed every 30 s, and start again

Eight nodes crash and come back at random times: they stay for `--up` seconds on average, and are gone for `--down`
seconds, by default a quarter of that. The model of how the task `digit_sums` learns is slowed down, so that a run takes
a minute or more. The goodput is the time to the target of the undisturbed run, divided by that of the disturbed one and
by the share of the nodes that are there: 1.0 means that what is left of the nodes works as if nothing happened.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from statistics import fmean
from typing import Any, NamedTuple

from hypergpu.common.config.loading import parse
from hypergpu.node.cgroup import usable_cpus
from hypergpu.simulation.convergence import FITTED
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.variants import baselines_of, variants_of

SLOWER = {"none": 1.0, "first-80": 30.0, "reactive": 1000.0}
"""Factor by which learning is slowed down, by variant."""


class Case(NamedTuple):
    """One pair of runs."""

    variant: str
    up_seconds: float
    down_seconds: float
    seed: int

    @property
    def present(self) -> float:
        """Share of the time that a node is there."""
        return self.up_seconds / (self.up_seconds + self.down_seconds)


def seconds_to_target(case: Case, *, disturbed: bool) -> float | None:
    """Return the time that a run took to its target; None if it did not reach it."""
    fitted, slower = FITTED["digit_sums"], SLOWER.get(case.variant, 1000.0)
    node: dict[str, Any] = {"id": "node", "count": 8, "gpu": "T4", "profile": "good"}
    if disturbed:
        node["churn"] = {"up_seconds": case.up_seconds, "down_seconds": case.down_seconds}
    tree = {
        "task": "digit_sums",
        "learning": "model",
        "rounds": 4000,
        "target_accuracy": 0.9,
        "convergence": {
            "model_bytes": 400_000,
            "loss_scale": slower * fitted.loss_scale,
            "metric_scale": slower * fitted.metric_scale,
        },
        "nodes": [node],
    }
    variant = (baselines_of if case.variant == "none" else variants_of)([case.variant])[0]
    scenario = parse(Scenario, tree, where="churn").until_target()
    return simulate(variant.of(scenario, case.seed)).time_to_target_seconds


def goodput(case: Case) -> float | None:
    """Return the goodput of a pair; None if one of its runs did not reach the target."""
    calm, disturbed = (seconds_to_target(case, disturbed=each) for each in (False, True))
    return None if calm is None or disturbed is None else calm / disturbed / case.present


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default="none,first-80,reactive", metavar="A,B,…")
    parser.add_argument("--up", default="40,120", metavar="SECONDS,…", help="mean times between a node's failures")
    parser.add_argument("--down", type=float, metavar="SECONDS", help="mean time until it is back (default: up ÷ 4)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    options = parser.parse_args()
    rows = list(product(options.variants.split(","), map(float, options.up.split(","))))
    cases = [
        Case(variant, up, up / 4 if options.down is None else options.down, seed)
        for (variant, up), seed in product(rows, range(options.seeds))
    ]
    with ProcessPoolExecutor(usable_cpus(), mp_context=get_context("spawn")) as pool:
        found = dict(zip(cases, pool.map(goodput, cases), strict=True))
    for row in rows:
        values = [value for case, value in found.items() if case[:2] == row]
        known = [value for value in values if value is not None]
        mean = f"{fmean(known):.2f}" if known else "-"
        told = " ".join("-" if value is None else f"{value:.2f}" for value in values)
        print(f"{row[0]:<12} up {row[1]:>4g} s   goodput {mean}   by seed: {told}")


if __name__ == "__main__":
    main()
