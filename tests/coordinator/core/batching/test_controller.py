"""Batch sizes against clusters whose costs are known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.clock import ManualClock
from hypergpu.common.config import BatchConfig
from hypergpu.common.errors import InvalidInput, UnknownName
from hypergpu.coordinator.core.batching import AdaptiveBatchController, BatchReason, BatchSizeStrategy
from hypergpu.coordinator.core.batching.controller import AdaptationLimits
from hypergpu.coordinator.core.links import NetworkQualityMonitor
from tests.examples import examples

NODES = ["a", "b", "c", "d"]


def controller_of(
    strategy: BatchSizeStrategy, nodes: list[str] = NODES, *, steps: int = 1, **settings: object
) -> tuple[NetworkQualityMonitor, AdaptiveBatchController]:
    monitor = NetworkQualityMonitor(clock=ManualClock())
    config = BatchConfig.model_validate(settings)
    controller = AdaptiveBatchController(monitor, 64, strategy, config=config, local_steps=steps)
    for node in nodes:
        monitor.register_node(node)
        controller.register_node(node)
    return monitor, controller


def measured(
    monitor: NetworkQualityMonitor,
    controller: AdaptiveBatchController,
    node: str,
    *,
    communication: float,
    per_sample: float,
    rounds: int = 4,
) -> None:
    """Rounds of a node whose step costs exactly `per_sample` seconds a sample."""
    for _ in range(rounds):
        steps, size = controller.local_steps, controller.get_batch_size(node)
        compute = steps * size * per_sample
        monitor.record_round_communication(node, communication)
        controller.record_performance(node, steps * size, communication + compute, steps=steps, compute_seconds=compute)


def test_fixed_is_the_baseline_whatever_is_measured() -> None:
    monitor, controller = controller_of(BatchSizeStrategy.FIXED, min_batch_size=128)
    for node, communication in zip(NODES, (0.01, 0.1, 0.5, 2.0), strict=True):
        measured(monitor, controller, node, communication=communication, per_sample=1e-3)
    assert controller.evaluate_and_adapt() == {}
    assert controller.get_batch_sizes(NODES) == dict.fromkeys(NODES, 64)
    assert controller.learning_rate_factor == 1.0


def test_latency_moves_sizes_both_ways_and_gradually() -> None:
    monitor, controller = controller_of(BatchSizeStrategy.LATENCY_BASED)
    for node, latency in zip(NODES, (2.0, 25.0, 100.0, 400.0), strict=True):
        for _ in range(20):
            monitor.record_communication(node, latency, True)
    changes = controller.evaluate_and_adapt(limits=AdaptationLimits(step=1.5))
    assert set(changes) == {"a", "c", "d"}
    assert (changes["a"].new, changes["a"].reason) == (43, BatchReason.LATENCY_LOW)
    assert (changes["d"].new, changes["d"].reason) == (96, BatchReason.LATENCY_HIGH)
    assert changes["d"].figures["latency_ms"] == pytest.approx(400.0)
    for _ in range(10):
        controller.evaluate_and_adapt()
    sizes = controller.get_batch_sizes(NODES)
    assert sizes == {"a": 32, "b": 64, "c": 128, "d": 256}


def test_throughput_keeps_the_direction_while_it_improves_and_turns_when_it_degrades() -> None:
    _, controller = controller_of(BatchSizeStrategy.THROUGHPUT_BASED, ["a"])

    def throughput(rate: float) -> None:
        controller.record_performance("a", int(rate), 1.0)

    sizes = []
    for rate in (100, 150, 220, 300):
        throughput(rate)
        controller.evaluate_and_adapt()
        sizes.append(controller.get_batch_size("a"))
    assert sizes == sorted(sizes)
    assert sizes[-1] > 64
    throughput(100)
    change = controller.evaluate_and_adapt()["a"]
    assert change.reason is BatchReason.THROUGHPUT_DEGRADING
    assert change.new < sizes[-1]
    assert change.figures["samples_per_second"] < change.figures["samples_per_second_before"]


def test_throughput_takes_a_first_step_and_uses_what_it_measured_once() -> None:
    _, controller = controller_of(BatchSizeStrategy.THROUGHPUT_BASED, ["a"])
    controller.record_performance("a", 100, 1.0)
    assert controller.evaluate_and_adapt()["a"].reason is BatchReason.PROBES_THROUGHPUT
    assert controller.evaluate_and_adapt() == {}
    controller.record_performance("a", 150, 1.0)
    assert controller.evaluate_and_adapt()["a"].reason is BatchReason.THROUGHPUT_IMPROVING
    assert controller.evaluate_and_adapt() == {}


@pytest.mark.parametrize("strategy", [BatchSizeStrategy.LATENCY_BASED, BatchSizeStrategy.GOODPUT])
@pytest.mark.parametrize("step", [1.05, 1.25, 4.0])
def test_powers_of_two_move_under_every_policy(strategy: BatchSizeStrategy, step: float) -> None:
    monitor, controller = controller_of(strategy, ["a"], powers_of_two=True, min_batch_size=24)
    for _ in range(12):
        monitor.record_communication("a", 400.0, True)
        measured(monitor, controller, "a", communication=0.5, per_sample=1e-6, rounds=1)
        controller.evaluate_and_adapt(limits=AdaptationLimits(step=step))
    size = controller.get_batch_size("a")
    assert size >= 256
    assert math.log2(size).is_integer()
    for _ in range(70):
        monitor.record_communication("a", 1.0, True)
    if strategy is BatchSizeStrategy.LATENCY_BASED:
        for _ in range(12):
            controller.evaluate_and_adapt(limits=AdaptationLimits(step=step))
        assert controller.get_batch_size("a") == 32  # the least power of two that the minimum allows


def test_goodput_does_not_speak_of_idle_time_where_nobody_waits() -> None:
    monitor, controller = controller_of(BatchSizeStrategy.GOODPUT, ["a"])
    measured(monitor, controller, "a", communication=0.5, per_sample=1e-5)
    change = controller.evaluate_and_adapt(limits=AdaptationLimits(step=2.0))["a"]
    assert change.new > change.old
    assert change.reason is BatchReason.MORE_PROGRESS_PER_SECOND
    assert change.figures["idle_seconds"] == pytest.approx(0.0)


def test_hybrid_lies_between_its_two_halves() -> None:
    monitor, controller = controller_of(BatchSizeStrategy.HYBRID, ["a"])
    for _ in range(20):
        monitor.record_communication("a", 225.0, True)  # latency alone wants 192
    for _ in range(3):
        controller.record_performance("a", 640, 1.0)  # throughput alone tries a quarter more
    controller.evaluate_and_adapt(limits=AdaptationLimits(step=10.0))
    assert controller.get_batch_size("a") == round(0.6 * 192 + 0.4 * 80)


def test_goodput_gives_equal_finish_times_at_the_barrier() -> None:
    monitor, controller = controller_of(BatchSizeStrategy.GOODPUT, max_batch_size=4096)
    communications, costs = (0.02, 0.02, 0.02, 0.3), (1e-3, 2e-3, 4e-3, 1e-3)
    for _ in range(6):
        for node, communication, cost in zip(NODES, communications, costs, strict=True):
            measured(monitor, controller, node, communication=communication, per_sample=cost)
        controller.evaluate_and_adapt(limits=AdaptationLimits(step=2.0, gain=0.0))
    sizes = controller.get_batch_sizes(NODES)
    finish = [e + c * sizes[node] for node, e, c in zip(NODES, communications, costs, strict=True)]
    assert max(finish) / min(finish) < 1.15
    assert sizes["a"] > sizes["b"] > sizes["c"]


def test_goodput_says_whether_a_node_fills_idle_time_or_shortens_the_round() -> None:
    monitor, controller = controller_of(BatchSizeStrategy.GOODPUT, ["fast", "slow"])
    measured(monitor, controller, "fast", communication=0.01, per_sample=1e-4)
    measured(monitor, controller, "slow", communication=0.01, per_sample=1e-2)
    changes = controller.evaluate_and_adapt(limits=AdaptationLimits(step=1.5, gain=0.0))
    assert changes["fast"].reason is BatchReason.FILLS_IDLE_TIME
    assert changes["fast"].figures["idle_seconds"] > 0
    if "slow" in changes and changes["slow"].new < 64:
        assert changes["slow"].reason is BatchReason.SHORTENS_ROUND


def test_goodput_takes_more_local_steps_where_communication_dominates_and_not_where_computing_does() -> None:
    for communication, per_sample, more in ((0.5, 1e-5, True), (0.001, 1e-2, False)):
        monitor, controller = controller_of(BatchSizeStrategy.GOODPUT, steps=10)
        for _ in range(6):
            for node in NODES:
                measured(monitor, controller, node, communication=communication, per_sample=per_sample)
            controller.evaluate_and_adapt(limits=AdaptationLimits(step=2.0))
        assert (controller.local_steps > 15) is more


def test_plain_gradients_stay_plain_gradients() -> None:
    monitor, controller = controller_of(BatchSizeStrategy.GOODPUT, steps=1)
    for node in NODES:
        measured(monitor, controller, node, communication=1.0, per_sample=1e-5)
    for _ in range(5):
        controller.evaluate_and_adapt(limits=AdaptationLimits(step=4.0))
    assert controller.local_steps == 1


def test_limits_of_the_card_and_powers_of_two_are_kept() -> None:
    monitor, controller = controller_of(BatchSizeStrategy.GOODPUT, powers_of_two=True)
    controller.register_node("a", largest_batch=100)
    for _ in range(8):
        for node in NODES:
            measured(monitor, controller, node, communication=0.5, per_sample=1e-6)
        controller.evaluate_and_adapt(limits=AdaptationLimits(step=4.0))
    sizes = controller.get_batch_sizes(NODES)
    assert sizes["a"] == 64
    assert all(math.log2(size).is_integer() for size in sizes.values())
    assert max(sizes.values()) == 512


def test_strategies_are_compared_without_a_trace() -> None:
    monitor, controller = controller_of(BatchSizeStrategy.HYBRID)
    for node in NODES:
        measured(monitor, controller, node, communication=0.3, per_sample=1e-4)
        monitor.record_communication(node, 150.0, True)
    before = controller.get_adaptation_summary()
    answers = controller.compare_strategies("a")
    assert set(answers) == {str(each) for each in BatchSizeStrategy}
    assert answers["fixed"]["batch_size"] == 64
    goodput, fixed = (answers[name]["samples_per_second"] for name in ("goodput", "fixed"))
    assert goodput is not None
    assert fixed is not None
    assert goodput > fixed
    assert controller.get_adaptation_summary() == before


def test_nothing_is_expected_of_a_node_that_nobody_measured() -> None:
    monitor, controller = controller_of(BatchSizeStrategy.HYBRID)
    measured(monitor, controller, "b", communication=0.3, per_sample=1e-4)
    monitor.record_communication("a", 250.0, True)
    for proposal in controller.compare_strategies("a").values():
        assert (proposal["round_seconds"], proposal["samples_per_second"]) == (None, None)
        assert proposal["batch_size"] is not None
    monitor.record_round_communication("a", 0.3)
    assert controller.compare_strategies("a")["fixed"]["round_seconds"] is None, "its card is not known"
    controller.record_performance("a", 64, 0.4)
    assert controller.compare_strategies("a")["fixed"]["round_seconds"] == pytest.approx(0.4, rel=0.5)


def test_communication_counts_once_where_computing_is_not_told() -> None:
    monitor, controller = controller_of(BatchSizeStrategy.FIXED)
    for _ in range(20):
        for node in NODES:
            monitor.record_round_communication(node, 0.3)
            controller.record_performance(node, 64, 0.4)
    seconds = controller.compare_strategies("a")["fixed"]["round_seconds"]
    assert seconds == pytest.approx(0.4, rel=0.05)


def test_a_cluster_that_nobody_measured_keeps_its_sizes() -> None:
    for strategy in BatchSizeStrategy:
        _, controller = controller_of(strategy)
        assert controller.evaluate_and_adapt() == {}
        assert controller.evaluate_and_adapt([]) == {}


def test_bad_input() -> None:
    monitor, controller = controller_of(BatchSizeStrategy.HYBRID)
    with pytest.raises(UnknownName):
        controller.get_batch_size("nobody")
    with pytest.raises(InvalidInput):
        controller.record_performance("a", 10, math.nan)
    with pytest.raises(InvalidInput):
        controller.record_performance("a", -1, 1.0)
    with pytest.raises(InvalidInput):
        AdaptiveBatchController(monitor, 0)
    controller.record_performance("a", 64, 0.0)  # a clock that stands still
    controller.evaluate_and_adapt()


@examples(40)
@given(
    st.sampled_from(list(BatchSizeStrategy)),
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10), st.integers(0, 10_000)), min_size=4, max_size=24),
)
def test_sizes_stay_within_their_bounds(strategy: BatchSizeStrategy, rounds: list[tuple[float, float, int]]) -> None:
    monitor, controller = controller_of(strategy, steps=5)
    for at, (communication, compute, samples) in enumerate(rounds):
        node = NODES[at % 4]
        monitor.record_round_communication(node, communication)
        controller.record_performance(node, samples, communication + compute, steps=5, compute_seconds=compute)
        controller.evaluate_and_adapt()
        assert all(16 <= size <= 512 for size in controller.get_batch_sizes(NODES).values())
        assert 2 <= controller.local_steps <= 100
