"""Calls at absolute times, precisely: one heap of deadlines behind one kernel timer.

An event loop's own timers are rounded to milliseconds (libuv) or wait for a poll with that resolution; a timer file
descriptor fires within tens of microseconds of an absolute time, so that lateness does not add up.
"""

import asyncio
import ctypes
import os
import struct
import sys
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Final

from hypergpu.common.clock import Clock, monotonic

_CLOCK_MONOTONIC: Final = 1
_TFD_TIMER_ABSTIME: Final = 1
_ITIMERSPEC = struct.Struct("@4l")


class Pacer:
    """Runs callbacks at or after the time they are due, never before, in order of time and then of scheduling.

    `on_late` is told how late each one was, in seconds; `on_paced` is called once, when there first is a network to
    keep pace with.
    """

    def __init__(
        self,
        on_late: Callable[[float], None] | None = None,
        on_paced: Callable[[], None] | None = None,
        clock: Clock = monotonic,
        use_timerfd: bool = True,
    ) -> None:
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._count = 0
        self._clock = clock
        self._on_late = on_late or (lambda _: None)
        self._on_paced = on_paced
        self._loop = asyncio.get_running_loop()
        self._timer = _Timer(self._loop, self._fire, use_timerfd and sys.platform == "linux" and clock is monotonic)

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, due: float, call: Callable[..., object], *args: Any) -> None:
        """Call `call(*args)` at `due`, in seconds on the clock's scale; an infinite time is never."""
        if due == float("inf"):
            return
        heap = self._heap
        if not heap or due < heap[0][0]:
            self._timer.set(due)
        heappush(heap, (due, self._count, call, args))
        self._count += 1

    def begin(self) -> None:
        """There is a network to keep pace with. Before that, coming before others would only cost them time."""
        if self._on_paced is not None:
            self._on_paced()
            self._on_paced = None

    def catch_up(self) -> None:
        """Run what has become due in the midst of other work: a burst of requests must not hold up deliveries."""
        if self._heap and self._heap[0][0] <= self._clock():
            self._fire()

    def close(self) -> None:
        """Forget what is due and let go of the timer."""
        self._heap.clear()
        self._timer.close()

    def _fire(self) -> None:
        heap, clock, on_late = self._heap, self._clock, self._on_late
        while heap:
            late = clock() - heap[0][0]
            if late < 0:
                self._timer.set(heap[0][0])
                return
            _, _, call, args = heappop(heap)
            on_late(late)
            try:
                call(*args)
            except Exception as error:
                # One delivery that fails must not take the others with it.
                self._loop.call_exception_handler({"message": "a delivery failed", "exception": error})


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
        """Fire at `due`, and at no earlier time set before."""
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
        """Never fire again."""
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
