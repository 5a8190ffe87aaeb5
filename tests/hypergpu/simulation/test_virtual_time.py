import math

from hypergpu.simulation.virtual_time import VirtualTime


def test_calls_run_in_order_of_time_then_of_scheduling() -> None:
    time, seen = VirtualTime(), []
    for due, name in ((2.0, "c"), (1.0, "a"), (1.0, "b")):
        time.at(due, lambda name=name: seen.append((time.now, name)))
    time.run()
    assert seen == [(1.0, "a"), (1.0, "b"), (2.0, "c")]


def test_what_is_due_in_the_past_runs_now_and_what_is_never_due_does_not_run() -> None:
    time, seen = VirtualTime(), []
    time.at(5.0, time.at, 1.0, lambda: seen.append(time.now))
    time.at(math.inf, seen.append, "never")
    time.run()
    assert seen == [5.0]


def test_it_stops_when_told_and_at_the_time_it_is_given() -> None:
    time = VirtualTime()
    seen: list[int] = []
    time.at(1.0, seen.append, 1)
    time.at(3.0, seen.append, 3)
    time.run(until=2.0)
    assert (seen, time.now) == ([1], 2.0)
    time.at(2.5, time.stop)
    time.run()
    assert (seen, time.now) == ([1], 2.5)
