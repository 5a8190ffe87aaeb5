"""Default policy against `none`, on scenarios that are drawn at random.

A scenario has a model of 0.1 to 500 MB that learns like `digits`, 3 to 50 nodes with cards and links of several kinds,
packet loss that delays or that lets calls fail, and a rate, a batch and local steps that are poor or as good as can be.
A ratio is the time of the policy to the target over that of
`none`: above 1, the policy lost. `none` is cut off at four times the time of the policy, and then counts as that: the
ratio is at most 0.25. A pair in which both missed the target has none; a run that alone missed it counts as twice its
length.

Each pair is kept in a file as soon as it is done, and not run again by the next call: delete the file after a change of
the code. The exit code is 1 if a ratio exceeds 1.03, or if their geometric mean exceeds 0.5.
"""

import argparse
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Final

from hypergpu.common import strict_json
from hypergpu.common.config.loading import parse
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.node.cgroup import usable_cpus
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.statistics import geometric_mean_of

PROFILES: Final = ("perfect", "good", "average", "poor", "unstable", "fibre", "cable", "dsl", "4g")
CARDS: Final = ("A100", "RTX-4090", "T4", "laptop-cpu")
MODEL_BYTES: Final = (1e5, 5e8)
NODES: Final = (3, 50)
KINDS: Final = (1, 4)
"""Fewest and most kinds of links in a scenario."""
ROUNDS: Final = 60
TARGET: Final = 0.95
LEARNING_RATES: Final = (0.01, 0.3)
LOCAL_STEPS: Final = (2, 50)
BATCH_SIZES: Final = (16, 256)
CUT_OFF: Final = 4.0
"""Times of the policy after which `none` is cut off: to simulate all of its rounds with a large model takes an hour."""
MISSED: Final = 2.0
"""Lengths of a run without the target that its time counts as."""
WORST_RATIO: Final = 1.03
MEAN_RATIO: Final = 0.5


def draw(seed: int, number: int) -> Scenario:
    """Return a scenario, which is the same on every machine."""
    draws = KeyedRandom(seed, "drawn", number)
    count = round(log_uniform(draws.uniform(0), *NODES))
    kinds = KINDS[0] + int(draws.uniform(1) * (KINDS[1] - KINDS[0] + 1))
    training = {
        "learning_rate": log_uniform(draws.uniform(4), *LEARNING_RATES),
        "local_steps": round(log_uniform(draws.uniform(5), *LOCAL_STEPS)),
        "batch_size": round(log_uniform(draws.uniform(6), *BATCH_SIZES)),
        "target_accuracy": TARGET,
    }
    tree = {
        "loss_model": pick(("transport", "rpc"), draws.uniform(2)),
        "task": "digits",
        "learning": "model",
        "rounds": ROUNDS,
        "target_accuracy": TARGET,
        "convergence": {"model_bytes": round(log_uniform(draws.uniform(3), *MODEL_BYTES))},
        "nodes": [
            {
                "id": "node",
                "count": count,
                "gpu": [pick(CARDS, draws.uniform(10 + kind)) for kind in range(kinds)],
                "profile": [pick(PROFILES, draws.uniform(20 + kind)) for kind in range(kinds)],
            }
        ],
        "seed": seed,
        "config": {"training": training},
    }
    return parse(Scenario, tree, where=f"scenario {number}")


def log_uniform(u: float, low: float, high: float) -> float:
    """Return a draw whose logarithm is uniform."""
    return low * math.exp(u * math.log(high / low))


def pick(values: Sequence[str], u: float) -> str:
    """Return one of the values."""
    return values[int(u * len(values))]


def run(seed: int, number: int, policy: str) -> dict[str, Any]:
    """Return the figures of a scenario, run by the policy and by `none`."""
    scenario, began = draw(seed, number), time.process_time()
    ours = simulate(scenario.changed(policy=policy))
    reached = ours.time_to_target_seconds is not None
    limit = CUT_OFF * ours.seconds if reached else None  # a run ends at its target
    outcomes = {policy: ours, "none": simulate(scenario.changed(policy="none", time_limit_seconds=limit))}
    return {
        "seed": seed,
        "number": number,
        "policy": policy,
        "model_bytes": scenario.convergence["model_bytes"],
        "nodes": len(scenario.cards()),
        "profiles": list(scenario.nodes[0].profile),
        "loss_model": scenario.loss_model,
        "learning_rate": scenario.config.training.learning_rate,
        "local_steps": scenario.config.training.local_steps,
        "batch_size": scenario.config.training.batch_size,
        "seconds": {name: each.time_to_target_seconds for name, each in outcomes.items()},
        "trained_seconds": {name: each.trained_seconds for name, each in outcomes.items()},
        "cut_off": outcomes["none"].state == "stopped",
        "rounds": {name: each.rounds for name, each in outcomes.items()},
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def run_all(seed: int, count: int, policy: str, file: Path, jobs: int) -> list[dict[str, Any]]:
    """Return the figures of each scenario: those in the file, and of new runs, which are added to it."""
    kept = strict_json.read_lines(file) if file.exists() else ()
    found = {row["number"]: row for row in kept if (row["seed"], row["policy"]) == (seed, policy)}
    missing = [number for number in range(count) if number not in found]
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(jobs, mp_context=context) as pool, file.open("a", encoding="utf-8") as lines:
        futures = [pool.submit(run, seed, number, policy) for number in missing]
        for done, future in enumerate(as_completed(futures), 1):
            row = future.result()
            found[row["number"]] = row
            lines.write(json.dumps(row) + "\n")
            lines.flush()
            print(f"{done}/{len(missing)} {describe(row)}", file=sys.stderr, flush=True)
    return [found[number] for number in range(count)]


def ratio_of(row: dict[str, Any]) -> float | None:
    """Return the time of the policy over that of `none`; None if both missed the target."""
    policy, seconds = row["policy"], row["seconds"]
    if seconds[policy] is None and seconds["none"] is None:
        return None
    if row["cut_off"]:
        return 1.0 / CUT_OFF
    policy_seconds, none_seconds = (
        MISSED * row["trained_seconds"][name] if seconds[name] is None else seconds[name] for name in (policy, "none")
    )
    return float(policy_seconds / none_seconds)


def describe(row: dict[str, Any]) -> str:
    """Return a scenario and its ratio, in a line."""
    ratio = ratio_of(row)
    times = " against ".join(
        f"{'not' if (at := row['seconds'][name]) is None else f'{at:.3g} s'} ({row['rounds'][name]} rounds)"
        for name in (row["policy"], "none")
    )
    links = f"{row['nodes']} nodes, {'/'.join(row['profiles'])}, {row['loss_model']}"
    links += f", {row['local_steps']} steps of {row['batch_size']} at {row['learning_rate']:.3g}"
    shown = "no ratio" if ratio is None else f"ratio {ratio:.3g}"
    return f"scenario {row['number']}: {row['model_bytes'] / 1e6:.3g} MB, {links}: {times}, {shown}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, metavar="N", help="scenarios")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draws")
    parser.add_argument("--policy", default="reactive", metavar="NAME")
    parser.add_argument("--jobs", type=int, default=usable_cpus(), metavar="N", help="processes")
    parser.add_argument("--file", type=Path, default=Path("drawn.jsonl"), help="file of the runs")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    rows = run_all(options.seed, options.count, options.policy, options.file, options.jobs)
    ratios = {row["number"]: ratio for row in rows if (ratio := ratio_of(row)) is not None}
    mean = geometric_mean_of(list(ratios.values())).mean
    lost = sorted(
        (row for row in rows if ratios.get(row["number"], 0.0) > WORST_RATIO), key=lambda r: -ratios[r["number"]]
    )
    if options.json:
        print(json.dumps({"mean_ratio": mean, "lost": lost, "runs": rows}, indent=2))
    else:
        print(f"{len(ratios)} of {len(rows)} scenarios with a ratio; geometric mean {mean or math.nan:.3f}")
        print(f"{len(lost)} above {WORST_RATIO}" + "".join(f"\n  {describe(row)}" for row in lost))
    return 1 if lost or mean is None or mean > MEAN_RATIO else 0


if __name__ == "__main__":
    sys.exit(main())
