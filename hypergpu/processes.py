"""Child processes that do not outlive this process."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hypergpu.common.command_line import PREFIX
from hypergpu.common.errors import HyperGPUError
from hypergpu.common.orphans import dying_with_this_process

_ADDRESS = re.compile(r"^(\w+) on (\S+:\d+)$", re.MULTILINE)
"""Line that a service prints for each of its ports; "listening on HOST:PORT" comes last, when it accepts clients."""
_POLL_SECONDS = 0.05


class Process:
    """One `hypergpu SERVICE`, whose output goes to a file."""

    def __init__(self, name: str, child: asyncio.subprocess.Process, log: Path) -> None:
        self.name, self.log = name, log
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
        """Start a service; the caller must `end` it.

        Args:
            name: name of the process.
            arguments: the service, and its options.
            environment: variables in addition to those of this process.
            logs: directory of the log, `name`.log.
            when_orphaned: signal that the service gets if this process is killed.
        """
        log = logs / f"{name}.log"
        with log.open("wb") as output:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # modules of the working directory must not hide installed ones
                "-m",
                "hypergpu",
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env=os.environ | environment | dying_with_this_process(when_orphaned),
                start_new_session=True,  # Ctrl-C reaches this process only, which ends the others in order
            )
        return cls(name, child, log)

    @property
    def exit_code(self) -> int | None:
        """Exit code; None while the process runs."""
        return self._child.returncode

    async def addresses(self, timeout_seconds: float = 60.0) -> dict[str, str]:
        """Wait until the service listens, and return its addresses by purpose ("listening", "control", …).

        Raises:
            HyperGPUError: the service ended or did not listen in time; the message quotes the last line it printed.
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
                last = (printed.strip().splitlines() or ["no output"])[-1].removeprefix(PREFIX)
                raise HyperGPUError(f"{self.name} ended before it listened: {last}")
            await asyncio.sleep(_POLL_SECONDS)
        raise HyperGPUError(f"{self.name} did not listen within {timeout_seconds:.0f} s; see {self.log}")

    async def wait(self) -> int:
        """Wait for the end of the process and return its exit code."""
        return await self._child.wait()

    async def end(self, grace_seconds: float = 5.0) -> None:
        """End the process: SIGTERM, and SIGKILL after `grace_seconds`."""
        if self._child.returncode is None:
            with suppress(ProcessLookupError):
                self._child.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._child.wait(), grace_seconds)
            except TimeoutError:
                with suppress(ProcessLookupError):
                    self._child.kill()
        await self._child.wait()
