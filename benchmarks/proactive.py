"""Worth of forecasts: the time to a target with `proactive` and `reactive`, on links that change foreseeably.

Seeds of both policies form pairs. The learning rate is fixed, so that nothing but the links makes a difference, and
training is the model of convergence, so that a run takes a second.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.statistics import geometric_mean_of

FAR = ["far_0", "far_1"]
TARGET = 0.9


def ramp() -> Iterator[dict[str, Any]]:
    """Latency rises by a third every two seconds, and falls back every half minute."""
    for beginning in range(4, 240, 30):
        for step in range(10):
            at, added = beginning + 2.0 * step, 20.0 * 1.33**step
            yield {"at_seconds": at, "duration_seconds": 2.0, "type": "latency_spike", "nodes": FAR, "added_ms": added}


def day_and_night() -> Iterator[dict[str, Any]]:
    """Latency follows the sun: a sine of 40 seconds, on two nodes at a time."""
    for at in range(240):
        for nodes, phase in ((FAR, 0), (["near_0", "near_1"], 20)):
            height = max(0, 10 - abs((at + phase) % 40 - 20))
            event = {"at_seconds": at, "duration_seconds": 1.0, "type": "latency_spike", "nodes": nodes}
            if height:
                yield event | {"added_ms": 40.0 * height}


def flapping() -> Iterator[dict[str, Any]]:
    """Links that go down and come back every four seconds."""
    yield {"at_seconds": 2, "duration_seconds": 240, "type": "flap", "nodes": FAR, "period_seconds": 4.0}


EVENTS = {"ramp": ramp, "day and night": day_and_night, "flapping": flapping}


def seconds(name: str, policy: str, seed: int) -> float:
    """Return the time to the target of one run."""
    tree = {
        "name": name,
        "learning": "model",
        "seed": seed,
        "policy": policy,
        "rounds": 500,
        "nodes": [
            {"id": "near", "count": 6, "gpu": "T4", "profile": "good"},
            {"id": "far", "count": 2, "gpu": "T4", "profile": "good"},
        ],
        "events": list(EVENTS[name]()),
        "config": {
            "training": {"learning_rate": 0.0002, "target_accuracy": TARGET},
            "batch": {"max_learning_rate_factor": 1},
            "server": {"heartbeat_seconds": 0.5},
        },
    }
    outcome = simulate(Scenario.model_validate(tree))
    assert outcome.final_metric is not None
    assert outcome.final_metric >= TARGET, outcome.reason
    return outcome.trained_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="pairs of runs")
    seeds = parser.parse_args().seeds
    print(f"{'scenario':<14} {'reactive':>9} {'proactive':>9}  proactive is faster by [95 %]")
    for name in EVENTS:
        pairs = [(seconds(name, "reactive", seed), seconds(name, "proactive", seed)) for seed in range(seeds)]
        ratio = geometric_mean_of([reactive / proactive for reactive, proactive in pairs])
        means = [sum(column) / seeds for column in zip(*pairs, strict=True)]
        interval = f"{ratio.mean:.3f} [{ratio.ci_low:.3f}, {ratio.ci_high:.3f}]"
        print(f"{name:<14} {means[0]:>7.1f} s {means[1]:>7.1f} s  {interval}", flush=True)


if __name__ == "__main__":
    main()
