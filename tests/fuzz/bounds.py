"""Bounds of a call in a test: its time, and the memory that it may ask for."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

CPU_SECONDS: Final = 5.0
MEMORY_BYTES: Final = 1 << 30
_PAGE: Final = resource.getpagesize()


class TooLong(BaseException):
    """A call that took longer than it may; no `except Exception` hides it."""


@contextmanager
def bounded(cpu_seconds: float = CPU_SECONDS, memory_bytes: int = MEMORY_BYTES) -> Iterator[None]:
    """Raise TooLong in a block that computes longer, and let it run out of memory where it allocates more."""
    _, hard = limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE
    resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes, hard))
    before = signal.signal(signal.SIGVTALRM, _raise)
    signal.setitimer(signal.ITIMER_VIRTUAL, cpu_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _raise(number: int, frame: object) -> None:
    raise TooLong(f"more than {CPU_SECONDS:g} s of computing")
