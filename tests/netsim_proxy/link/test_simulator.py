import time
from typing import Any

import pytest

from hypergpu import NetworkEvent, NetworkSimulator
from hypergpu.common.clock import ManualClock
from hypergpu.common.errors import InvalidInput, UnknownName
from hypergpu.netsim_proxy.link.regions import round_trip_ms


def test_one_communication_is_one_round_trip_in_milliseconds() -> None:
    simulator = NetworkSimulator()
    simulator.set_node_profile("node_1", "good")
    for _ in range(50):
        success, latency, message = simulator.simulate_communication("node_1", {"gradient": 1})
        assert 10 <= latency <= 50.1 or not success
        assert message == ({"gradient": 1} if success else None)
    success, latency, _ = NetworkSimulator(seed=1).simulate_communication("any", "hello")
    assert success
    assert 50 <= latency <= 150.1


def test_an_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'average'"):
        NetworkSimulator("avrage")
    with pytest.raises(UnknownName, match="did you mean 'poor'"):
        NetworkSimulator().set_node_profile("a", "pooor")
    with pytest.raises(UnknownName, match="did you mean 'poor'"):
        NetworkSimulator().schedule_event(NetworkEvent("profile_change", "a", new_profile="pooor"))


def test_a_region_adds_its_distance_to_the_profile_and_can_be_taken_away() -> None:
    simulator = NetworkSimulator("perfect", clock=ManualClock(), upstream_region="us-east")
    distance = round_trip_ms("eu-west", "us-east")
    assert distance > 50

    def latencies() -> list[float]:
        return [simulator.simulate_communication("a", "x")[1] for _ in range(20)]

    simulator.set_node_region("a", "eu-west")
    assert all(distance <= latency <= distance + 1.1 for latency in latencies())
    assert simulator.get_node_metrics("a")["region"] == "eu-west"
    simulator.set_node_profile("a", "good")  # the node stays where it is
    assert all(distance + 10 <= latency <= distance + 50.1 for latency in latencies())
    simulator.inject_event(NetworkEvent("profile_change", "a", new_profile="perfect"))
    assert all(distance <= latency <= distance + 1.1 for latency in latencies())
    simulator.set_node_profile("a", "perfect", region="us-east")
    assert all(1 <= latency <= 2.1 for latency in latencies()), "within a region it is 1 ms"
    simulator.set_node_region("a", "")
    assert all(latency <= 1.1 for latency in latencies())
    assert simulator.simulate_communication("elsewhere", "x")[1] <= 1.1
    assert simulator.get_node_metrics("elsewhere")["region"] == ""


@pytest.mark.parametrize("event_type", ["limit_time", "slow_close"])
def test_an_event_without_effect_is_refused(event_type: str) -> None:
    simulator = NetworkSimulator("perfect", clock=ManualClock())
    event = NetworkEvent(event_type, "a", close_after_seconds=1.0)
    for give in (simulator.inject_event, simulator.schedule_event):
        with pytest.raises(InvalidInput, match=f"{event_type} has no effect in NetworkSimulator"):
            give(event)
    assert simulator.get_node_metrics("a")["active_events"] == []


def test_an_unknown_region_names_the_nearest_and_changes_nothing() -> None:
    simulator = NetworkSimulator("perfect", clock=ManualClock())
    with pytest.raises(UnknownName, match="did you mean 'eu-west'"):
        simulator.set_node_region("a", "eu-wset")
    with pytest.raises(UnknownName, match="did you mean 'us-east'"):
        NetworkSimulator(upstream_region="us-eats")
    assert simulator.simulate_communication("a", "x")[1] <= 1.1
    assert simulator.get_node_metrics("a")["region"] == ""


def test_the_seed_decides_and_other_nodes_do_not() -> None:
    def run(seed: int, noise: bool) -> list[tuple[bool, float, str | None]]:
        simulator = NetworkSimulator("unstable", seed=seed, clock=ManualClock())
        out = []
        for _ in range(100):
            if noise:
                simulator.simulate_communication("other", "x" * 1000)
            out.append(simulator.simulate_communication("node", "x"))
        return out

    assert run(1, noise=False) == run(1, noise=True)
    assert run(1, noise=False) != run(2, noise=False)


def test_big_messages_take_as_long_as_the_bandwidth_and_do_not_queue_behind_one_another() -> None:
    simulator = NetworkSimulator("poor", seed=1, clock=ManualClock())
    times = [
        latency
        for success, latency, _ in (simulator.simulate_communication("n", bytes(1_250_000)) for _ in range(20))
        if success
    ]
    assert all(1150 <= latency <= 1301 for latency in times)


def test_retries_win_and_say_how_many_tries_it_took() -> None:
    simulator = NetworkSimulator("unstable", seed=3, clock=ManualClock())
    outcomes = [simulator.simulate_with_retry("n", "x", max_retries=3) for _ in range(1000)]
    assert sum(success for success, *_ in outcomes) >= 998
    tries = [attempts for *_, attempts in outcomes]
    assert sum(tries) / 1000 == pytest.approx(1 / 0.9, abs=0.04)
    once = [latency for _, latency, _, attempts in outcomes if attempts == 1]
    more = [latency for _, latency, _, attempts in outcomes if attempts > 1]
    assert max(once) < 501
    assert min(more) > 300  # a timeout and a wait at the least
    metrics = simulator.get_node_metrics("n")
    assert metrics["retries"] == sum(tries) - 1000
    assert metrics["communications"] == sum(tries)


def test_a_retry_that_cannot_win_gives_up() -> None:
    simulator = NetworkSimulator(seed=3, clock=ManualClock())
    simulator.inject_event(NetworkEvent("disconnect", "n"))
    assert simulator.simulate_with_retry("n", "x", max_retries=2)[0::3] == (False, 3)
    assert simulator.simulate_with_retry("n", "x", max_retries=0)[3] == 1


def test_a_latency_spike_ends_by_the_clock() -> None:
    clock = ManualClock()
    simulator = NetworkSimulator("perfect", clock=clock)
    simulator.set_node_profile("n", "average")
    simulator.inject_latency_spike("n", duration_seconds=5.0)
    for _ in range(200):
        success, latency, _ = simulator.simulate_communication("n", "x")
        assert latency >= 250 or not success
    clock.advance(5.0)
    outcomes = [simulator.simulate_communication("n", "x") for _ in range(20)]
    assert all(latency <= 151 for success, latency, _ in outcomes if success)
    assert simulator.get_node_metrics("n")["state"] == "up"


def test_a_scheduled_event_happens_at_its_time() -> None:
    clock = ManualClock()
    simulator = NetworkSimulator("good", clock=clock)
    simulator.schedule_event(
        NetworkEvent(event_type="profile_change", target_node="node_2", new_profile="poor", scheduled_time=10.0)
    )
    clock.advance(9.9)
    assert simulator.get_node_metrics("node_2")["profile"] == "good"
    clock.advance(0.1)
    assert simulator.get_node_metrics("node_2")["profile"] == "poor"
    assert simulator.get_node_metrics("node_1")["profile"] == "good"


@pytest.mark.parametrize("since", ["epoch", "clock", "start", "none"])
def test_times_of_events_may_be_of_any_usual_clock(since: str, eventually: Any) -> None:
    simulator = NetworkSimulator("good")
    due = {"epoch": time.time(), "clock": time.monotonic(), "start": 0.0, "none": None}[since]
    simulator.schedule_event(NetworkEvent("profile_change", "n", new_profile="poor", scheduled_time=due))
    if due is not None:
        simulator.schedule_event(NetworkEvent("profile_change", "m", new_profile="poor", scheduled_time=due + 60))
    eventually(lambda: simulator.get_node_metrics("n")["profile"] == "poor")
    assert simulator.get_node_metrics("m")["profile"] == "good"


def test_events_by_round_and_for_all_nodes_also_those_to_come() -> None:
    simulator = NetworkSimulator("good", clock=ManualClock())
    simulator.get_node_metrics("early")
    simulator.schedule_event(NetworkEvent("partition", nodes=("*",), scheduled_round=3))
    simulator.announce_round(2)
    assert simulator.get_node_metrics("early")["state"] == "up"
    simulator.announce_round(3)
    assert simulator.get_node_metrics("early")["state"] == "partitioned"
    assert simulator.simulate_communication("late", "x")[0] is False
    simulator.inject_event(NetworkEvent("recovery"))
    assert simulator.get_node_metrics("late")["state"] == "up"
    assert simulator.get_node_metrics("new")["state"] == "up"


def test_metrics_sum_up_what_happened() -> None:
    simulator = NetworkSimulator("unstable", seed=5, clock=ManualClock())
    outcomes = [simulator.simulate_communication("n", "1234") for _ in range(400)]
    times = [latency for success, latency, _ in outcomes if success]
    metrics = simulator.get_node_metrics("n")
    assert metrics["communications"] == 400
    assert metrics["failures"] == 400 - len(times)
    assert metrics["packet_loss"] == pytest.approx(1 - len(times) / 400)
    assert metrics["mean_latency_ms"] == pytest.approx(sum(times) / len(times))
    assert metrics["min_latency_ms"] == min(times)
    assert metrics["max_latency_ms"] == max(times)
