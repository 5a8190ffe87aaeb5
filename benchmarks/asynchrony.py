"""Modes of rounds, with real gradients in virtual time: what an update that arrives after its round is worth.

    python benchmarks/asynchrony.py --cases speeds,skewed --rounds 60
    python benchmarks/asynchrony.py --cases calm --rounds 40 --variants "reactive/sync reactive/late reactive/buffered"

Cases: `speeds` has eight nodes whose speeds are 1 to 8, two of them behind unstable links; `skewed` is the same with a
Dirichlet partition (α = 0.3); `calm` has eight equal nodes behind good links. A row has a variant (a policy or a fixed
setting of `hypergpu compare`, and a mode), over all seeds: the geometric mean of the seconds to the target, the mean of
the final metric, the share of the updates that arrived and counted, and the mean and largest staleness.
"""

import argparse
import json
import math
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, geometric_mean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from hypergpu.common.config.loading import parse
from hypergpu.node.cgroup import usable_cpus
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.variants import baselines_of, variants_of

SPEEDS = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.125)
VARIANTS = (
    "none/sync drop-slowest/sync first-80/sync static:H=40,rate=2,close=80/sync diloco:H=100/sync reactive/sync "
    "none/buffered reactive/late reactive/buffered"
)


class Case(NamedTuple):
    """One run."""

    name: str
    variant: str
    mode: str
    seed: int
    rounds: int
    options: str


class Found(NamedTuple):
    """Results of one run."""

    seconds: float | None
    """Until the target was reached."""
    final: float
    """Metric at the end, the mean of the last five evaluations."""
    used: int
    """Updates that counted."""
    refused: int
    """Updates that arrived, and were too late to count."""
    staleness: list[int]
    rounds: int
    trained_seconds: float


def scenario_of(case: Case) -> Scenario:
    """Return the scenario of a run."""
    training: dict[str, Any] = {"learning_rate": 0.05, "batch_size": 32, "mode": case.mode}
    training |= {"partition": "dirichlet", "dirichlet_alpha": 0.3} if case.name == "skewed" else {}
    for option in filter(None, case.options.split(",")):
        name, value = option.split("=")
        training[name] = value
    node: dict[str, Any] = {"gpu": "T4", "profile": "good"}
    nodes = [
        {"id": f"node_{index}", **node}
        | ({} if case.name == "calm" else {"speed": speed} | ({"profile": "unstable"} if index in (2, 5) else {}))
        for index, speed in enumerate(SPEEDS)
    ]
    tree = {
        "name": case.name,
        "task": "digits",
        "rounds": case.rounds,
        "target_accuracy": 0.95,
        "seed": case.seed,
        "nodes": nodes,
        "compute": {"seconds_per_step": 0.005, "seconds_per_sample": 0.0005},
        "config": {"training": training},
    }
    return parse(Scenario, tree, where=case.name)


def run(case: Case) -> Found:
    """Return what a run reached."""
    variant = (baselines_of if case.variant == "none" else variants_of)([case.variant])[0]
    with TemporaryDirectory() as folder:
        outcome = simulate(variant.of(scenario_of(case), case.seed), Path(folder))
        rounds = (Path(folder) / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    staleness = [each["staleness"] for line in rounds for each in json.loads(line).get("late", ())]
    last = [value for _, value in outcome.course][-5:]
    used = sum(node.rounds_contributed for node in outcome.nodes)
    refused = sum(node.late for node in outcome.nodes)
    seconds = outcome.time_to_target_seconds
    return Found(seconds, fmean(last), used, refused, staleness, outcome.rounds, outcome.trained_seconds)


def row_of(runs: list[Found]) -> str:
    """Return the figures of the runs of a variant."""
    times = [each.seconds for each in runs if each.seconds is not None]
    seconds = geometric_mean(times) if times else math.nan
    used, refused = sum(each.used for each in runs), sum(each.refused for each in runs)
    staleness = [late for each in runs for late in each.staleness]
    figures = f"{seconds:>9.1f} {len(runs) - len(times):>6} {fmean(each.final for each in runs):>7.4f}"
    figures += f" {100.0 * used / max(1, used + refused):>6.1f} {len(staleness) / max(1, used):>7.1%}"
    return figures + f" {fmean(staleness or [0]):>6.2f} {max(staleness, default=0):>4}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="speeds,skewed,calm", metavar="A,B,…")
    parser.add_argument("--variants", default=VARIANTS, metavar="VARIANT/MODE …")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds per variant")
    parser.add_argument("--rounds", type=int, default=150, metavar="N")
    parser.add_argument("--set", default="", metavar="NAME=VALUE,…", help="further settings of `training`")
    options = parser.parse_args()
    pairs = [each.rsplit("/", 1) for each in options.variants.split()]
    cases = [
        Case(name, variant, mode, seed, options.rounds, options.set)
        for name, (variant, mode), seed in product(options.cases.split(","), pairs, range(options.seeds))
    ]
    with ProcessPoolExecutor(usable_cpus(), mp_context=get_context("spawn")) as pool:
        found = dict(zip(cases, pool.map(run, cases), strict=True))
    print(f"{'case':<8} {'variant':<32} {'seconds':>9} {'missed':>6} {'final':>7}", end=" ")
    print(f"{'used %':>6} {'late':>7} {'mean τ':>6} max τ")
    for name, (variant, mode) in product(options.cases.split(","), pairs):
        runs = [each for case, each in found.items() if case[:3] == (name, variant, mode)]
        print(f"{name:<8} {variant + '/' + mode:<32} {row_of(runs)}")


if __name__ == "__main__":
    main()
