"""Process of a rehearsal beside a real run: reads a request, prints the result as JSON.

It runs at the lowest priority, on one thread, and ends when its standard input does: then the coordinator is gone.
"""

import pickle
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter

from hypergpu.common.errors import HyperGPUError
from hypergpu.coordinator.core.rehearsal import RehearsalRequest, RehearsalResult
from hypergpu.simulation.beside_run import given, run_and_leave
from hypergpu.simulation.fork.state import read_state
from hypergpu.simulation.rehearsal.forecasts import Rehearsal


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the rehearsal that the standard input asks for."""
    (run_dir,) = sys.argv[1:] if arguments is None else arguments
    request, adaptation = pickle.loads(given())  # noqa: S301  (of the coordinator that started this process)
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


if __name__ == "__main__":
    run_and_leave(main)
