import asyncio
import math
import os
import sys
import time
from typing import Any, cast
from unittest.mock import Mock, patch

import pytest
from hpack import Encoder

from hypergpu.common.clock import ManualClock
from hypergpu.netsim_proxy.io.lateness import DeliveryLateness
from hypergpu.netsim_proxy.io.link_registry import LinkRegistry
from hypergpu.netsim_proxy.io.pacer import Pacer
from hypergpu.netsim_proxy.io.realtime import enable_realtime
from hypergpu.netsim_proxy.link.outcomes import DOWN, UP
from hypergpu.netsim_proxy.link.profiles import find_profile
from hypergpu.netsim_proxy.relay import http2
from hypergpu.netsim_proxy.relay.connection import ConnectionPair
from hypergpu.netsim_proxy.relay.effects import Write
from hypergpu.netsim_proxy.relay.paced_link import PacedLink
from tests.netsim_proxy.virtual import Wire
from tests.patience import patience


@pytest.mark.parametrize("use_timerfd", [True, False])
async def test_calls_come_in_order_and_never_early(use_timerfd: bool) -> None:
    lateness: list[float] = []
    done: list[tuple[int, float]] = []
    pacer = Pacer(lateness.append, use_timerfd=use_timerfd)
    start = time.monotonic()
    last = asyncio.Event()
    for number, due in enumerate([0.03, 0.01, 0.02, 0.01, 0.0]):
        pacer.at(start + due, lambda _, n=number, d=due: done.append((n, time.monotonic() - start - d)))
    pacer.at(start + 0.04, lambda _: last.set())
    pacer.at(math.inf, lambda _: last.set())
    await asyncio.wait_for(last.wait(), patience(30))
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
    pacer.at(0.0, lambda _: divmod(1, 0))
    pacer.at(0.0, lambda _: last.set())
    await asyncio.wait_for(last.wait(), patience(30))
    assert isinstance(errors[0], ZeroDivisionError)
    pacer.close()


async def test_what_was_asked_for_before_a_call_failed_is_still_done() -> None:
    clock, wire = ManualClock(), Wire()
    pacer = Pacer(clock=clock)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    pacer.transports.add(1, lambda: None)
    pacer.transports.attach(1, DOWN, cast("Any", wire))

    def fail(_: float) -> None:
        pacer.agenda.effects.append(Write(1, UP, b"first"))
        raise ValueError

    pacer.at(1.0, fail)
    clock.now = 1.0
    pacer.catch_up()
    assert wire.writes == [(0.0, b"first")]
    pacer.close()


async def test_closing_forgets() -> None:
    clock = ManualClock()
    pacer = Pacer(clock=clock)
    pacer.at(0.01, pytest.fail)
    pacer.close()
    clock.now = 0.02
    pacer.catch_up()


async def test_what_became_due_runs_in_the_midst_of_other_work() -> None:
    clock = ManualClock()
    done: list[float] = []
    pacer = Pacer(clock=clock)
    for due in (1.0, 2.0, 3.0):
        pacer.at(due, done.append)
    pacer.catch_up()
    assert not done
    clock.now = 2.5
    pacer.catch_up()
    assert done == [2.5, 2.5]
    pacer.close()


async def test_a_network_is_kept_pace_with_from_the_first_link_that_does_something() -> None:
    began = Mock()
    pacer = Pacer(on_paced=began)
    ports = LinkRegistry(pacer, find_profile("direct"), seed=1)
    ports.of("a")
    began.assert_not_called()
    ports.set_profile("a", find_profile("good"))
    ports.set_profile("b", find_profile("poor"))
    began.assert_called_once()
    pacer.close()


async def test_a_burst_of_requests_does_not_hold_up_what_is_due() -> None:
    pacer = Pacer()
    links = LinkRegistry(pacer, find_profile("good"), seed=1)
    pair = ConnectionPair(links, pacer.agenda, 1)
    seen: list[int] = []
    request = Encoder().encode([(":method", "POST"), (":path", "/a.B/C")], huffman=False)
    burst = http2.frame(http2.SETTINGS, 0, 0, b"") + b"".join(
        http2.header_frames(number, request, True, http2.DEFAULT_MAX_FRAME_BYTES) for number in range(1, 100, 2)
    )
    find = links.find

    def due_at_the_third(now: float, name: str) -> PacedLink:
        if pair.last_seen_id == 5:
            pacer.agenda.at(0.0, lambda _: seen.append(pair.last_seen_id))
        return find(now, name)

    with patch.object(links, "find", due_at_the_third):
        pacer.handle(pair, UP, burst)
    assert pair.last_seen_id == 99, "the whole burst was taken in"
    assert seen and seen[0] <= 9
    pacer.close()


def test_lateness_counts_what_passed_the_bound() -> None:
    clock = ManualClock()
    lateness = DeliveryLateness(bound_seconds=0.01, clock=clock)
    for late in (0.0, 0.0001, 0.005, 0.02, 3.0):
        lateness.observe(late)
    assert (lateness.beyond_bound, lateness.worst_seconds, sum(lateness.counts)) == (2, 3.0, 5)
    assert lateness.counts[0] == 2 and lateness.counts[-1] == 1


@pytest.mark.parametrize("allowed", [True, False])
def test_real_time_is_asked_for_and_done_without(allowed: bool) -> None:
    before = sys.getswitchinterval()
    try:
        with patch.object(
            os, "sched_setscheduler", side_effect=None if allowed else PermissionError, create=True
        ) as ask:
            assert enable_realtime(realtime=True) is allowed
            assert not enable_realtime(realtime=False)
        ask.assert_called()
        assert sys.getswitchinterval() < before
    finally:
        sys.setswitchinterval(before)
