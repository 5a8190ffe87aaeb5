"""Rehearsals of a real run: a process of low priority beside it, which ends with the coordinator at the latest."""

import pickle
from pathlib import Path
from typing import Final

import structlog
from pydantic import TypeAdapter, ValidationError

from hypergpu.coordinator.core.adaptation import AdaptiveOrchestrator
from hypergpu.coordinator.core.adaptation.copies import packed
from hypergpu.coordinator.core.rehearsal import RehearsalRequest, RehearsalResult
from hypergpu.coordinator.program_beside import ProgramBeside

log = structlog.get_logger()

MODULE: Final = "hypergpu.simulation.rehearsal"
"""Program of the process: `python -m` it. It is above the coordinator, which knows its name only."""
TIMEOUT_SECONDS: Final = 120.0
_RESULT: Final = TypeAdapter(RehearsalResult)


class RehearsalProcess:
    """Process in which a rehearsal runs. Its failure changes nothing in the run, and is warned of once.

    One runs at a time: the next kills the one before, for whose result nobody waits any more.

    Args:
        run_dir: directory of the run, whose files the rehearsal reads.
        orchestrator: adaptation of the run, of which the rehearsal gets a copy.
        module: program to run.
        timeout_seconds: time after which it is killed.
    """

    def __init__(
        self,
        run_dir: Path,
        orchestrator: AdaptiveOrchestrator,
        *,
        module: str = MODULE,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._run_dir, self._orchestrator = run_dir, orchestrator
        self._timeout_seconds = timeout_seconds
        self.program = ProgramBeside(module, timeout_seconds)
        self._warned = False

    async def run(self, request: RehearsalRequest) -> RehearsalResult:
        """Carry a rehearsal out; return its result, or the fault for which there is none."""
        try:
            return await self._run(request)
        except Exception as error:
            if not isinstance(error, OSError | ValidationError):
                log.exception("unexpected error in a rehearsal")
            fault = str(error).splitlines()[0] if str(error) else type(error).__name__
            if isinstance(error, TimeoutError):
                fault = f"it took longer than {self._timeout_seconds:g} s"
            if not self._warned:
                self._warned = True
                log.warning("a rehearsal failed; the run goes on without it", reason=fault)
            return RehearsalResult(request.number, self._timeout_seconds if "longer" in fault else 0.0, fault=fault)

    async def _run(self, request: RehearsalRequest) -> RehearsalResult:
        content = pickle.dumps((request, packed(self._orchestrator)))
        return _RESULT.validate_json(await self.program.output([str(self._run_dir)], content))

    def stop(self) -> None:
        """Kill the process, if one runs, and start no other."""
        self.program.stop()
