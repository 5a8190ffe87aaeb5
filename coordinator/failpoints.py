"""Faults that tests turn on at each step of the durable path: named places, and what happens there.

    HYPERGPU_FAILPOINTS="log.sync=crash@3,checkpoint.rename=error" hypergpu coordinator ...

lets the process die when it reaches `log.sync` the third time, and makes each rename of a checkpoint fail. Without the
variable there is nothing to look up. `torn` writes a part of what was to be written and then dies; `short` writes a
part and then fails, as a full disk does.
"""

import errno
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from hypergpu.common.errors import ConfigError

VARIABLE = "HYPERGPU_FAILPOINTS"
_FAULT = re.compile(
    r"([a-z_.]+)=(crash|error|delay|short|torn)(?::(\d{1,9}(?:\.\d{1,9})?))?(?:@(\d{1,18})(?:-(\d{1,18}))?)?", re.ASCII
)
_ENDLESS = 1 << 62


class Point(StrEnum):
    """Place in the durable path, in the order in which a round reaches them."""

    LOG_CREATE = "log.create"
    """Before a new file of the log is made."""
    LOG_DIRECTORY = "log.directory"
    """Before the directory is synced, so that a new file is found."""
    LOG_STEP = "log.step"
    """Before the mean of a round is written."""
    LOG_ROUND = "log.round"
    """Before the record of a closed round is written."""
    LOG_SYNC = "log.sync"
    """Before the log is synced."""
    TELL = "round.tell"
    """The round is on the disk, and nobody was told."""
    TOLD = "round.told"
    """Everybody was told."""
    CHECKPOINT_WRITE = "checkpoint.write"
    """Before each file of a checkpoint is written."""
    CHECKPOINT_SYNC = "checkpoint.sync"
    """Before each file of a checkpoint is synced."""
    CHECKPOINT_RENAME = "checkpoint.rename"
    """Before each file of a checkpoint takes its name."""
    CHECKPOINT_DIRECTORY = "checkpoint.directory"
    """Before the directory is synced, so that the names last."""
    CHECKPOINT_REMOVE = "checkpoint.remove"
    """Before each file of an old checkpoint is removed."""
    LOG_REMOVE = "log.remove"
    """Before each file of the log that checkpoints have replaced is removed."""
    LOG_CUT = "log.cut"
    """Before the torn end of a log is cut off, on resuming."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Fault of a place, from one visit to another."""

    action: str
    """crash, error, delay, short or torn."""
    value: float = 0.5
    """Seconds of a delay; the share of the bytes that a short or torn write writes."""
    first: int = 1
    last: int = _ENDLESS


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Failpoints:
    """Faults by place.

    Args:
        faults: Faults of each place.
        die: Ends the process, or what stands for it.
        sleep: Passes the time of a delay.
    """

    def __init__(
        self,
        faults: Mapping[Point, Sequence[Fault]],
        die: Callable[[], None] = _die,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._faults, self._die, self._sleep = faults, die, sleep
        self.visits: Counter[Point] = Counter()
        """Visits of each place so far."""

    def reach(self, point: Point) -> None:
        """Let the fault of a place happen, if it is due.

        Raises:
            OSError: the fault is an error.
        """
        fault = self._due(point)
        if fault is not None:
            self._inflict(fault, point)

    def _inflict(self, fault: Fault, point: Point) -> None:
        if fault.action == "crash":
            self._die()
        elif fault.action == "delay":
            self._sleep(fault.value)
        else:
            raise OSError(errno.EIO, f"failpoint {point}")

    def reach_write(self, point: Point, nbytes: int, write: Callable[[int], None]) -> None:
        """Let the fault of a place happen where `write` writes that many of the first bytes.

        Raises:
            OSError: the fault is an error or a short write.
        """
        fault = self._due(point)
        if fault is not None and fault.action in ("short", "torn"):
            write(int(min(1.0, fault.value) * nbytes))
            if fault.action == "torn":
                self._die()
            raise OSError(errno.ENOSPC, f"failpoint {point}")
        if fault is not None:
            self._inflict(fault, point)
        write(nbytes)

    def _due(self, point: Point) -> Fault | None:
        self.visits[point] += 1
        visit = self.visits[point]
        return next((each for each in self._faults.get(point, ()) if each.first <= visit <= each.last), None)


def parse(text: str) -> Failpoints | None:
    """Return the faults that a text describes; None if it is empty.

    Raises:
        ConfigError: the text is not valid, or names an unknown place.
    """
    faults: dict[Point, list[Fault]] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        found = _FAULT.fullmatch(part)
        if found is None or found[1] not in tuple(Point):
            raise ConfigError(
                f"{VARIABLE} has {part[:80]!r}; expected PLACE=ACTION[:VALUE][@FIRST[-LAST]] with one of the places "
                f"{', '.join(Point)} and one of the actions crash, error, delay, short, torn"
            )
        first = int(found[4] or 1)
        last = int(found[5] or (first if found[4] else _ENDLESS))
        fault = Fault(found[2], float(found[3] or 0.5), first, last)
        faults.setdefault(Point(found[1]), []).append(fault)
    return Failpoints(faults) if faults else None
