"""Earnings by usefulness under attack, with real gradients in virtual time.

    python benchmarks/usefulness.py --seeds 3
    python benchmarks/usefulness.py --attacks noise --nodes 20 --hostile 4 --suspicion

A line has, for a way of training and over all seeds: the least and the largest points of an honest node, of the mean of
the honest nodes; the most that a hostile node earns, of the same; and how many updates were known again. Suspicion is
off unless asked for, so that the score is tested and not the quarantine. `none` has honest nodes alone.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from hypergpu.common.config.loading import parse
from hypergpu.node.cgroup import usable_cpus
from hypergpu.rewards.scores import Basis, read_epoch
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario

ATTACKS = "none,noise,gaussian,replay,echo,sign_flip,mimic,label_flip"
NONE = "none"


class Case(NamedTuple):
    """One run."""

    attack: str
    partition: str
    local_steps: int
    seed: int
    nodes: int
    hostile: int
    rounds: int
    suspicion: bool


class Found(NamedTuple):
    """Scores of one run, of the mean of its honest nodes."""

    least: float
    largest: float
    hostile: float
    repeated_honest: int
    repeated_hostile: int


def scenario_of(case: Case) -> Scenario:
    """Return the scenario of a run."""
    node = {"gpu": "T4", "profile": "good"}
    nodes: list[dict[str, Any]] = [{"id": "honest", "count": case.nodes - case.hostile, **node}]
    name, _, strength = case.attack.partition(":")
    if name != NONE:
        attack = {"attack": name} | ({"strength": float(strength)} if strength else {})
        nodes.append({"id": "hostile", "count": case.hostile, "byzantine": attack, **node})
    training = {"batch_size": 32, "partition": case.partition, "local_steps": case.local_steps}
    config = {"training": training, "aggregation": {"suspicion": case.suspicion}}
    tree = {"name": "usefulness", "task": "digits", "rounds": case.rounds, "seed": case.seed, "policy": "none"}
    return parse(Scenario, tree | {"nodes": nodes, "config": config}, where="usefulness")


def run(case: Case) -> Found:
    """Return what the nodes of a run earned."""
    with TemporaryDirectory() as folder:
        simulate(scenario_of(case), Path(folder))
        scores = read_epoch(Path(folder), Basis.USEFULNESS).scores
        rows = [json.loads(line) for line in (Path(folder) / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    repeated = [node for row in rows for node in row.get("repeated", ())]
    honest = [score for node, score in scores.items() if node.startswith("honest")]
    hostile = [score for node, score in scores.items() if node.startswith("hostile")]
    usual, known = fmean(honest), sum(node.startswith("honest") for node in repeated)
    most = max(hostile, default=0.0) / usual
    return Found(min(honest) / usual, max(honest) / usual, most, known, len(repeated) - known)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attacks", default=ATTACKS, metavar="A,B,…")
    parser.add_argument("--partitions", default="iid,dirichlet", metavar="A,B,…")
    parser.add_argument("--local-steps", default="1,8", metavar="N,M,…")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds per run")
    parser.add_argument("--rounds", type=int, default=30, metavar="N")
    parser.add_argument("--nodes", type=int, default=8, metavar="N")
    parser.add_argument("--hostile", type=int, default=1, metavar="N")
    parser.add_argument("--suspicion", action="store_true")
    options = parser.parse_args()
    steps = [int(each) for each in options.local_steps.split(",")]
    size = options.nodes, options.hostile, options.rounds, options.suspicion
    ways = list(product(options.attacks.split(","), options.partitions.split(","), steps))
    print("attack        data       steps  honest least-largest  hostile  repeated: honest hostile")
    with ProcessPoolExecutor(usable_cpus(), mp_context=get_context("spawn")) as pool:
        cases = [Case(*way, seed, *size) for way in ways for seed in range(options.seeds)]
        results = dict(zip(cases, pool.map(run, cases), strict=True))
        for way in ways:
            found = [each for case, each in results.items() if case[:3] == way]
            least, largest = min(each.least for each in found), max(each.largest for each in found)
            known = sum(each.repeated_honest for each in found), sum(each.repeated_hostile for each in found)
            print(
                f"{way[0]:<13} {way[1]:<10} {way[2]:>5}  {least:13.2f}-{largest:.2f}  "
                f"{100 * max(each.hostile for each in found):6.1f} %  {known[0]:>16} {known[1]:>7}"
            )


if __name__ == "__main__":
    main()
