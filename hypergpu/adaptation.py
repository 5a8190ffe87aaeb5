"""Adaptation as a library: the coordinator's parts, safe to call from several threads.

The parts in `hypergpu.coordinator.core` are pure and single-threaded. Those here add what a program around them needs:
one lock for a monitor and all that is built on it, and a thread that judges the links in the background.
"""

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog

from hypergpu.coordinator import core

log = structlog.get_logger()

Part = TypeVar("Part")


def synchronized(part: type[Part]) -> type[Part]:
    """Class decorator: every public method and property, inherited ones too, holds the lock of the part's monitor.

    The lock is the monitor's own where the constructor is given a synchronized monitor, so that parts which share a
    monitor share a lock, and there is no order to get wrong.
    """
    for name in dir(part):
        member = inspect.getattr_static(part, name)
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            assert member.fget is not None
            setattr(part, name, property(_holding_lock(member.fget), doc=member.__doc__))
        elif inspect.isfunction(member):
            setattr(part, name, _holding_lock(member))
    construct: Callable[..., None] = part.__init__

    @functools.wraps(construct)
    def with_lock(self: Any, *arguments: Any, **named: Any) -> None:
        self._lock = _shared_lock((*arguments, *named.values()))
        construct(self, *arguments, **named)

    part.__init__ = with_lock  # type: ignore[method-assign]
    return part


def _holding_lock(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def locked(self: Any, *arguments: Any, **named: Any) -> Any:
        with self._lock:
            return method(self, *arguments, **named)

    return locked


def _shared_lock(arguments: Iterable[object]) -> Any:
    monitors = [each for each in arguments if isinstance(each, core.NetworkQualityMonitor)]
    return next((monitor._lock for monitor in monitors if hasattr(monitor, "_lock")), None) or threading.RLock()


@synchronized
class _SynchronizedMonitor(core.NetworkQualityMonitor):
    _lock: Any


class NetworkQualityMonitor(_SynchronizedMonitor):
    """A `hypergpu.coordinator.core.NetworkQualityMonitor` for threads, which can judge the links in the background.

    `start` judges every `update_interval_seconds` until `stop`. As a context manager, the monitor does both:

    >>> with NetworkQualityMonitor(update_interval_seconds=1.0) as monitor:
    ...     monitor.register_node("node_0")
    """

    _stopped = threading.Event()
    _thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """True if the links are judged in the background."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Judge the links in the background. Calling it again has no effect."""
        with self._lock:
            if self.running:
                return
            self._stopped = threading.Event()
            self._thread = threading.Thread(
                target=_judge_periodically,
                args=(weakref.ref(self), self._stopped, self.update_interval_seconds),
                name="network-monitor",
                daemon=True,
            )
            self._thread.start()

    def stop(self) -> None:
        """Stop judging in the background, and wait for the thread to end. Calling it again has no effect."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._stopped.set()
        if thread is not None:
            thread.join()  # without the lock, which the thread may be waiting for

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _judge_periodically(
    reference: "weakref.ref[NetworkQualityMonitor]", stopped: threading.Event, interval_seconds: float
) -> None:
    """Judge until stopped, or until nobody else holds the monitor."""
    while not stopped.wait(interval_seconds):
        monitor = reference()
        if monitor is None:
            return
        try:
            monitor.refresh()
        except Exception:  # the next interval may do better; a dead thread would say nothing at all
            log.exception("links could not be judged")
        del monitor


@synchronized
class AdaptiveBatchController(core.AdaptiveBatchController):
    """A `hypergpu.coordinator.core.AdaptiveBatchController` that several threads may call."""


@synchronized
class DynamicNodeSelector(core.DynamicNodeSelector):
    """A `hypergpu.coordinator.core.DynamicNodeSelector` that several threads may call."""


@synchronized
class AdaptiveOrchestrator(core.AdaptiveOrchestrator):
    """A `hypergpu.coordinator.core.AdaptiveOrchestrator` that several threads may call."""
