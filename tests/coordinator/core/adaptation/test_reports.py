"""Full reports of the adaptation after scripted runs: every figure that a user can ask for, as text.

Write them anew with `pytest tests/coordinator/core/adaptation/test_reports.py --update-transcripts`.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hypergpu.common.clock import ManualClock
from hypergpu.common.config import SystemConfig
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.coordinator.core.adaptation import AdaptiveOrchestrator, build_orchestrator
from hypergpu.coordinator.core.rounds.events import Contribution
from tests.transcripts import RequireTranscript

DIRECTORY = Path(__file__).parent / "reports"
NODES = [f"node_{i}" for i in range(5)]


def rising(node: int, number: int) -> float:
    """Links that differ, of which the last degrades from round 6 on."""
    return 0.05 * (node + 1) * (1.4 ** max(0, number - 6) if node == 4 else 1.0)


def failing(node: int, number: int) -> float:
    """Equal links, of which the second and third fail now and then."""
    return math.nan if (node == 1 and number % 4 < 3) or (node == 2 and number > 9) else 0.1


def uneven(node: int, number: int) -> float:
    """Links of which the first is slow, the last fails twice, and all are slower in the middle."""
    if node == 4 and number in (5, 6):
        return math.nan
    return (0.9, 0.05, 0.07, 0.06, 0.3)[node] * (4.0 if 7 <= number < 9 else 1.0)


def everyone(number: int) -> list[str]:
    return NODES


def coming_and_going(number: int) -> list[str]:
    """The last joins in round 4, the first is away from 6 to 8, nobody is there in round 11."""
    if number == 11:
        return []
    return [node for node in NODES if (node != "node_4" or number > 3) and (node != "node_0" or not 6 <= number <= 8)]


class Story(NamedTuple):
    """Settings, seconds of each node's communication, losses, and who is there, by round."""

    settings: dict[str, Any]
    link: Callable[[int, int], float]
    losses: Callable[[int], float]
    available: Callable[[int], list[str]] = everyone
    told: bool = True
    """Whether each node's contribution, and the norms of the updates, are told."""
    slowness: Callable[[int], float] = lambda number: 1.0
    """What a step takes, as a multiple, by round."""


STORIES: dict[str, Story] = {
    "reactive": Story({"orchestrator": {"policy": "reactive"}}, rising, lambda n: 2.0 * 0.9**n),
    "aggressive-with-failures": Story(
        {
            "orchestrator": {"policy": "aggressive"},
            "selector": {"quarantine_after_failures": 2, "quarantine_rounds": 2, "probation_successes": 1},
        },
        failing,
        lambda n: 2.0 * 0.9**n,
    ),
    "conservative-with-a-rise": Story(
        {"orchestrator": {"policy": "conservative", "rollback_rounds": 2}},
        rising,
        lambda n: 1.0 + (0.5 * (n - 9) if n > 9 else 0.05 * (9 - n)),
    ),
    "proactive-that-stalls": Story(
        {"orchestrator": {"policy": "proactive", "convergence_window": 4}, "batch": {"strategy": "hybrid"}},
        rising,
        lambda n: 1.0 + 0.5 * 0.2**n,
    ),
    "top-n": Story(
        {
            "orchestrator": {"policy": "reactive", "warmup_rounds": 3},
            "selector": {"strategy": "top_n", "max_selected_nodes": 2, "fairness_rounds": 3},
            "batch": {"strategy": "throughput_based", "powers_of_two": True, "max_batch_size": 128},
        },
        rising,
        lambda n: 2.0 * 0.95**n if n != 12 else math.nan,
    ),
    "nodes-that-come-and-go": Story(
        {
            "orchestrator": {"policy": "reactive", "history": 30},
            "selector": {
                "strategy": "contribution_based",
                "contribution_threshold": 0.4,
                "min_selected_share": 0.3,
                "quarantine_after_failures": 1,
                "quarantine_rounds": 1,
            },
            "training": {"local_steps": 6},
        },
        uneven,
        lambda n: 3.0 * 0.8**n,
        coming_and_going,
    ),
    "score-threshold": Story(
        {
            "orchestrator": {"policy": "aggressive", "rollback_rounds": 1},
            "selector": {"strategy": "quality_threshold", "quality_threshold": 70, "slow_time_share": 0.5},
            "batch": {"strategy": "latency_based", "min_batch_size": 30},
            "training": {"local_steps": 3, "learning_rate": 0.3},
        },
        uneven,
        lambda n: 1.0 + 0.4 * math.sin(n),
        coming_and_going,
    ),
    "adaptive-threshold": Story(
        {
            "orchestrator": {"policy": "proactive", "warmup_rounds": 0, "convergence_improvement": 0.3},
            "selector": {"strategy": "adaptive_threshold", "max_selected_nodes": 3, "fairness_rounds": 2},
            "batch": {"strategy": "fixed"},
        },
        uneven,
        lambda n: 2.0 * (0.5**n if n < 9 else 0.9**n),
    ),
    "nobody-tells": Story(
        {"orchestrator": {"policy": "reactive", "warmup_rounds": 2}, "training": {"local_steps": 10}},
        rising,
        lambda n: 2.0 * 0.9**n if n != 8 else math.inf,
        told=False,
    ),
    "baseline": Story(
        {"orchestrator": {"policy": "none"}, "selector": {"max_selected_nodes": 2}},
        failing,
        lambda n: 2.0 * 0.9**n,
        coming_and_going,
    ),
    "slower-at-once": Story(
        {
            "orchestrator": {"policy": "aggressive", "rollback_rounds": 2},
            "batch": {"strategy": "hybrid", "max_batch_size": 4096},
            "training": {"local_steps": 8},
        },
        lambda node, number: 0.2 * (node + 1),
        lambda n: 2.0 * 0.97**n,
        slowness=lambda n: 1.0 if n < 7 else 60.0,
    ),
}


def run(name: str, rounds: int = 20) -> tuple[AdaptiveOrchestrator, list[dict[str, Any]]]:
    settings, link, losses, available, told, slowness = STORIES[name]
    clock = ManualClock()
    adaptation = build_orchestrator(SystemConfig.model_validate(settings), clock=clock)
    adaptation.register_node(NODES[3], 48)
    plans: list[dict[str, Any]] = []
    for number in range(1, rounds + 1):
        plan = adaptation.pre_round_adaptation(available(number), number)
        plans.append({key: plan[key] for key in ("selected_nodes", "batch_sizes", "local_steps", "learning_rate")})
        results = []
        for node in plan["selected_nodes"]:
            index = NODES.index(node)
            noise = 0.9 + 0.2 * KeyedRandom(1, node).uniform(number)
            wait, size, steps = link(index, number) * noise, plan["batch_sizes"][node], plan["local_steps"]
            lost = math.isnan(wait)
            for _ in range(3):
                adaptation.monitor.record_communication(node, 500.0 * (0.1 if lost else wait), success=not lost)
            compute = 1e-4 * (index + 1) * size * steps * slowness(number)
            samples, before = 0 if lost else size * steps, (0.0, 1.2, 0.4, 2.0, 9.0)[index]
            results.append(
                Contribution(node, not lost, samples, size, compute, 0.5 if lost else wait, 1.0, before, late=lost)
            )
        seconds = max((each.compute_seconds + each.waiting_seconds for each in results), default=0.0)
        clock.advance(seconds)
        outcome = adaptation.post_round_evaluation(
            number,
            {
                "loss": losses(number),
                "accuracy": None if number % 5 == 0 else 0.04 * number,
                "round_time": seconds,
                "samples": sum(each.samples for each in results),
            }
            | (
                {"contributions": results, "update_norms": (4.0 + number, 1.0), "ended": (number % 2, 3.0)}
                if told
                else {}
            ),
        )
        plans[-1] |= {"phase": outcome["phase"], "progress_per_second": outcome["progress_per_second"]}
    return adaptation, plans


def described(name: str) -> Iterator[str]:
    adaptation, plans = run(name)
    report = adaptation.export_full_report()
    report["plans"] = plans
    report["nodes"] = {node: adaptation.selector.get_node_details(node) for node in NODES}
    report["links"] = [profile.to_dict() for profile in adaptation.monitor.get_node_profiles(NODES)]
    report["strategies"] = {node: adaptation.batches.compare_strategies(node) for node in NODES[:2]}
    report["next"] = {"phase": str(adaptation.phase), "quality": adaptation.monitor.class_counts()}
    for key, value in sorted(report.items()):
        rows = value if isinstance(value, list) else [value]
        yield from (f"{key}: {json.dumps(rounded(row), sort_keys=True)}" for row in rows)


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items() if "overhead" not in key}
    return [rounded(each) for each in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("name", sorted(STORIES))
def test_the_report_is_as_written(name: str, require_transcript: RequireTranscript) -> None:
    require_transcript(DIRECTORY / f"{name}.txt", described(name))
