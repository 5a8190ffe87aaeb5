"""Nodes come back within two rounds once their link has recovered, by every strategy that leaves nodes out."""

from functools import cache
from typing import Any

import pytest

from hypergpu.simulation.scenario import Scenario
from tests.hypergpu.simulation.truth import Observed, Plan, observe

STRATEGIES = ("utility", "quality_threshold", "adaptive_threshold", "contribution_based", "top_n")
NODE = "x"
OTHERS = {"top_n": "average"}
"""Profile of the other links, where the node has to be among the better half."""


def event(kind: str, at: float, seconds: float, **values: Any) -> dict[str, Any]:
    return {"at_seconds": at, "type": kind, "nodes": [NODE], "duration_seconds": seconds} | values


TROUBLES: dict[str, tuple[dict[str, Any], float, int]] = {
    "outage": (event("disconnect", 4.0, 6.0), 10.0, 60_000),
    "black hole": (event("disconnect", 4.0, 1.5, mode="black_hole"), 5.5, 60_000),
    "partition": (event("partition", 4.0, 4.0), 8.0, 60_000),
    "latency spike": (event("latency_spike", 4.0, 8.0, added_ms=400.0), 12.0, 60_000),
    "bandwidth collapse": (event("bandwidth_collapse", 4.0, 14.0, factor=0.01), 18.0, 1_000_000),
    "flapping": (event("flap", 4.0, 12.0, period_seconds=1.5, mode="reset"), 16.0, 60_000),
}
"""Event, time of the recovery, and size of the model, by name."""


@cache
def run(trouble: str, strategy: str = "utility", *, spared: bool = False) -> Observed:
    """Run a scenario; `spared` leaves the event out."""
    happens, _, model_bytes = TROUBLES[trouble]
    card = {"gpu": "T4"}
    tree = {
        "name": trouble,
        "learning": "model",
        "loss_model": "rpc",
        "rounds": 75,
        "policy": "reactive",
        "seed": 1,
        "compute": {"seconds_per_step": 0.002, "seconds_per_sample": 0.00002},
        "convergence": {"model_bytes": model_bytes},
        "nodes": [
            card | {"id": "n", "count": 4, "profile": OTHERS.get(strategy, "good")},
            card | {"id": NODE, "profile": "good"},
        ],
        "events": [] if spared else [happens],
        "config": {
            "server": {"heartbeat_seconds": 0.5},
            "selector": {"strategy": strategy},
            "batch": {"max_batch_size": 64},  # so that rounds stay short
        },
    }
    return observe(Scenario.model_validate(tree))


def takes_part(plan: Plan) -> bool:
    return NODE in plan.selection.selected or NODE in plan.selection.probes


def after_recovery(trouble: str, strategy: str) -> list[Plan]:
    """Return the rounds after the recovery for which the node was available."""
    _, recovered_at, _ = TROUBLES[trouble]
    plans = [plan for plan in run(trouble, strategy).plans if plan.at >= recovered_at]
    return [plan for plan in plans if NODE in plan.selection.reasons]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_node_is_back_within_two_rounds_and_stays(trouble: str, strategy: str) -> None:
    plans = after_recovery(trouble, strategy)
    assert len(plans) >= 15
    assert any(takes_part(plan) for plan in plans[:2])
    missed = [plan.selection.round for plan in plans[2:] if not takes_part(plan)]
    assert len(missed) <= 1, missed


@pytest.mark.parametrize("strategy", [each for each in STRATEGIES if each not in OTHERS])
def test_a_flapping_link_costs_the_others_little(strategy: str) -> None:
    flapping, steady = run("flapping", strategy), run("flapping", strategy, spared=True)
    assert flapping.outcome.seconds <= 1.05 * steady.outcome.seconds


def test_a_round_does_not_wait_for_a_probe() -> None:
    observed = run("bandwidth collapse")
    probed = {plan.selection.round for plan in observed.plans if NODE in plan.selection.probes}
    late = {number for number, node, success, _ in observed.contributions if node == NODE and not success} & probed
    assert len(late) >= 6
    seconds = observed.outcome.round_seconds
    others = [seconds[number - 1] for number in range(5, len(seconds) + 1) if number not in late]
    assert max(seconds[number - 1] for number in late) <= 1.5 * sorted(others)[len(others) // 2]
