"""What-if of a run: another policy from a round on, rehearsed by a process beside it, for the live page."""

import asyncio
from pathlib import Path
from typing import Any, Final

import structlog

from hypergpu.common import strict_json
from hypergpu.common.errors import InvalidInput, Unavailable, UnknownName
from hypergpu.common.strategies import AdaptationPolicy
from hypergpu.coordinator.files import replace_text
from hypergpu.coordinator.program_beside import ProgramBeside
from hypergpu.coordinator.run_dir import WHAT_IF

log = structlog.get_logger()

MODULE: Final = "hypergpu.simulation.fork"
TIMEOUT_SECONDS: Final = 120.0


class WhatIfs:
    """What-ifs of a run, one at a time. The latest is in its directory, where viewers get it with the records.

    Args:
        run_dir: the run.
        module: program that rehearses.
        timeout_seconds: time after which it is killed.
    """

    def __init__(self, run_dir: Path, module: str = MODULE, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._run_dir, self._timeout_seconds = run_dir, timeout_seconds
        self._program = ProgramBeside(module, timeout_seconds)
        self._running: asyncio.Task[None] | None = None

    def begin(self, policy: object, after_round: object) -> None:
        """Begin to rehearse a policy from a round on; 0 = from the last one.

        Raises:
            InvalidInput: the policy or the round is not valid.
            Unavailable: another is being rehearsed.
        """
        known = [str(each) for each in AdaptationPolicy]
        if policy not in known:
            raise UnknownName("policy", str(policy)[:80], known)
        if type(after_round) is not int or not 0 <= after_round < 1 << 31:
            raise InvalidInput("the round of a what-if must be a whole number; 0 is the last round")
        if self._running is not None and not self._running.done():
            raise Unavailable("another policy is being rehearsed; ask again when it is done")
        self._running = asyncio.create_task(self._rehearse(str(policy), after_round))

    async def done(self) -> None:
        """Wait until the answer to the latest is in the directory."""
        if self._running is not None:
            await self._running

    async def close(self) -> None:
        """Kill the process, if one runs."""
        self._program.stop()
        await self.done()

    async def _rehearse(self, policy: str, after_round: int) -> None:
        found = await self._found(policy, after_round)
        if fault := found.get("fault"):
            log.warning("a what-if failed; the run goes on", policy=policy, reason=fault)
        try:
            replace_text(self._run_dir / WHAT_IF, strict_json.dumps(found))
        except OSError as error:
            log.warning("a what-if cannot be written", reason=error.strerror)

    async def _found(self, policy: str, after_round: int) -> dict[str, Any]:
        arguments = [str(self._run_dir), policy, str(after_round)]
        try:
            return strict_json.parse_object(await self._program.output(arguments))
        except TimeoutError:
            return {"policy": policy, "fault": f"it took longer than {self._timeout_seconds:g} s"}
        except (OSError, ValueError) as error:
            return {"policy": policy, "fault": str(error)}
