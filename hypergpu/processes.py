"""Child processes that never outlive us: started, watched until they listen, ended in order."""

import asyncio
import ctypes
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from hypergpu.common.errors import HyperGPUError

_ADDRESS = re.compile(r"^(\w+) on (\S+:\d+)$", re.MULTILINE)
"""What a service says of each of its ports; "listening on HOST:PORT" comes last, when it can be called."""
_POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Process:
    """One `hypergpu SERVICE`; what it prints goes to a file, which outlives us and never makes it wait."""

    def __init__(self, name: str, service: str, child: asyncio.subprocess.Process, log: Path) -> None:
        self.name, self.service, self.log = name, service, log
        self._child = child

    @classmethod
    async def start(
        cls,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        logs: Path,
        *,
        when_orphaned: signal.Signals = signal.SIGTERM,
    ) -> "Process":
        """Start it, with `logs`/`name`.log; the caller must `end` it. `when_orphaned` it gets should we be killed."""
        log = logs / f"{name}.log"
        with log.open("wb") as output:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # no module of the working directory hides one that is installed
                "-m",
                "hypergpu",
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env=os.environ | environment,
                start_new_session=True,  # Ctrl-C reaches us alone, and we end the others in order
                preexec_fn=partial(_die_with_parent, os.getpid(), when_orphaned),
            )
        return cls(name, arguments[0], child, log)

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._child.returncode

    async def addresses(self, timeout_seconds: float = 60.0) -> dict[str, str]:
        """HOST:PORT by purpose ("listening", "control", …), once it says that it listens.

        Raises:
            HyperGPUError: it ended, or kept silent; the last line that it printed is quoted.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + timeout_seconds
        while clock() < until:
            ended = self._child.returncode is not None
            printed = self.log.read_text(encoding="utf-8", errors="replace")
            found = dict(_ADDRESS.findall(printed))
            if "listening" in found:
                return found
            if ended:
                last = (printed.strip().splitlines() or ["without a word"])[-1].removeprefix(f"{self.service}: ")
                raise HyperGPUError(f"{self.name} ended before it listened: {last}")
            await asyncio.sleep(_POLL_SECONDS)
        raise HyperGPUError(f"{self.name} did not listen within {timeout_seconds:.0f} s; see {self.log}")

    async def wait(self) -> int:
        """Its exit code, once it has ended."""
        return await self._child.wait()

    async def end(self, grace_seconds: float = 5.0) -> None:
        """SIGTERM, time to finish, then SIGKILL."""
        if self._child.returncode is None:
            with suppress(ProcessLookupError):
                self._child.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._child.wait(), grace_seconds)
            except TimeoutError:
                with suppress(ProcessLookupError):
                    self._child.kill()
        await self._child.wait()


def _die_with_parent(parent: int, with_signal: signal.Signals) -> None:
    """In the child, before it becomes the program: the kernel ends it should we be killed ourselves."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, with_signal)
    if os.getppid() != parent:  # it died before we could ask
        os._exit(1)
