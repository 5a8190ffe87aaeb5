"""Pacer: the real-time driver of the relay. It makes calls at absolute times behind one kernel timer.

An event loop's own timers are rounded to milliseconds (libuv) or wait for a poll with that resolution; a timer file
descriptor fires within tens of microseconds of an absolute time, so that lateness does not add up.
"""

import asyncio
import ctypes
import math
import os
import struct
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

from hypergpu.common.clock import Clock, monotonic
from hypergpu.common.tracing import NO_TRACER, Tracer
from hypergpu.netsim_proxy.io.transports import Transports
from hypergpu.netsim_proxy.link.outcomes import Direction
from hypergpu.netsim_proxy.relay.agenda import Agenda
from hypergpu.netsim_proxy.relay.connection import ConnectionPair
from hypergpu.netsim_proxy.relay.raw_connection import RawConnectionPair

_CLOCK_MONOTONIC: Final = 1
_TFD_TIMER_ABSTIME: Final = 1
T = TypeVar("T")
_ITIMERSPEC = struct.Struct("@4l")


class Pacer:
    """Drives the relay in real time: passes it the clock, carries out its effects, makes its later calls on time.

    Calls are made at or after the time they are due, never before, in order of time and then of scheduling. `on_late`
    is told how late each one was, in seconds; `on_paced` is called once, when there first is a network to keep pace
    with.
    """

    def __init__(
        self,
        on_late: Callable[[float], None] | None = None,
        on_paced: Callable[[], None] | None = None,
        clock: Clock = monotonic,
        use_timerfd: bool = True,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self.agenda = Agenda()
        self.agenda.traces = tracer.is_on
        self.transports = Transports(tracer)
        self._clock = clock
        self._on_late = on_late or (lambda _: None)
        self._on_paced = on_paced
        self._armed_at = math.inf
        self._loop = asyncio.get_running_loop()
        self._timer = _Timer(self._loop, self._fire, use_timerfd and sys.platform == "linux" and clock is monotonic)

    def __len__(self) -> int:
        return len(self.agenda)

    def now(self) -> float:
        """Return the time of the relay's clock, in seconds."""
        return self._clock()

    def at(self, due: float, call: Callable[..., object], *args: Any) -> None:
        """Call `call(now, *args)` at `due`, in seconds on the clock's scale; an infinite time is never."""
        self.agenda.at(due, call, *args)
        self.settle()

    def run(self, call: Callable[..., T], *args: Any) -> T:
        """Call `call(now, *args)`, a method of the relay, and carry out what it asks for."""
        result = call(self._clock(), *args)
        self.settle()
        return result

    def handle(self, pair: ConnectionPair, direction: Direction, data: bytes) -> None:
        """Pass the data that was read to a pair of connections, between calls that become due meanwhile."""
        agenda, clock = self.agenda, self._clock
        calls, is_left = agenda.calls, True
        while is_left:
            now = clock()
            if calls and calls[0][0] <= now:
                self._fire()
                now = clock()
            is_left = pair.handle(now, direction, data)
            data = b""
            if agenda.effects:
                self.transports.carry_out(agenda.take_effects())
            if calls and calls[0][0] < self._armed_at:
                self._arm()

    def hold(self, pair: ConnectionPair | RawConnectionPair, direction: Direction) -> None:
        """Stop reading in `direction`: the receiver is full."""
        pair.readers[direction.ordinal].hold(self)
        self.settle()

    def release(self, pair: ConnectionPair | RawConnectionPair, direction: Direction) -> None:
        """Resume reading in `direction`: the receiver has room."""
        pair.readers[direction.ordinal].release(self)
        self.settle()

    def settle(self) -> None:
        """Carry out the relay's effects, and schedule its next call."""
        agenda = self.agenda
        if agenda.effects:
            self.transports.carry_out(agenda.take_effects())
        if agenda.calls and agenda.calls[0][0] < self._armed_at:
            self._arm()

    def begin(self) -> None:
        """Note that a link now delays data: before that, real-time priority would only cost other processes time."""
        if self._on_paced is not None:
            self._on_paced()
            self._on_paced = None

    def catch_up(self) -> None:
        """Make the calls that became due during other work, so that bursts do not delay deliveries."""
        calls = self.agenda.calls
        if calls and calls[0][0] <= self._clock():
            self._fire()

    def close(self) -> None:
        """Cancel all calls and close the timer."""
        self.agenda.clear()
        self._timer.close()

    def _arm(self) -> None:
        self._armed_at = self.agenda.next_at
        if self._armed_at < math.inf:
            self._timer.set(self._armed_at)

    def _fire(self) -> None:
        agenda, clock, on_late = self.agenda, self._clock, self._on_late
        calls, self._armed_at = agenda.calls, math.inf
        while calls and (late := (now := clock()) - calls[0][0]) >= 0:
            on_late(late)
            try:
                agenda.run_next(now)
                if agenda.effects:
                    self.transports.carry_out(agenda.take_effects())
            except Exception as error:
                # One delivery that fails must not take the others with it.
                self._loop.call_exception_handler({"message": "a delivery failed", "exception": error})
        self.settle()


class _Timer:
    """One absolute deadline: a timerfd, or the loop's timer where there is none."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fire: Callable[[], None], use_timerfd: bool) -> None:
        self._loop, self._fire = loop, fire
        self._fd = -1
        self._handle: asyncio.TimerHandle | None = None
        if use_timerfd:
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd >= 0:
            loop.add_reader(self._fd, self._readable)

    def set(self, due: float) -> None:
        """Fire at `due`, which replaces an earlier setting."""
        if self._fd >= 0:
            # One nanosecond later than the rounding, as a zero would switch the timer off.
            seconds, nanoseconds = divmod(max(int(due * 1e9), 0) + 1, 1_000_000_000)
            self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, _ITIMERSPEC.pack(0, 0, seconds, nanoseconds), None)
            return
        if self._handle is not None:
            self._handle.cancel()
        # The loop's clock need not be ours, and its timers may be early by their resolution.
        delay = max(0.0, due - monotonic())
        self._handle = self._loop.call_later(delay, self._fire)

    def close(self) -> None:
        """Cancel the timer for good."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        elif self._handle is not None:
            self._handle.cancel()

    def _readable(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        self._fire()
