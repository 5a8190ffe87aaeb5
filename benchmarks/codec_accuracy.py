"""Final accuracy with compressed transfers, against that of the same run with exact ones.

Four nodes behind good links train a fixed number of rounds with real gradients, without adaptation. The runs of one
seed form a pair: the same data, the same first parameters, the same rounds. A row has the mean difference of the best
metric on held-out data in points, with Student's 95 % interval, and the bytes that nodes sent, as a share.
"""

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from statistics import fmean
from typing import Any, Final, NamedTuple

from hypergpu.common.config.loading import parse
from hypergpu.common.errors import HyperGPUError
from hypergpu.node.cgroup import usable_cpus
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.statistics import mean_of

ROUNDS: Final = {"digits": 30, "mnist5k": 15, "chars": 10}
CODECS: Final = {
    "none": {"strategy": "none"},
    "bf16": {"strategy": "fixed", "update_codec": "bf16", "parameters_codec": "bf16"},
    "int8": {"strategy": "fixed", "update_codec": "int8", "parameters_codec": "int8"},
    "int4": {"strategy": "fixed", "update_codec": "int4", "parameters_codec": "int8"},
    "topk": {"strategy": "fixed", "update_codec": "topk", "parameters_codec": "int8"},
}
PARTITIONS: Final = {"iid": {}, "dirichlet": {"partition": "dirichlet", "dirichlet_alpha": 0.5}}


class Case(NamedTuple):
    """One run."""

    task: str
    partition: str
    codec: str
    seed: int


class Found(NamedTuple):
    """Result of a run."""

    best: float
    bytes_up: int


def run(case: Case) -> Found | None:
    """Return what a run reached; None if the task cannot be dealt that way."""
    tree: dict[str, Any] = {
        "task": case.task,
        "rounds": ROUNDS[case.task],
        "policy": "none",
        "seed": case.seed,
        "nodes": [{"id": "node", "count": 4, "gpu": "T4", "profile": "good"}],
        "config": {"training": PARTITIONS[case.partition], "compression": CODECS[case.codec]},
    }
    try:
        outcome = simulate(parse(Scenario, tree, where="scenario"))
    except HyperGPUError as error:
        print(f"{case.task} {case.partition}: {error}", file=sys.stderr)
        return None
    assert outcome.best_metric is not None, "these tasks have a metric"
    return Found(outcome.best_metric, sum(node.bytes_up for node in outcome.nodes))


def row(found: dict[Case, Found | None], task: str, partition: str, codec: str, seeds: int) -> dict[str, Any] | None:
    """Return the figures of a codec; None if there are none."""
    pairs = [
        (found[Case(task, partition, codec, seed)], found[Case(task, partition, "none", seed)]) for seed in range(seeds)
    ]
    known = [(one, exact) for one, exact in pairs if one is not None and exact is not None]
    if not known:
        return None
    points = [100 * (one.best - exact.best) for one, exact in known]
    estimate = mean_of(points)
    half = None if estimate.ci_high is None or estimate.mean is None else estimate.ci_high - estimate.mean
    share = fmean(one.bytes_up / exact.bytes_up for one, exact in known)
    exact_best = 100 * fmean(exact.best for _, exact in known)
    return {
        "task": task,
        "partition": partition,
        "codec": codec,
        "exact": exact_best,
        "points": fmean(points),
        "interval": half,
        "by_seed": points,
        "bytes_share": share,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(ROUNDS), metavar="A,B,…")
    parser.add_argument("--codecs", default="int8,int4,topk", metavar="A,B,…")
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--jobs", type=int, default=usable_cpus(), metavar="N", help="processes")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    tasks, codecs = options.tasks.split(","), options.codecs.split(",")
    cases = [Case(*each) for each in product(tasks, PARTITIONS, ("none", *codecs), range(options.seeds))]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        found = dict(zip(cases, pool.map(run, cases), strict=True))
    rows = [each for group in product(tasks, PARTITIONS, codecs) if (each := row(found, *group, options.seeds))]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'task':<8} {'partition':<10} {'codec':<6} {'exact %':>8} {'points':>7} {'±':>5} {'bytes':>6}")
    for each in rows:
        half = "" if each["interval"] is None else f"{each['interval']:.2f}"
        figures = f"{each['exact']:>8.2f} {each['points']:>+7.2f} {half:>5} {each['bytes_share']:>6.3f}"
        print(f"{each['task']:<8} {each['partition']:<10} {each['codec']:<6} {figures}")


if __name__ == "__main__":
    main()
