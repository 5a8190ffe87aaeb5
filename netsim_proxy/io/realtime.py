"""The operating system's part in punctuality: when a delivery is due, the proxy must get a core."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Final

_REALTIME_PRIORITY: Final = 1
"""The lowest there is: before every ordinary process, after everything else that asked for real time."""
_SWITCH_SECONDS: Final = 0.0005
"""How long the threads that serve metrics and control may keep the loop waiting; Python's default is 5 ms."""


def enable_realtime(realtime: bool) -> bool:
    """Ask for what lets this process and its threads run as soon as they are due; returns whether it is real time.

    Real time needs root or an `rtprio` limit (`ulimit -r 1`); where it may not be had, all goes on as before. Linux
    leaves 5 % of each second to others whatever a real-time process does (sched_rt_runtime_us).
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    if not realtime or not hasattr(os, "sched_setscheduler"):
        return False
    with contextlib.suppress(OSError):
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setscheduler(int(thread.name), os.SCHED_FIFO, os.sched_param(_REALTIME_PRIORITY))
        return True
    return False
