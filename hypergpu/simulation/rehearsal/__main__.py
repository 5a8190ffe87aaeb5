"""Process of a rehearsal beside a real run: reads a request, prints the result as JSON.

It runs at the lowest priority, on one thread, and ends when its standard input does: then the coordinator is gone.
"""

import os
import pickle
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final

from pydantic import TypeAdapter

from hypergpu.common.errors import HyperGPUError
from hypergpu.coordinator.core.rehearsal import RehearsalRequest, RehearsalResult
from hypergpu.coordinator.rehearsing import LENGTH_BYTES
from hypergpu.simulation.fork.state import read_state
from hypergpu.simulation.rehearsal.forecasts import Rehearsal

_LOWEST_PRIORITY: Final = 19
_ORPHANED: Final = 3
"""Exit code after the end of the coordinator."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the rehearsal that the standard input asks for."""
    (run_dir,) = sys.argv[1:] if arguments is None else arguments
    os.nice(_LOWEST_PRIORITY)
    request, adaptation = _read(sys.stdin.buffer)
    threading.Thread(target=_end_with, args=(sys.stdin.buffer,), daemon=True).start()
    result = rehearsed(Path(run_dir), adaptation, request)
    sys.stdout.write(TypeAdapter(RehearsalResult).dump_json(result).decode())
    return 0


def rehearsed(run_dir: Path, adaptation: bytes, request: RehearsalRequest) -> RehearsalResult:
    """Return the result of a rehearsal from the files of a run and its packed adaptation."""
    try:
        found = Rehearsal(
            read_state(run_dir, request.window, request.round), adaptation, request, request.worth
        ).forecasts()
    except HyperGPUError as error:
        return RehearsalResult(request.number, time.process_time(), fault=str(error))
    return RehearsalResult(request.number, time.process_time(), forecasts=found)


def _read(source: BinaryIO) -> tuple[RehearsalRequest, bytes]:
    content = source.read(int.from_bytes(source.read(LENGTH_BYTES), "big"))
    request, adaptation = pickle.loads(content)  # noqa: S301  (of the coordinator that started this process)
    return request, adaptation


def _end_with(source: BinaryIO) -> None:
    source.read()
    os._exit(_ORPHANED)


if __name__ == "__main__":
    sys.stdout.flush()
    code = main()
    sys.stdout.flush()
    os._exit(code)  # without waiting for the thread that reads
