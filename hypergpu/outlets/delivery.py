"""Delivery of a run to an outlet: the run's files are the queue, and a file beside them has the place in it."""

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from threading import Event
from typing import Final

from hypergpu.common import strict_json
from hypergpu.common.errors import ConfigError
from hypergpu.common.text import one_line
from hypergpu.coordinator.files import replace_text
from hypergpu.coordinator.run_lock import RunLock
from hypergpu.outlets.outlet import Beginning, MakeOutlet, Outlet
from hypergpu.outlets.run_files import RunFiles, last_round, settings_of, started_at

PERIOD_SECONDS: Final = 1.0
"""Interval between two looks at the files of a run that goes on."""
RETRY_SECONDS: Final = 5.0
PLACES: Final = "outlets"
"""Directory, in that of the run, of what outlets have been told."""
_PLACE: Final = "place.json"
_LARGEST_PLACE_BYTES: Final = 1 << 16
_CLASSES: Final = {
    "mlflow": "MlflowOutlet",
    "tensorboard": "TensorBoardOutlet",
    "wandb": "WandbOutlet",
}


def maker_of(name: str) -> MakeOutlet:
    """Return the function that makes an outlet of a kind.

    Raises:
        ImportError: its extra is not installed.
    """
    make: MakeOutlet = getattr(import_module(f"hypergpu.outlets.{name}"), _CLASSES[name])
    return make


@dataclass(frozen=True)
class Place:
    """Place in a run up to which an outlet has been told."""

    target: str
    id: str
    started_at: float
    round: int = 0


class Delivery:
    """Delivers the records of a run to an outlet, each once, in order. Only one process does so at a time.

    Args:
        directory: Run directory.
        name: Name of the outlet.
        target: What it writes to.
        make: Function that makes it.
        kept: Last round that the run went on from: what the outlet holds of later ones has been undone.

    Raises:
        RunInUse: Another process delivers to this outlet.
        ConfigError: The directory cannot be written to.
    """

    def __init__(self, directory: Path, name: str, target: str, make: MakeOutlet, kept: int | None = None) -> None:
        self._directory, self._target, self._make, self._kept = directory, target, make, kept
        self._file = directory / PLACES / name / _PLACE
        self._lock = RunLock(self._file.parent)
        self._outlet: Outlet | None = None
        self._files: RunFiles | None = None
        self._place: Place | None = None

    @property
    def place(self) -> Place | None:
        """Place after the last delivery; None before the first."""
        return self._place

    def deliver(self) -> None:
        """Deliver what was written since the last call.

        After an error, the next call begins after the last round that is known to be delivered.
        """
        try:
            outlet, files, place = self._opened()
            done = place.round
            for closed in files.rounds():
                outlet.round(closed)
                done = closed.number
            outlet.flush()
            self._save(Place(place.target, place.id, place.started_at, done))
        except BaseException:
            self._let_go()
            raise

    def end(self) -> None:
        """Deliver what is left, and the end of the run."""
        self.deliver()
        try:
            outlet, files, _ = self._opened()
            outlet.end(files.ending())
        finally:
            self._let_go()

    def close(self) -> None:
        """Let go of the run. Calling it again has no effect."""
        self._let_go()
        self._lock.release()

    def _opened(self) -> tuple[Outlet, RunFiles, Place]:
        if self._outlet is None or self._files is None or self._place is None:
            self._outlet = self._make(self._target)
            self._place = self._open(self._outlet)
            self._files = RunFiles(self._directory, self._place.round)
        return self._outlet, self._files, self._place

    def _open(self, outlet: Outlet) -> Place:
        before = self._saved()
        begun = before.started_at if before is not None else started_at(self._directory)
        name, settings = self._directory.resolve().name, settings_of(self._directory)
        run = Beginning(name, self._directory, settings, begun)
        if before is not None:
            kept, self._kept = self._kept, None
            after = min(before.round, last_round(self._directory) if kept is None else kept)
            run = Beginning(name, self._directory, settings, begun, before.id, after)
        identity, after = outlet.open(run)
        place = Place(self._target, identity, begun, after)
        self._save(place)
        return place

    def _saved(self) -> Place | None:
        """Return the place in the file; None if it is of another target, or cannot be used."""
        with contextlib.suppress(ConfigError, KeyError, TypeError, ValueError):
            found = strict_json.read_object(self._file, _LARGEST_PLACE_BYTES)
            place = Place(str(found["target"]), str(found["id"]), float(found["started_at"]), int(found["round"]))
            return place if place.target == self._target else None
        return None

    def _save(self, place: Place) -> None:
        if place != self._place:
            replace_text(self._file, strict_json.dumps(asdict(place)))
        self._place = place

    def _let_go(self) -> None:
        """Close everything; the next delivery opens it anew."""
        outlet, files = self._outlet, self._files
        self._outlet, self._files = None, None
        if files is not None:
            files.close()
        if outlet is not None:
            with contextlib.suppress(Exception):  # a server that is gone
                outlet.close()


def follow(delivery: Delivery, over: Event, tell: Callable[[str], None]) -> bool:
    """Deliver a run until it is over; return whether all of it was delivered.

    Args:
        delivery: Where to.
        over: Set when nothing more is written.
        tell: Called with the reason when a delivery fails, and with an empty text when the next one succeeds.
    """
    fails = False
    while True:
        last = over.is_set()  # before the files are read: what they hold then is all
        try:
            delivery.end() if last else delivery.deliver()
        except Exception as error:
            fails = True
            tell(fault_of(error))
        else:
            if fails:
                tell("")
            fails = False
        if last:
            return not fails
        over.wait(RETRY_SECONDS if fails else PERIOD_SECONDS)


def fault_of(error: Exception) -> str:
    """Return an error as one line."""
    text = one_line(str(error))[:300]
    return text if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}"
