"""Rehearsals of a real run: a process of low priority beside it, which ends with the coordinator at the latest."""

import asyncio
import contextlib
import os
import pickle
import sys
from pathlib import Path
from typing import Final

import structlog
from pydantic import TypeAdapter, ValidationError

from hypergpu.coordinator.core.adaptation import AdaptiveOrchestrator
from hypergpu.coordinator.core.adaptation.copies import packed
from hypergpu.coordinator.core.rehearsal import RehearsalRequest, RehearsalResult

log = structlog.get_logger()

MODULE: Final = "hypergpu.simulation.rehearsal"
"""Program of the process: `python -m` it. It is above the coordinator, which knows its name only."""
TIMEOUT_SECONDS: Final = 120.0
MOST_OUTPUT_BYTES: Final = 1 << 20
"""Most bytes that the process may print; a result has a few thousand."""
LENGTH_BYTES: Final = 8
"""Bytes of the length before the pickled request and adaptation on the standard input."""
_RESULT: Final = TypeAdapter(RehearsalResult)
_ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


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
        self._module, self._timeout_seconds = module, timeout_seconds
        self._child: asyncio.subprocess.Process | None = None
        self._stopped = False
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
        if self._stopped:
            raise OSError("the coordinator ends")
        content = pickle.dumps((request, packed(self._orchestrator)))
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # modules of the working directory must not hide installed ones
            "-m",
            self._module,
            str(self._run_dir),
            stdin=asyncio.subprocess.PIPE,  # it stays open: its end tells the child that this process is gone
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | _ONE_THREAD,
            start_new_session=True,
        )
        assert child.stdin is not None and child.stdout is not None and child.stderr is not None
        _kill(self._child)
        self._child = child
        try:
            if self._stopped:  # while it was started
                _kill(child)
            async with asyncio.timeout(self._timeout_seconds):
                child.stdin.write(len(content).to_bytes(LENGTH_BYTES, "big") + content)
                with contextlib.suppress(ConnectionError):  # what it says at its end tells more
                    await child.stdin.drain()
                printed, complaint = await asyncio.gather(_output(child.stdout), _output(child.stderr))
                code = await child.wait()
        finally:
            _kill(child)
            if self._child is child:
                self._child = None
            child.stdin.close()
            await child.wait()
        if code:
            last = (complaint.decode(errors="replace").strip().splitlines() or ["no output"])[-1]
            raise OSError(f"the process ended with code {code}: {last}")
        return _RESULT.validate_json(printed)

    def stop(self) -> None:
        """Kill the process, if one runs, and start no other."""
        self._stopped = True
        _kill(self._child)


def _kill(child: asyncio.subprocess.Process | None) -> None:
    if child is not None and child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            child.kill()


async def _output(stream: asyncio.StreamReader) -> bytes:
    """Return what the process prints until it ends."""
    try:
        await stream.readexactly(MOST_OUTPUT_BYTES)
    except asyncio.IncompleteReadError as ended:
        return ended.partial
    raise OSError(f"the process printed {MOST_OUTPUT_BYTES} bytes or more")
