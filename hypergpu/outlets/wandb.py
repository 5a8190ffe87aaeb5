"""Weights & Biases: a run in a project, online or in files that `wandb sync` uploads later."""

import contextlib
import os
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import wandb

from hypergpu.coordinator.files import replace_text
from hypergpu.outlets.outlet import Beginning, Ending, Round

PROJECT: Final = "hypergpu"
"""Project of all runs; W&B's own variable WANDB_PROJECT names another."""
_NOTES: Final = "events"
_MOST_DIGITS: Final = 18


class WandbOutlet:
    """A run in a project. Its files are in `wandb/` in the run directory.

    Args:
        target: `online` or `offline`.
    """

    def __init__(self, target: str) -> None:
        self._mode = target
        self._run: Any = None
        self._last: Path | None = None
        """File with the last round that was written: W&B does not tell it while it is offline."""

    def open(self, run: Beginning) -> tuple[str, int]:
        """Begin a run, or go on with the one of the same id, after the last round that was written."""
        identity = run.id or uuid4().hex
        (run.directory / "wandb").mkdir(exist_ok=True)
        self._last = run.directory / "wandb" / f"{identity}.last"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=identity,
            dir=str(run.directory),
            config=dict(run.settings),
            mode="online" if self._mode == "online" else "offline",
            resume="allow" if self._mode == "online" else None,
            reinit="create_new",
            settings=_settings(),
        )
        held = 0
        with contextlib.suppress(OSError, ValueError):
            held = int(self._last.read_text(encoding="ascii")[:_MOST_DIGITS])
        return identity, held

    def round(self, closed: Round) -> None:
        """Write a row of the history at the round's number."""
        assert self._run is not None and self._last is not None
        notes = {_NOTES: "\n".join(closed.notes)} if closed.notes else {}
        self._run.log({**closed.figures, **notes}, step=closed.number, commit=True)
        replace_text(self._last, f"{closed.number}\n")

    def flush(self) -> None:
        """Do nothing: a process of W&B writes what it was told, even if this one ends."""

    def end(self, ending: Ending) -> None:
        """Write the final figures to the summary, and the records as files."""
        assert self._run is not None
        notes = {_NOTES: "\n".join(ending.notes)} if ending.notes else {}
        self._run.summary.update({"state": ending.state, "reason": ending.reason, **ending.figures, **notes})
        for file in ending.files:
            self._run.save(str(file), base_path=str(file.parent), policy="now")
        self._finish(0 if ending.state == "completed" else 1)

    def close(self) -> None:
        """End the session; the run can go on in another."""
        self._finish(0)

    def _finish(self, code: int) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.finish(exit_code=code)


def _settings() -> Any:
    """Return settings by which W&B prints nothing and measures nothing of its own."""
    return wandb.Settings(
        silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True, x_disable_meta=True
    )
