"""Codecs chosen by link against fixed ones, in virtual time, and how true the expected savings are.

The links are home lines or lines of a data centre, the learning is modelled. `savings` compares what each change was
expected to save with what its two next rounds took less, within 15 %.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import geometric_mean
from tempfile import TemporaryDirectory
from typing import Any

from hypergpu.simulation.run import Outcome, simulate
from hypergpu.simulation.scenario import Scenario

LINKS = {
    "home": ("fibre", "cable", "dsl", "4g"),
    "fibre": ("perfect", "good", "fibre", "fibre"),
    "wan": ("average", "average", "average", "poor"),
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "none": {"strategy": "none"},
    "int8": {"strategy": "fixed", "update_codec": "int8", "parameters_codec": "int8"},
    "int4": {"strategy": "fixed", "update_codec": "int4", "parameters_codec": "int8"},
    "topk": {"strategy": "fixed", "update_codec": "topk", "parameters_codec": "int8"},
    "adaptive": {"strategy": "adaptive"},
}
TOLERANCE = 0.15


def scenario(
    links: Sequence[str], megabytes: float, strategy: str, seed: int, *, loss: bool = True, connections: str = "auto"
) -> Scenario:
    """Return eight nodes that train a model of this size until 95 % and on."""
    return Scenario.model_validate(
        {
            "learning": "model",
            "policy": "reactive",
            "rounds": 30,
            "target_accuracy": 0.95,
            "seed": seed,
            "convergence": {"model_bytes": int(megabytes * 1e6)},
            "profiles": {} if loss else {name: {"based_on": name, "loss": 0.0} for name in links},
            "nodes": [{"id": "n", "count": 8, "gpu": ["A100", "T4"], "profile": list(links)}],
            "config": {
                "training": {"learning_rate": 0.01},
                "compression": STRATEGIES[strategy],
                "transfers": {"connections": connections if connections == "auto" else int(connections)},
            },
        }
    )


def run(case: Scenario) -> tuple[Outcome, list[tuple[float, float]]]:
    """Return the outcome, with the expected and the measured saving of each change that was checked."""
    with TemporaryDirectory() as directory:
        outcome = simulate(case, Path(directory) / "run")
        return outcome, list(_savings(Path(directory) / "run" / "events.jsonl"))


def _savings(events: Path) -> Iterator[tuple[float, float]]:
    for line in events.read_text().splitlines():
        figures = json.loads(line).get("figures", {})
        if "measured_saving_seconds" in figures:
            yield figures["expected_saving_seconds"], figures["measured_saving_seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--links", choices=LINKS, default="home")
    parser.add_argument("--megabytes", type=float, default=44.0)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--without-loss", action="store_true", help="links that lose no packets")
    parser.add_argument("--connections", nargs="+", choices=("auto", "1", "4", "16"), default=["auto"])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--each-seed", action="store_true", help="print the time of each seed")
    arguments = parser.parse_args()
    print(f"{'strategy':9} {'connections':>11} {'to 95 %':>9} {'30 rounds':>10} {'accuracy':>9}  savings within 15 %")
    for strategy, connections in product(arguments.strategies, arguments.connections):
        links, loss = LINKS[arguments.links], not arguments.without_loss
        found = [
            run(scenario(links, arguments.megabytes, strategy, seed, loss=loss, connections=connections))
            for seed in range(arguments.seeds)
        ]
        print(f"{strategy:9} {connections:>11} {_figures(found, each_seed=arguments.each_seed)}", flush=True)


def _figures(found: Sequence[tuple[Outcome, list[tuple[float, float]]]], *, each_seed: bool) -> str:
    times = [outcome.time_to_target_seconds or float("nan") for outcome, _ in found]
    whole = geometric_mean(outcome.trained_seconds for outcome, _ in found)
    final = sum(outcome.final_metric or 0.0 for outcome, _ in found) / len(found)
    savings = [pair for _, pairs in found for pair in pairs]
    true = sum(abs(measured - expected) <= TOLERANCE * expected for expected, measured in savings)
    told = f"{true} of {len(savings)}" if savings else ""
    seeds = "  " + " ".join(f"{each:.1f}" for each in times) if each_seed else ""
    return f"{geometric_mean(times):8.1f}s {whole:9.1f}s {final:9.2%}  {told}{seeds}"


if __name__ == "__main__":
    main()
