"""Outlets of a real run: a process each, which reads the run's files. None of them can delay or end the run."""

import asyncio
import contextlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from hypergpu.coordinator.health import ReportState
from hypergpu.coordinator.program_beside import kill, spawn

log = structlog.get_logger()

MODULE: Final = "hypergpu.outlets"
"""Program of the processes: `python -m` it. It is above the coordinator, which knows its name only."""
FINISH_SECONDS: Final = 30.0
"""Time that outlets have at the end of a run to deliver what is left."""
LOG: Final = Path("outlets", "log")
"""File of what the processes print, in the run directory."""


class Outlets:
    """Processes of the outlets of a run. One that fails is reported, once; its own log is in the run directory.

    Args:
        run_dir: Directory of the run.
        chosen: Name of each outlet, with what it writes to.
        report: Callback for failures.
        module: Program of the processes.
        finish_seconds: Time that they have at the end.
    """

    def __init__(
        self,
        run_dir: Path,
        chosen: Mapping[str, str],
        report: ReportState,
        *,
        module: str = MODULE,
        finish_seconds: float = FINISH_SECONDS,
    ) -> None:
        self._run_dir, self._chosen, self._report = run_dir, chosen, report
        self._module, self._finish_seconds = module, finish_seconds
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._faults: dict[str, str] = {}

    async def start(self, kept: int = 0) -> None:
        """Start the processes. One that cannot be started is reported.

        `kept` is the last round of the part of the run that it goes on from.
        """
        for name, target in self._chosen.items():
            try:
                self._children[name] = child = await self._spawn(name, target, kept)
            except OSError as error:
                self._tell(name, f"its process cannot be started: {error.strerror or error}")
            else:
                self._watching[name] = asyncio.create_task(self._watch(name, child), name=f"outlet {name}")

    def finish(self) -> None:
        """Tell the outlets that nothing more is written. Calling it again has no effect."""
        for child in self._children.values():
            assert child.stdin is not None
            child.stdin.close()

    async def close(self) -> None:
        """Let the outlets deliver what is left; after a time, end them and say how to deliver the rest."""
        self.finish()
        if self._watching:
            await asyncio.wait(self._watching.values(), timeout=self._finish_seconds)
        for name, child in self._children.items():
            if child.returncode is None:
                self._tell(name, f"it was not done {self._finish_seconds:g} s after the end of the run")
                kill(child)
        if self._watching:
            await asyncio.wait(self._watching.values())
        for name in self._faults:
            command = f"hypergpu outlets {shlex.quote(str(self._run_dir))} --{name} {shlex.quote(self._chosen[name])}"
            log.warning(f"{name} does not hold all of the run; deliver the rest with: {command}")

    async def _spawn(self, name: str, target: str, kept: int) -> asyncio.subprocess.Process:
        printed = self._run_dir / LOG
        printed.parent.mkdir(exist_ok=True)
        with printed.open("ab") as complaints:
            return await spawn(self._module, (str(self._run_dir), name, target, str(kept)), complaints)

    async def _watch(self, name: str, child: asyncio.subprocess.Process) -> None:
        """Report what a process says, until it ends."""
        assert child.stdout is not None
        while not child.stdout.at_eof():
            with contextlib.suppress(ValueError):  # a line that is too long: it is none of ours
                if (line := await child.stdout.readline()).endswith(b"\n"):
                    self._tell(name, line.decode(errors="replace").strip())
        code = await child.wait()
        if code and name not in self._faults:
            self._tell(name, f"its process ended with code {code}; see {self._run_dir / LOG}")

    def _tell(self, name: str, fault: str) -> None:
        if fault:
            self._faults[name] = fault
        else:
            self._faults.pop(name, None)
        self._report("; ".join(f"{each}: {reason}" for each, reason in self._faults.items()))
