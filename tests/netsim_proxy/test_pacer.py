import asyncio
import math
import time

import pytest

from common.clock import ManualClock
from netsim_proxy.lateness import Lateness
from netsim_proxy.pacer import Pacer


@pytest.mark.parametrize("use_timerfd", [True, False])
async def test_calls_come_in_order_and_never_early(use_timerfd: bool) -> None:
    lateness: list[float] = []
    done: list[tuple[int, float]] = []
    pacer = Pacer(lateness.append, use_timerfd=use_timerfd)
    start = time.monotonic()
    last = asyncio.Event()
    for number, due in enumerate([0.03, 0.01, 0.02, 0.01, 0.0]):
        pacer.at(start + due, lambda n=number, d=due: done.append((n, time.monotonic() - start - d)))
    pacer.at(start + 0.04, last.set)
    pacer.at(math.inf, last.set)
    await asyncio.wait_for(last.wait(), 5)
    assert [number for number, _ in done] == [4, 1, 3, 2, 0]
    assert all(late >= 0 for _, late in done)
    assert len(lateness) == 6 and min(lateness) >= 0
    assert len(pacer) == 0
    pacer.close()


async def test_a_call_that_fails_takes_no_other_with_it() -> None:
    pacer = Pacer()
    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
    last = asyncio.Event()
    pacer.at(0.0, lambda: divmod(1, 0))
    pacer.at(0.0, last.set)
    await asyncio.wait_for(last.wait(), 5)
    assert isinstance(errors[0], ZeroDivisionError)
    pacer.close()


async def test_closing_forgets() -> None:
    pacer = Pacer()
    pacer.at(time.monotonic() + 0.01, pytest.fail)
    pacer.close()
    await asyncio.sleep(0.02)


def test_lateness_counts_what_passed_the_bound() -> None:
    clock = ManualClock()
    lateness = Lateness(bound_seconds=0.01, clock=clock)
    for late in (0.0, 0.0001, 0.005, 0.02, 3.0):
        lateness.observe(late)
    assert (lateness.beyond_bound, lateness.worst_seconds, sum(lateness.counts)) == (2, 3.0, 5)
    assert lateness.counts[0] == 2 and lateness.counts[-1] == 1
