import math
from heapq import heappop, heappush

from hypothesis import given
from hypothesis import strategies as st

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


@given(st.lists(st.tuples(st.floats(0, 0.1), st.lists(st.floats(-0.05, 0.05), max_size=3)), max_size=20))
def test_what_calls_schedule_is_put_in_its_place_too(plan: list[tuple[float, list[float]]]) -> None:
    """Each call schedules others, some of them in the past or at once: the order is that of one heap."""
    time, seen = VirtualTime(), []

    def run(number: int, more: list[float]) -> None:
        seen.append((time.now, number))
        for at, wait in enumerate(more):
            time.at(time.now + wait, run, 100 * number + at, [])

    for number, (due, more) in enumerate(plan, 1):
        time.at(due, run, number, more)
    time.run()

    heap: list[tuple[float, int, int, list[float]]] = []
    count, now, expected = 0, 0.0, []
    for number, (due, more) in enumerate(plan, 1):
        count += 1
        heappush(heap, (due, count, number, more))
    while heap:
        due, _, number, more = heappop(heap)
        now = max(now, due)
        expected.append((now, number))
        for at, wait in enumerate(more):
            count += 1
            heappush(heap, (now + wait, count, 100 * number + at, []))
    assert seen == expected
