"""Forks of runs against the truth: what `hypergpu whatif` predicts, and what then happens.

Each scenario is run for some rounds without adaptation and forked there. For each change, the predicted seconds per
round are compared with those of runs that had the change from the beginning, on several seeds. Nothing but
the run directory is known to the fork. The exit code is 1 if the median error is above 10 %.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, Final

from hypergpu.common.config import SystemConfig, load_config
from hypergpu.simulation.compute import read_rounds
from hypergpu.simulation.fork.fork import fork
from hypergpu.simulation.fork.state import figures_of, read_state
from hypergpu.simulation.fork.whatif import what_if
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.scenario_file import load_scenario

SCENARIOS: Final = ("transatlantic", "flaky-minority", "home-lines", "all-poor", "calm")
CHANGES: Final = {
    "local steps × 4": ["training.local_steps=40"],
    "batch 128": ["training.batch_size=128"],
    "int8": ["compression.strategy=fixed", "compression.update_codec=int8", "compression.parameters_codec=int8"],
    "close at 80 %": ["training.close_share=0.8"],
}
TRUTH_SEEDS: Final = (0, 11, 12)
MOST_ERROR: Final = 0.1


def endless(scenario: Scenario, rounds: int, **changes: Any) -> Scenario:
    """Return a scenario of so many rounds, which no target ends."""
    changed = scenario.changed(rounds=rounds, target_accuracy=None, **changes)
    training = changed.config.training.model_copy(update={"target_accuracy": None})
    return changed.changed(config=changed.config.model_copy(update={"training": training}))


def truth(scenario: Scenario, config: SystemConfig, rounds: int, directory: Path) -> float:
    """Return the mean seconds per round of runs with the configuration, after as many rounds as the fork has seen."""
    found = []
    for seed in TRUTH_SEEDS:
        run = endless(scenario, 2 * rounds, seed=seed, config=config, policy=str(config.orchestrator.policy))
        simulate(run, directory / f"truth-{seed}")
        found.append(figures_of(read_rounds(directory / f"truth-{seed}")[rounds:]).seconds_per_round)
    return fmean(found)


def measure(name: str, rounds: int) -> list[dict[str, Any]]:
    """Return prediction and truth for each change of a scenario."""
    scenario, rows = load_scenario(name).changed(learning="model"), []
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        simulate(endless(scenario, rounds, policy="none"), place / "run")
        forked = fork(read_state(place / "run", rounds))
        for label, settings in CHANGES.items():
            config = load_config(SystemConfig, place / "run" / "config.yaml", {}, settings)
            predicted = what_if(forked, config, rounds=rounds, seeds=2).then.seconds_per_round.mean or 0.0
            happened = truth(scenario, config, rounds, place)
            error = abs(predicted / happened - 1)
            rows.append({"scenario": name, "change": label, "predicted": predicted, "truth": happened, "error": error})
            print(
                f"{name}, {label}: {predicted:.3g} s, truth {happened:.3g} s, {error:.1%}", file=sys.stderr, flush=True
            )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", default=",".join(SCENARIOS), metavar="A,B,…")
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="rounds before the fork, and ahead")
    options = parser.parse_args(arguments)
    rows = [row for name in options.scenarios.split(",") for row in measure(name, options.rounds)]
    middle = median(row["error"] for row in rows)
    print(
        json.dumps({"median_error": middle, "worst_error": max(row["error"] for row in rows), "rows": rows}, indent=2)
    )
    return 1 if middle > MOST_ERROR else 0


if __name__ == "__main__":
    sys.exit(main())
