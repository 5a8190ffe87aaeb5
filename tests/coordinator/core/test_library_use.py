"""The public parts used together as a library, without a cluster: the section on library use in the specification."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from hypergpu import (
    AdaptationPolicy,
    AdaptiveBatchController,
    AdaptiveOrchestrator,
    BatchSizeStrategy,
    ConnectionQuality,
    DynamicNodeSelector,
    NetworkQualityMonitor,
    SelectionStrategy,
    SystemConfig,
)
from hypergpu.common.clock import ManualClock
from hypergpu.common.errors import InvalidInput, UnknownName


def test_the_parts_work_together_as_written() -> None:
    config = SystemConfig()
    network_monitor = NetworkQualityMonitor()
    batch_controller = AdaptiveBatchController(network_monitor)
    node_selector = DynamicNodeSelector(network_monitor)
    orchestrator = AdaptiveOrchestrator(config, network_monitor, batch_controller, node_selector)
    all_nodes = [f"node_{i}" for i in range(5)]
    for node_id in all_nodes:
        for part in (network_monitor, batch_controller, node_selector):
            part.register_node(node_id)
    orchestrator.start_training()
    rounds_of_node_4 = []
    for round_num in range(12):
        decisions: Any = orchestrator.pre_round_adaptation(all_nodes, round_num)
        if "node_4" in decisions["selected_nodes"]:
            rounds_of_node_4.append(round_num)
        for node_id in decisions["selected_nodes"]:
            slow = node_id == "node_4"
            for _ in range(4):
                network_monitor.record_communication(node_id, latency_ms=420.0 if slow else 20.0, success=not slow)
            batch_controller.record_performance(node_id, decisions["batch_sizes"][node_id], 0.1)
            node_selector.record_contribution(node_id, compute_time=0.1, waiting_time=0.05, success=not slow)
        metrics = {"loss": 1.0 / (round_num + 1), "accuracy": 0.5, "round_time": 2.0, "samples": 320}
        orchestrator.post_round_evaluation(round_num, metrics)
    assert 1 <= len(rounds_of_node_4) <= 6, "it is left out most of the time, and given its turn"
    assert decisions["selected_nodes"]
    status = orchestrator.get_orchestrator_status()
    comparison = orchestrator.get_performance_comparison()
    assert status["rounds_completed"] == 12
    assert status["overhead"]["share_of_round_time"] < 0.05
    assert comparison["baseline"]
    assert comparison["adaptive"]
    assert network_monitor.get_problematic_nodes() == ["node_4"]
    orchestrator.shutdown()
    assert orchestrator.export_full_report()["status"]["phase"] == "completed"


def test_mistakes_are_told_apart_and_typed() -> None:
    monitor = NetworkQualityMonitor()
    batches, selector = AdaptiveBatchController(monitor), DynamicNodeSelector(monitor)
    mistakes: list[Callable[[], object]] = [
        lambda: DynamicNodeSelector(monitor, "top_m"),  # type: ignore[arg-type]  # what a user may type
        lambda: AdaptiveBatchController(monitor, strategy="hybird"),  # type: ignore[arg-type]
        lambda: AdaptiveOrchestrator(SystemConfig(), monitor, batches, selector, "reactiv"),  # type: ignore[arg-type]
    ]
    for mistake, nearest in zip(mistakes, ("top_n", "hybrid", "reactive"), strict=True):
        with pytest.raises(UnknownName, match=nearest):
            mistake()
    monitor.register_node("a")
    with pytest.raises(InvalidInput, match="latency_ms"):
        monitor.record_communication("a", None, success=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", list(AdaptationPolicy))
@pytest.mark.parametrize("selection", list(SelectionStrategy))
@pytest.mark.parametrize("batching", list(BatchSizeStrategy))
def test_every_combination_of_strategies_runs(
    policy: AdaptationPolicy, selection: SelectionStrategy, batching: BatchSizeStrategy
) -> None:
    clock = ManualClock()
    monitor = NetworkQualityMonitor(clock=clock)
    batches = AdaptiveBatchController(monitor, 64, batching)
    selector = DynamicNodeSelector(monitor, selection, 4, clock=clock)
    orchestrator = AdaptiveOrchestrator(SystemConfig(), monitor, batches, selector, policy, clock=clock)
    nodes = [f"node_{i}" for i in range(6)]
    for round_num in range(6):
        plan = orchestrator.pre_round_adaptation(nodes, round_num)
        assert set(plan["batch_sizes"]) == set(plan["selected_nodes"]) <= set(nodes)
        for node in plan["selected_nodes"]:
            monitor.record_communication(node, 30.0, True)
            batches.record_performance(node, 640, 0.1)
            selector.record_contribution(node, 0.05, 0.05, True)
        clock.advance(0.1)
        metrics = {"loss": 1.0, "accuracy": None, "round_time": 0.1, "samples": 640}
        orchestrator.post_round_evaluation(round_num, metrics)
    assert all(monitor.get_node_quality(node) is ConnectionQuality.GOOD for node in plan["selected_nodes"])


def test_a_report_of_a_run_that_diverged_is_strict_json() -> None:
    monitor = NetworkQualityMonitor()
    selector = DynamicNodeSelector(monitor)
    orchestrator = AdaptiveOrchestrator(SystemConfig(), monitor, AdaptiveBatchController(monitor), selector)
    for part in (monitor, orchestrator.batches, selector):
        part.register_node("a")
    orchestrator.start_training()
    for round_num, (loss, accuracy) in enumerate(((0.5, -0.25), (math.nan, math.nan), (math.inf, None))):
        orchestrator.pre_round_adaptation(["a"], round_num)
        metrics = {"loss": loss, "accuracy": accuracy, "round_time": 0.1, "samples": 64}
        orchestrator.post_round_evaluation(round_num, metrics)
    report = json.loads(json.dumps(orchestrator.export_full_report(), allow_nan=False))
    figures = [(row["loss"], row["accuracy"]) for row in report["rounds"]]
    assert figures == [(0.5, -0.25), (None, None), (None, None)]


def test_a_forecast_changes_what_a_coming_communication_is_expected_to_take() -> None:
    clock = ManualClock()
    monitor = NetworkQualityMonitor(clock=clock)
    for node_id in ("rising", "steady"):
        monitor.register_node(node_id)
    for at in range(20):
        for _ in range(4):
            monitor.record_communication("rising", 50.0 + 25.0 * at, success=True)
            monitor.record_communication("steady", 100.0, success=True)
        clock.advance(1.0)
        monitor.update()
    rows = monitor.rows(["rising", "steady"])
    now, ahead = (monitor.round_communication_samples(rows, 4, horizon).mean(axis=1) for horizon in (0.0, 3.0))
    assert ahead[0] / now[0] == pytest.approx(monitor.forecast_scale(rows, 3.0)[0])
    assert ahead[0] > 1.1 * now[0]
    assert ahead[1] == pytest.approx(now[1])


@pytest.mark.parametrize("strategy", [SelectionStrategy.ADAPTIVE_THRESHOLD, SelectionStrategy.UTILITY])
def test_a_proactive_run_leaves_a_degrading_link_sooner_than_a_reactive_one(strategy: SelectionStrategy) -> None:
    def rounds_with_the_rising_link(policy: AdaptationPolicy) -> int:
        clock = ManualClock()
        monitor = NetworkQualityMonitor(clock=clock)
        batches, selector = AdaptiveBatchController(monitor), DynamicNodeSelector(monitor, strategy, clock=clock)
        orchestrator = AdaptiveOrchestrator(SystemConfig(), monitor, batches, selector, policy, clock=clock)
        nodes = [f"node_{i}" for i in range(6)]
        taken = 0
        for round_num in range(40):
            selected = orchestrator.pre_round_adaptation(nodes, round_num)["selected_nodes"]
            taken += "node_5" in selected
            for node_id in nodes:
                latency = 20.0 * 1.12**round_num if node_id == "node_5" else 40.0
                for _ in range(4):
                    monitor.record_communication(node_id, latency, success=True)
            for node_id in selected:
                batches.record_performance(node_id, 64, 0.1, compute_seconds=0.02)
                selector.record_contribution(node_id, compute_time=0.02, waiting_time=0.08, success=True)
            clock.advance(1.0)
            metrics = {"loss": 1.0 / (round_num + 1), "accuracy": 0.5, "round_time": 1.0, "samples": 64 * len(selected)}
            orchestrator.post_round_evaluation(round_num, metrics)
        return taken

    proactive, reactive = map(rounds_with_the_rising_link, (AdaptationPolicy.PROACTIVE, AdaptationPolicy.REACTIVE))
    assert proactive < reactive
