"""Beginning and end of a program beside a real run: the lowest priority, and an end when the coordinator is gone."""

import os
import sys
import threading
from collections.abc import Callable
from typing import BinaryIO, Final

from hypergpu.coordinator.program_beside import LENGTH_BYTES

_LOWEST_PRIORITY: Final = 19
_ORPHANED: Final = 3
"""Exit code after the end of the coordinator."""


def given() -> bytes:
    """Return what the coordinator wrote to the standard input, whose end is the end of this process from now on."""
    os.nice(_LOWEST_PRIORITY)
    source = sys.stdin.buffer
    content = source.read(int.from_bytes(source.read(LENGTH_BYTES), "big"))
    threading.Thread(target=_end_with, args=(source,), daemon=True).start()
    return content


def run_and_leave(main: Callable[[], int]) -> None:
    """Run a program and end the process, without waiting for the thread that reads."""
    code = main()
    sys.stdout.flush()
    os._exit(code)


def _end_with(source: BinaryIO) -> None:
    source.read()
    os._exit(_ORPHANED)
