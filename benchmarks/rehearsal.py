"""Policy `rehearsed` against `reactive`, in virtual time, and its predictions against what then happened.

The shipped scenarios end within seconds, before a rehearsal pays. So their clusters and links train a task that is
`--longer` times as long: the model of convergence, on which half of the worth of a round's local steps is lost at
`--drift` steps. `--real` runs the scenarios as they are shipped. Each seed is a pair: links and nodes draw the same.

The exit code is 1 if the median error of the predictions is above 10 %, if the geometric mean of the ratios of the
times to the target is below 1.1, or if a scenario is more than 3 % slower over its seeds.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from hypergpu.common import strict_json
from hypergpu.simulation.convergence import FITTED
from hypergpu.simulation.rehearsal.inline import simulate_with_rehearsals
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.scenario_file import load_scenario
from hypergpu.simulation.statistics import geometric_mean_of

SCENARIOS: Final = (
    "calm",
    "flaky-minority",
    "mixed",
    "transatlantic",
    "all-poor",
    "compute-stragglers",
    "recovery",
    "degrading",
)
MOST_ERROR: Final = 0.1
LEAST_GAIN: Final = 1.1
MOST_LOSS: Final = 0.97
_MOST_ROUNDS: Final = 5000
_VERDICTS: Final = ("gain_realised", "gain_missing")


def longer(scenario: Scenario, factor: float, drift: float) -> Scenario:
    """Return a scenario whose task takes `factor` times as many steps."""
    curve = FITTED[scenario.config.training.task]
    scales = {"loss_scale": factor * curve.loss_scale, "metric_scale": factor * curve.metric_scale}
    changed = scenario.changed(learning="model", convergence={"drift_steps": drift} | scales, rounds=_MOST_ROUNDS)
    return changed.until_target()


def decisions(run_dir: Path) -> list[dict[str, Any]]:
    """Return the decisions about rehearsals of a run."""
    rows = strict_json.read_lines(run_dir / "events.jsonl")
    return [row for row in rows if row["kind"] == "decision" and row["subject"] == "cluster" and _is_one(row)]


def _is_one(row: dict[str, Any]) -> bool:
    return str(row["text"]).startswith("rehearsal ")


def measure(scenario: Scenario, seed: int) -> dict[str, Any]:
    """Return the times of a pair of runs, and the predictions."""
    times = {}
    with tempfile.TemporaryDirectory() as directory:
        for policy in ("reactive", "rehearsed"):
            out = Path(directory) / policy
            outcome = simulate_with_rehearsals(scenario.changed(policy=policy, seed=seed), out)
            times[policy] = outcome.time_to_target_seconds
        found = decisions(Path(directory) / "rehearsed")
    verdicts = [row["figures"] for row in found if row["reason"] in _VERDICTS]
    first: dict[str, dict[str, Any]] = {}
    for each in verdicts:  # later windows of the same setting are no test of its prediction
        first.setdefault(each["setting"], each)
    errors = [(1 + each["predicted_gain"]) / (1 + each["realised_gain"]) - 1 for each in first.values()]
    before, after = times["reactive"], times["rehearsed"]
    ratio = before / after if before and after else None
    reasons = [str(row["reason"]) for row in found]
    return {"scenario": scenario.name, "seed": seed, **times, "ratio": ratio, "errors": errors, "reasons": reasons}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", default=",".join(SCENARIOS), metavar="A,B,…")
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--longer", type=float, default=300.0, metavar="FACTOR", help="length of the task")
    parser.add_argument("--drift", type=float, default=40.0, metavar="STEPS")
    parser.add_argument("--real", action="store_true", help="the scenarios as they are shipped")
    options = parser.parse_args(arguments)
    rows = []
    for name in options.scenarios.split(","):
        scenario = load_scenario(name)
        scenario = scenario.until_target() if options.real else longer(scenario, options.longer, options.drift)
        for seed in range(options.seeds):
            rows.append(measure(scenario, seed))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return report(rows)


def report(rows: Sequence[dict[str, Any]]) -> int:
    """Print the figures; return the exit code."""
    by_scenario: dict[str, list[float]] = {}
    for row in rows:
        by_scenario.setdefault(row["scenario"], []).extend([row["ratio"]] if row["ratio"] else [])
    ratios = {name: geometric_mean_of(values) for name, values in by_scenario.items()}
    errors = [abs(error) for row in rows for error in row["errors"]]
    overall = geometric_mean_of([each.mean for each in ratios.values() if each.mean is not None]).mean or 0.0
    middle = median(errors) if errors else 0.0
    print(
        json.dumps(
            {
                "ratio": overall,
                "scenarios": {name: each.to_dict() for name, each in ratios.items()},
                "worst_pair": min((row["ratio"] for row in rows if row["ratio"]), default=None),
                "predictions": len(errors),
                "median_error": middle,
                "rows": list(rows),
            },
            indent=2,
        )
    )
    slower = [name for name, each in ratios.items() if (each.mean or 0.0) < MOST_LOSS]
    return 1 if middle > MOST_ERROR or overall < LEAST_GAIN or slower else 0


if __name__ == "__main__":
    sys.exit(main())
