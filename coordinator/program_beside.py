"""A program of low priority beside a run: its output is bounded, in bytes and in time, and it ends with the run."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import IO, Final

MOST_OUTPUT_BYTES: Final = 1 << 20
"""Most bytes that the program may print."""
LENGTH_BYTES: Final = 8
"""Bytes of the length before the content on the standard input."""
_ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class ProgramBeside:
    """A program of this package, `python -m MODULE`. One process of it runs at a time: the next kills the one before.

    The program lowers its priority, and ends when its standard input does: then this process is gone.

    Args:
        module: program to run. It is above the coordinator, which knows its name only.
        timeout_seconds: time after which it is killed.
    """

    def __init__(self, module: str, timeout_seconds: float) -> None:
        self._module, self._timeout_seconds = module, timeout_seconds
        self._stopped = False
        self.child: asyncio.subprocess.Process | None = None
        """The process that runs."""

    async def output(self, arguments: Sequence[str], content: bytes = b"") -> bytes:
        """Run the program and return what it prints.

        Raises:
            TimeoutError: it takes too long.
            OSError: it fails.
        """
        if self._stopped:
            raise OSError("the coordinator ends")
        child = await spawn(self._module, arguments)
        assert child.stdin is not None and child.stdout is not None and child.stderr is not None
        kill(self.child)
        self.child = child
        try:
            if self._stopped:  # while it was started
                kill(child)
            async with asyncio.timeout(self._timeout_seconds):
                child.stdin.write(len(content).to_bytes(LENGTH_BYTES, "big") + content)
                with contextlib.suppress(ConnectionError):  # what it says at its end tells more
                    await child.stdin.drain()
                printed, complaint = await asyncio.gather(_output(child.stdout), _output(child.stderr))
                code = await child.wait()
        finally:
            kill(child)
            if self.child is child:
                self.child = None
            child.stdin.close()
            await child.wait()
        if code:
            last = (complaint.decode(errors="replace").strip().splitlines() or ["no output"])[-1]
            raise OSError(f"the process ended with code {code}: {last}")
        return printed

    def stop(self) -> None:
        """Kill the process, if one runs, and start no other."""
        self._stopped = True
        kill(self.child)


async def spawn(
    module: str, arguments: Sequence[str], stderr: int | IO[bytes] = asyncio.subprocess.PIPE
) -> asyncio.subprocess.Process:
    """Start a program of this package. Its standard input stays open: its end tells that this process is gone.

    Raises:
        OSError: it cannot be started.
    """
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # modules of the working directory must not hide installed ones
        "-m",
        module,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
        env=os.environ | _ONE_THREAD,
        start_new_session=True,  # Ctrl-C is for the coordinator
    )


def kill(child: asyncio.subprocess.Process | None) -> None:
    """Kill a process, unless it has ended."""
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
