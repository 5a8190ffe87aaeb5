"""Hostile nodes, with real gradients in virtual time: what a run reaches under each attack, and who is named.

    python benchmarks/byzantine.py --partitions iid,dirichlet --seeds 1 --rounds 25
    python benchmarks/byzantine.py --settings mean --attacks drift,noise:3 --nodes 4 --hostile 1

Settings: `blind` is the plain mean without suspicion, `mean` the default, and the others are rules that bear the
hostile nodes, with suspicion; `blind-RULE` is one without. An attack may have a strength, and a first round, as in
`sign_flip:10` and `sign_flip:1@11`. A row has, over all seeds, the worst final metric under each attack, and of those
named within ten rounds of the first attack, the precision and recall (n = named, - = nobody). The first column is
without hostile nodes: only the honest ones take part.
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
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario

ATTACKS = "sign_flip,ipm,optimal_ipm,alie,optimal_alie,mimic,inf,gaussian,label_flip"
SETTINGS = "blind,mean,trimmed_mean"
NAMED_WITHIN = 10
"""Rounds after which a suspicion comes too late."""
NONE = "none"


class Case(NamedTuple):
    """One run."""

    setting: str
    partition: str
    attack: str
    seed: int
    nodes: int
    hostile: int
    rounds: int
    policy: str
    task: str


class Found(NamedTuple):
    """Results of one run."""

    final: float
    """Mean of the last three evaluations."""
    named: frozenset[str]
    """Nodes that were suspected in time."""


def attack_of(text: str) -> dict[str, Any]:
    """Return an attack as a scenario has it."""
    text, _, begins = text.partition("@")
    name, _, strength = text.partition(":")
    strong = {"strength": float(strength)} if strength else {}
    return {"attack": name, "from_round": int(begins or 1)} | strong


def scenario_of(case: Case) -> Scenario:
    """Return the scenario of a run."""
    node = {"gpu": "T4", "profile": "good"}
    nodes: list[dict[str, Any]] = [{"id": "honest", "count": case.nodes - case.hostile, **node}]
    if case.attack != NONE:
        nodes.append({"id": "hostile", "count": case.hostile, "byzantine": attack_of(case.attack), **node})
    rule = case.setting.removeprefix("blind").removeprefix("-") or "mean"
    aggregation: dict[str, Any] = {"rule": rule, "suspicion": not case.setting.startswith("blind")}
    if rule != "mean":
        aggregation |= {"byzantine": case.hostile, "buckets": max(case.nodes, 4 * case.hostile + 1)}
    config = {"training": {"batch_size": 32, "partition": case.partition}, "aggregation": aggregation}
    tree = {"name": "byzantine", "task": case.task, "rounds": case.rounds, "seed": case.seed, "policy": case.policy}
    return parse(Scenario, tree | {"nodes": nodes, "config": config}, where="byzantine")


def run(case: Case) -> Found:
    """Return what a run reached."""
    with TemporaryDirectory() as folder:
        outcome = simulate(scenario_of(case), Path(folder))
        events = [json.loads(line) for line in (Path(folder) / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    begins = 1 if case.attack == NONE else attack_of(case.attack)["from_round"]
    named = frozenset(
        event["node"]
        for event in events
        if event["kind"] == "node_suspected" and event["round"] < begins + NAMED_WITHIN
    )
    return Found(fmean([value for _, value in outcome.course][-3:]), named)


def naming(found: list[Found], hostile: int) -> str:
    """Return precision and recall of the suspicions of runs, as text."""
    named = [node for each in found for node in each.named]
    right = sum(node.startswith("hostile") for node in named)
    precision = f"{right / len(named):.2f}" if named else "-"
    return f"{precision}/{right / (hostile * len(found)):.2f}"


def row_of(name: str, found: dict[str, list[Found]], hostile: int) -> str:
    """Return the figures of a setting under each attack."""
    cells = []
    for attack, runs in found.items():
        worst = 100.0 * min(each.final for each in runs)
        wrong = sorted({node for each in runs for node in each.named})
        who = ("!" + ",".join(wrong) if wrong else "") if attack == NONE else naming(runs, hostile)
        cells.append(f"{worst:5.1f} {who:<9}")
    return f"{name:<28}" + " ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default=SETTINGS, metavar="A,B,…")
    parser.add_argument("--attacks", default=ATTACKS, metavar="A,B,…")
    parser.add_argument("--partitions", default="iid,dirichlet", metavar="A,B,…")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds per run")
    parser.add_argument("--rounds", type=int, default=40, metavar="N")
    parser.add_argument("--nodes", type=int, default=20, metavar="N")
    parser.add_argument("--hostile", type=int, default=4, metavar="N")
    parser.add_argument("--policy", default="none")
    parser.add_argument("--task", default="digits")
    options = parser.parse_args()
    attacks = [NONE, *options.attacks.split(",")]
    size = options.nodes, options.hostile, options.rounds, options.policy, options.task
    print(f"{'':<28}" + " ".join(f"{attack:<15}" for attack in attacks))
    with ProcessPoolExecutor(usable_cpus(), mp_context=get_context("spawn")) as pool:
        for partition, setting in product(options.partitions.split(","), options.settings.split(",")):
            cases = [Case(setting, partition, each, seed, *size) for each in attacks for seed in range(options.seeds)]
            results = dict(zip(cases, pool.map(run, cases), strict=True))
            found = {attack: [each for case, each in results.items() if case.attack == attack] for attack in attacks}
            print(row_of(f"{partition} {setting}", found, options.hostile), flush=True)


if __name__ == "__main__":
    main()
