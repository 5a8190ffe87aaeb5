"""What each strategy makes of one cluster, and what the formulas of goodput give, as text.

Write them anew with `pytest tests/coordinator/core/batching/test_transcripts.py --update-transcripts`.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypergpu.common.clock import ManualClock
from hypergpu.common.config import BatchConfig
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.coordinator.core.batching import AdaptiveBatchController, BatchReason, BatchSizeStrategy
from hypergpu.coordinator.core.batching import goodput as gp
from hypergpu.coordinator.core.batching.controller import AdaptationLimits
from hypergpu.coordinator.core.links import NetworkQualityMonitor
from tests.transcripts import RequireTranscript

DIRECTORY = Path(__file__).parent / "transcripts"
NODES = ("near", "far", "slow", "failing", "small", "late")
COMMUNICATION_SECONDS = {"near": 0.02, "far": 0.5, "slow": 0.05, "failing": 0.2, "small": 0.1, "late": 0.3}
STEP_SECONDS = {
    "near": (0.001, 1e-4),
    "far": (0.002, 1e-4),
    "slow": (0.02, 2e-3),
    "failing": (0.004, 3e-4),
    "small": (0.0, 5e-4),
    "late": (0.01, 5e-5),
}
"""Fixed part, and part per sample."""
SETTINGS: Mapping[str, tuple[dict[str, Any], AdaptationLimits, int]] = {
    "plain": ({}, AdaptationLimits(), 10),
    "bold": ({"max_batch_size": 300, "max_learning_rate_factor": 1.4}, AdaptationLimits(4.0, 0.0, 2.0, 3), 4),
    "powers": ({"powers_of_two": True, "min_batch_size": 24}, AdaptationLimits(1.25, 0.05, 1.0, 5), 1),
}


def shown(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.6g}"
    if isinstance(value, np.ndarray | list | tuple):
        return " ".join(shown(each) for each in value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(each)}" for key, each in value.items()) + "}"
    return str(value)


def train(monitor: NetworkQualityMonitor, controller: AdaptiveBatchController, number: int) -> None:
    """One round of every node; the step times are noisy by a tenth."""
    for place, node in enumerate(NODES):
        if node == "late" and number < 3:
            continue
        noise = 0.95 + 0.1 * KeyedRandom(2, node).uniform(number)
        communication = COMMUNICATION_SECONDS[node] * noise * (1.3 ** max(0, number - 5) if node == "near" else 1.0)
        fixed, each = STEP_SECONDS[node]
        size, steps = controller.get_batch_size(node), controller.local_steps
        compute = steps * (fixed + each * size) * noise * (20.0 if number == 6 and node == "slow" else 1.0)
        monitor.record_round_communication(node, communication)
        for _ in range(3):
            monitor.record_communication(node, 500.0 * communication, success=node != "failing" or number % 3 > 0)
        samples = 0 if node == "failing" and number % 3 == 0 else size * steps
        seconds = communication + compute
        told = None if place % 2 else compute
        controller.record_performance(node, samples, seconds, steps=steps, compute_seconds=told)
    controller.costs.record_restarts(number % 2, 4.0 * number)
    controller.updates.noise.observe(3.0 + 0.1 * number, 1.0, 6, 64.0 + number)


def story_of_strategy(name: str) -> Iterator[str]:
    settings, limits, steps = SETTINGS[name]
    for strategy in BatchSizeStrategy:
        monitor = NetworkQualityMonitor(clock=ManualClock())
        config = BatchConfig.model_validate(settings)
        controller = AdaptiveBatchController(monitor, 64, strategy, config=config, local_steps=steps)
        for node in NODES:
            monitor.register_node(node)
            controller.register_node(node, 40 if node == "small" else None)
        yield f"{strategy}: {shown(controller.get_adaptation_summary())}"
        for number in range(9):
            train(monitor, controller, number)
            monitor.update()
            yield f"  {number}: {controller.local_steps} steps of {shown(controller.compute_seconds(NODES))} s"
            changes = controller.evaluate_and_adapt(
                NODES[: 6 - number % 2], reference_nodes=5 + number % 2, limits=limits
            )
            for change in changes.values():
                figures = shown(change.figures)
                yield f"    {change.node_id}: {change.old} to {change.new}, {change.reason} {figures}"
            sizes = shown(list(controller.get_batch_sizes(NODES).values()))
            rate, noise = shown(controller.learning_rate_factor), shown(controller.noise_scale(384.0))
            yield f"    now {sizes}, {controller.local_steps} steps, rate {rate}, noise {noise}"
        yield f"  costs {shown(_costs(controller))}"
        for node in NODES[:3]:
            yield f"  compared for {node}: {shown(controller.compare_strategies(node))}"
        yield f"  {shown(controller.get_adaptation_summary())}"
        back = controller.restore({"near": 500, "small": 500, "gone": 1}, 7, 1.25, BatchReason.ROLLED_BACK)
        yield f"  back {shown([(c.node_id, c.old, c.new, str(c.reason)) for c in back.values()])}"
        back = controller.reset(NODES[:4])
        yield f"  reset {shown([(c.node_id, c.old, c.new) for c in back.values()])}, {controller.local_steps} steps"


def _costs(controller: AdaptiveBatchController) -> list[Any]:
    rows = controller.rows(NODES)
    cost = controller.costs.fit(rows)
    rates = controller.costs.rates(rows)
    return [cost.fixed, cost.per_sample, cost.doubtful_below, cost.restarts_per_second, *rates]


def story_of_formulas() -> Iterator[str]:
    for least, most in ((1, 1), (10, 10), (10, 11), (10, 40), (3, 100)):
        yield f"steps from {least} to {most}: {gp.step_candidates(least, most)}"
    cost = gp.StepCost(np.array([0.001, 0.02]), np.array([1e-3, 2e-4]), np.array([0.0, 64.0]), 0.05)
    communication = np.array([0.3, 0.05])
    yield f"expected of {shown(cost.expected(np.array([0.0, 0.5, 10.0, 100.0, 1000.0, 1001.0, 2000.0, 1e6])))}"
    for steps, sizes in product((1, 10, 40), ([16, 16], [64, 200])):
        plan = gp.evaluate(steps, np.array(sizes), communication, cost, noise_scale=200.0, drift_steps=160.0)
        yield f"{steps} steps of {sizes}: {shown(cost.seconds(plan.batches))} s, {plan.seconds:.6g} {plan.goodput:.6g}"
        for rounds, bounds in product((0, 1, 20), ((10, 40), (5, 5))):
            best = gp.best_plan(
                plan,
                communication,
                cost,
                least=np.array([8, 16]),
                most=np.array([400, 300]),
                steps=bounds,
                noise_scale=200.0,
                drift_steps=160.0,
                rounds=rounds,
            )
            worth = f"{best.seconds:.6g} {best.goodput:.6g}"
            yield f"  after {rounds}, {bounds}: {best.steps} of {shown(best.batches)}, {worth}"
    for seconds, rounds in product((0.5, 1.0, 3.0), (0, 1, 2, 10)):
        penalty = float(gp.switching_penalty(seconds, 1.0, rounds))
        yield f"switching penalty at {seconds:g} after {rounds}: {penalty:.6g}"
    for nodes, samples, square in product((1, 2, 8), (0.0, 64.0), (0.5, 1.0, 1.9, 2.5)):
        estimate = gp.NoiseScale()
        seen = []
        for _ in range(6):
            estimate.observe(2.0, square, nodes, samples)
            seen.append(estimate.value(100.0))
        estimate.observe(math.inf, square, nodes, samples)
        estimate.observe(2.0, math.nan, nodes, samples)
        seen.append(estimate.value(1e6))
        yield f"noise of {nodes} nodes with {samples:g} samples, mean {square:g}: {shown(seen)}"


@pytest.mark.parametrize("name", [*SETTINGS, "formulas"])
def test_what_is_chosen_is_as_written(name: str, require_transcript: RequireTranscript) -> None:
    lines = story_of_formulas() if name == "formulas" else story_of_strategy(name)
    require_transcript(DIRECTORY / f"{name}.txt", lines)
