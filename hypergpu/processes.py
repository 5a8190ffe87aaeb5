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

from common.errors import HyperGPUError

_ADDRESS = re.compile(r"(\w+) on (\S+:\d+)\s*$")
"""What a service says of each of its ports; "listening on HOST:PORT" comes last, when it can be called."""
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Process:
    """One `python -m MODULE`; what it prints goes to `DIR/NAME.log`."""

    def __init__(self, name: str, child: asyncio.subprocess.Process, log: Path) -> None:
        self.name, self.log = name, log
        self._child = child
        self._ready: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, name: str, arguments: Sequence[str], environment: Mapping[str, str], logs: Path) -> "Process":
        """Start it; the caller must `end` it."""
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,  # Ctrl-C reaches us alone, and we end the others in order
            preexec_fn=partial(_die_with_parent, os.getpid()),
        )
        return cls(name, child, logs / f"{name}.log")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._child.returncode

    async def addresses(self, timeout_seconds: float = 60.0) -> dict[str, str]:
        """HOST:PORT by purpose ("listening", "control", …), once it says that it listens.

        Raises:
            HyperGPUError: it ended, or kept silent; the last line that it printed is quoted.
        """
        try:
            return await asyncio.wait_for(asyncio.shield(self._ready), timeout_seconds)
        except TimeoutError as error:
            raise HyperGPUError(f"{self.name} did not listen within {timeout_seconds:.0f} s; see {self.log}") from error

    async def wait(self) -> int:
        """Its exit code, once it has ended and all that it printed is in the log."""
        await asyncio.shield(self._reader)
        return await self._child.wait()

    async def end(self, grace_seconds: float = 5.0) -> None:
        """SIGTERM, time to finish, then SIGKILL."""
        if self._child.returncode is None:
            with suppress(ProcessLookupError):
                self._child.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(asyncio.shield(self._reader), grace_seconds)
                await asyncio.wait_for(self._child.wait(), grace_seconds)
            except TimeoutError:
                with suppress(ProcessLookupError):
                    self._child.kill()
        await self._reader
        await self._child.wait()

    async def _read(self) -> None:
        assert self._child.stdout is not None
        last = ""
        addresses: dict[str, str] = {}
        with self.log.open("w", encoding="utf-8") as log:
            async for raw in self._child.stdout:
                line = raw.decode(errors="replace")
                log.write(line)
                log.flush()
                last = line.strip() or last
                if found := _ADDRESS.search(line):
                    addresses[found[1]] = found[2]
                if "listening" in addresses and not self._ready.done():
                    self._ready.set_result(addresses)
        if not self._ready.done():
            self._ready.set_exception(HyperGPUError(f"{self.name} ended before it listened: {last}"))
            self._ready.exception()  # nobody may have asked


def _die_with_parent(parent: int) -> None:
    """In the child, before it becomes the program: the kernel ends it should we be killed ourselves."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before we could ask
        os._exit(1)
