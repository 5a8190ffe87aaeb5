"""Real-time scheduling: the proxy must get a core when a delivery is due."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Final

_REALTIME_PRIORITY: Final = 1
"""Lowest real-time priority: above every ordinary process, below all other real-time ones."""
_SWITCH_SECONDS: Final = 0.0005
"""Longest time that the threads for metrics and control may delay the event loop; Python's default is 5 ms."""


def enable_realtime(realtime: bool) -> bool:
    """Request real-time scheduling for this process and its threads; return whether it was granted.

    It needs root or an `rtprio` limit (`ulimit -r 1`); without them the proxy runs at normal priority. Linux reserves
    5 % of each second for other processes (sched_rt_runtime_us).
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    if not realtime or not hasattr(os, "sched_setscheduler"):
        return False
    with contextlib.suppress(OSError):
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setscheduler(int(thread.name), os.SCHED_FIFO, os.sched_param(_REALTIME_PRIORITY))
        return True
    return False
