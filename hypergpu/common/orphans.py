"""End of a process with the one that started it."""

import ctypes
import os
import signal
import sys
from collections.abc import MutableMapping
from typing import Final

_VARIABLE: Final = "HYPERGPU_DIE_WITH_PARENT"
_PR_SET_PDEATHSIG: Final = 1


def dying_with_this_process(with_signal: signal.Signals) -> dict[str, str]:
    """Return variables for a child, which let it get a signal when this process dies.

    The child itself asks the kernel for it: code that runs in a child before `exec` may deadlock if this process has
    threads, such as those of gRPC.
    """
    return {_VARIABLE: f"{os.getpid()} {int(with_signal)}"}


def die_with_parent(environment: MutableMapping[str, str]) -> None:
    """Make the kernel signal this process when its parent dies, if the parent asked for it; only Linux can do it."""
    asked = environment.pop(_VARIABLE, "").split()
    if len(asked) != 2 or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(asked[1]))
    if os.getppid() != int(asked[0]):  # it died before the call
        os._exit(1)
