"""Process of an outlet beside a real run: `python -m hypergpu.outlets RUN NAME TARGET KEPT`.

Its standard input ends when nothing more is written to the run. It prints a line whenever a delivery begins to fail,
with the reason, and an empty line when one succeeds again.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from hypergpu.common.errors import RunInUse
from hypergpu.outlets.delivery import RETRY_SECONDS, Delivery, fault_of, follow, maker_of

_LOWER_PRIORITY: Final = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Deliver a run until the standard input ends; return 0 if all of it was delivered."""
    directory, name, target, kept = sys.argv[1:] if arguments is None else arguments
    os.nice(_LOWER_PRIORITY)
    tell = _Teller()
    over = threading.Event()
    threading.Thread(target=_wait_for_end, args=(sys.stdin.buffer, over), daemon=True).start()
    try:
        make = partial(Delivery, Path(directory), name, target, maker_of(name), int(kept))
        delivery = _when_free(make, over, tell)
    except Exception as error:
        tell(fault_of(error))
        return 1
    return 0 if follow(delivery, over, tell) else 1


class _Teller:
    """Standard output, which the libraries of outlets do not get."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def __call__(self, fault: str) -> None:
        with contextlib.suppress(OSError):  # the coordinator is gone
            self._file.write(f"{fault}\n")
            self._file.flush()


def _when_free(make: Callable[[], Delivery], over: threading.Event, tell: _Teller) -> Delivery:
    """Return the delivery, as soon as no other process, of a coordinator that died, has it."""
    while True:
        try:
            return make()
        except RunInUse as error:
            if over.wait(RETRY_SECONDS):
                raise
            tell(fault_of(error))


def _wait_for_end(source: BinaryIO, over: threading.Event) -> None:
    source.read()
    over.set()


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # without waiting for threads of libraries
