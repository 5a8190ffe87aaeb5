"""Interface of outlets. Each implementation writes a run to the store of one program, and holds nothing back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Beginning:
    """A run as an outlet opens it."""

    name: str
    directory: Path
    settings: Mapping[str, Any]
    """Settings by dotted key, as in `training.rounds`."""
    started_at: float
    """Seconds since the epoch at which the run began, as far as its files tell."""
    id: str = ""
    """Id that `open` returned for the part of the run before; empty for a run that the outlet does not hold yet."""
    after: int = 0
    """Last round that the outlet holds; an outlet that can, forgets later ones."""


@dataclass(frozen=True)
class Round:
    """A closed round."""

    number: int
    seconds: float
    """Time at which it ended, in seconds of the run."""
    figures: Mapping[str, float]
    notes: Sequence[str] = ()
    """Events and decisions since the round before, one a line."""


@dataclass(frozen=True)
class Ending:
    """Facts that are known when nothing more is written to a run."""

    state: str
    """`completed`, `failed`, `stopped`, or what a run that may be resumed was doing."""
    reason: str
    figures: Mapping[str, float]
    notes: Sequence[str]
    """Events and decisions since the last round."""
    files: Sequence[Path]
    """Records of the run."""


class Outlet(Protocol):
    """Writer of a run to one program's store. Every method may wait for a network, and raises what goes wrong.

    A call that failed is repeated, so a round that was written twice must show once.
    """

    def open(self, run: Beginning) -> tuple[str, int]:
        """Begin or go on with a run; return its id there, and the last round that is held there."""
        ...

    def round(self, closed: Round) -> None:
        """Write a round."""
        ...

    def flush(self) -> None:
        """Return when all rounds so far are where they will stay."""
        ...

    def end(self, ending: Ending) -> None:
        """Write the end of a run."""
        ...

    def close(self) -> None:
        """Let go of everything; nothing was told of the end."""
        ...


MakeOutlet = Callable[[str], Outlet]
"""Function that makes an outlet for a target."""
