"""The parts of the library under threads, and the monitor that judges by itself."""

import gc
import inspect
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from hypergpu import (
    AdaptiveBatchController,
    AdaptiveOrchestrator,
    ConnectionQuality,
    DynamicNodeSelector,
    NetworkQualityMonitor,
    SystemConfig,
)
from hypergpu.adaptation import synchronized
from hypergpu.common.clock import ManualClock
from hypergpu.coordinator import core

PARTS = (NetworkQualityMonitor, AdaptiveBatchController, DynamicNodeSelector, AdaptiveOrchestrator)


def orchestrator(**named: Any) -> AdaptiveOrchestrator:
    monitor = NetworkQualityMonitor(**named)
    parts = AdaptiveBatchController(monitor), DynamicNodeSelector(monitor)
    return AdaptiveOrchestrator(SystemConfig(), monitor, *parts)


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run `work(index)` in threads that begin at once; raise what the first of them raised."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(count)

    def run(index: int) -> None:
        barrier.wait()
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_eight_threads_lose_no_node_and_no_communication() -> None:
    whole = orchestrator()
    monitor = whole.monitor

    def work(index: int) -> None:
        for number in range(80):
            node = f"node_{index}_{number}"
            whole.register_node(node)
            for _ in range(3):
                monitor.record_communication(node, 20.0, success=True)
            monitor.get_node_profile(node)
            whole.batches.record_performance(node, 64, 0.1)
            whole.selector.record_contribution(node, compute_time=0.1, waiting_time=0.1, success=True)
            if number % 5 == 0:
                monitor.update()
                monitor.get_cluster_health_summary()
                whole.selector.select_nodes([node])
                whole.batches.evaluate_and_adapt([node])

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns as often as they can
    try:
        in_threads(8, work)
    finally:
        sys.setswitchinterval(before)
    health = monitor.get_cluster_health_summary()
    assert health["total_nodes"] == 640
    nodes = [f"node_{index}_{number}" for index in range(8) for number in range(80)]
    assert {profile.communications for profile in monitor.get_node_profiles(nodes)} == {3}
    assert len(whole.batches.get_batch_sizes(nodes)) == 640
    assert {whole.selector.get_node_details(node)["attempts"] for node in nodes} == {1}


@pytest.mark.parametrize("part", PARTS)
def test_every_public_method_and_property_takes_the_lock(part: type) -> None:
    own = {"running", "start", "stop"}
    for name in dir(part):
        member = inspect.getattr_static(part, name)
        function = member.fget if isinstance(member, property) else member
        if not name.startswith("_") and inspect.isfunction(function) and name not in own:
            assert function.__qualname__.startswith(core.__dict__[part.__name__].__name__), name
            assert hasattr(function, "__wrapped__"), f"{part.__name__}.{name} runs without the lock"


def test_parts_of_one_monitor_share_its_lock_and_those_of_others_do_not() -> None:
    one, other = orchestrator(), orchestrator()
    parts: tuple[Any, ...] = (one, one.monitor, one.batches, one.selector)
    locks = {id(part._lock) for part in parts}
    assert len(locks) == 1
    assert id(vars(other)["_lock"]) not in locks
    plain = AdaptiveBatchController(core.NetworkQualityMonitor())
    plain.register_node("a")
    assert plain.get_batch_size("a") == 64


def test_a_method_waits_for_the_thread_that_is_inside() -> None:
    order: list[str] = []
    inside, go_on = threading.Event(), threading.Event()

    class Slow(core.NetworkQualityMonitor):
        def register_node(self, node_id: str) -> None:
            inside.set()
            go_on.wait(10)
            order.append("registered")
            super().register_node(node_id)

    @synchronized
    class Shared(Slow):
        """As the parts of the library are made."""

    monitor = Shared()
    first = threading.Thread(target=monitor.register_node, args=("a",))
    first.start()
    assert inside.wait(10)
    second = threading.Thread(target=lambda: order.append(str(monitor.get_node_quality("a"))))
    second.start()
    second.join(0.05)
    assert order == []
    go_on.set()
    first.join()
    second.join()
    assert order[0] == "registered"
    assert len(order) == 2


def judged(monitor: NetworkQualityMonitor, times: int = 1) -> bool:
    """Wait until the background has judged so often."""
    done, count = threading.Event(), [0]
    refresh = monitor.refresh

    def counted() -> None:
        refresh()
        count[0] += 1
        if count[0] >= times:
            done.set()

    monitor.refresh = counted  # type: ignore[method-assign]
    return done.wait(30)


def test_the_background_opens_alerts_that_nobody_asked_for() -> None:
    clock = ManualClock()
    monitor = NetworkQualityMonitor(0.01, clock=clock)
    monitor.register_node("a")
    for _ in range(20):
        monitor.record_communication("a", 20.0, success=True)
    assert monitor.get_alerts() == []
    clock.advance(10_000)
    with monitor:
        assert monitor.running
        assert judged(monitor)
    assert not monitor.running
    # `_alerts` is what was found so far: asking by `get_alerts` would look again.
    assert [alert.node_id for alert in monitor._alerts.alerts(core.links.Severity.HIGH)] == ["a"]
    assert monitor.update() == {"a": ConnectionQuality.OFFLINE}, "the background takes no change from the orchestrator"


def test_start_and_stop_may_be_repeated_and_stop_ends_the_thread() -> None:
    monitor = NetworkQualityMonitor(0.01)
    monitor.stop()
    for _ in range(2):
        monitor.start()
        monitor.start()
        assert [thread.name for thread in threading.enumerate()].count("network-monitor") == 1
        monitor.stop()
        monitor.stop()
        assert "network-monitor" not in [thread.name for thread in threading.enumerate()]


def test_the_background_survives_an_error_and_goes_on() -> None:
    monitor = NetworkQualityMonitor(0.001)
    calls = [0]
    again = threading.Event()

    def failing() -> None:
        calls[0] += 1
        if calls[0] == 1:
            raise RuntimeError("once")
        again.set()

    monitor.refresh = failing  # type: ignore[method-assign]
    with monitor:
        assert again.wait(30)


def test_a_monitor_that_nobody_holds_is_let_go() -> None:
    monitor = NetworkQualityMonitor(0.001)
    monitor.start()
    thread, gone = monitor._thread, weakref.ref(monitor)
    assert thread is not None
    del monitor
    gc.collect()
    thread.join(30)
    assert gone() is None
