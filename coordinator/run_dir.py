"""Run directory: configuration, records and results. It is readable whenever the process ends.

config.yaml         the complete configuration
rounds.jsonl        one line for each round
events.jsonl        one line for each event and decision
ledger.jsonl        decisions, receipts and rounds as leaves of a Merkle log, with ledger.checkpoints and ledger.vkey
nodes.json          the state of every node
summary.json        the results so far
what_if.json        the latest what-if of the live page
checkpoints/        what a run needs to go on, see `hypergpu.coordinator.checkpoints` and `round_log`
model.safetensors   the model at the end of the run, or where it was suspended
best.safetensors    the model of the round that evaluated best
outlets/            what TensorBoard and the like have been told, beside their own tensorboard/ and wandb/
earlier/1/          the same of the run that was here before, if another was begun in its place
.lock               held by the process that writes to the run
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hypergpu.common import strict_json
from hypergpu.common.config import SystemConfig
from hypergpu.common.errors import ConfigError, StorageError
from hypergpu.coordinator import ledger_files
from hypergpu.coordinator.files import remove_partial_files, replace_text, sync_directory
from hypergpu.coordinator.ledger_files import OpenedLedger
from hypergpu.coordinator.line_file import LineFile
from hypergpu.coordinator.run_lock import RunLock
from hypergpu.coordinator.run_records import line_of

CHECKPOINTS = "checkpoints"
LAST_MODEL = "model.safetensors"
BEST_MODEL = "best.safetensors"
ROUNDS = "rounds.jsonl"
EVENTS = "events.jsonl"
WHAT_IF = "what_if.json"
_LINE_FILES = (ROUNDS, EVENTS, ledger_files.LEAVES, ledger_files.CHECKPOINTS)
_OWN = (*_LINE_FILES, ledger_files.KEY, "config.yaml", "nodes.json", "summary.json", LAST_MODEL, BEST_MODEL)
_MADE_OF_IT = (WHAT_IF, "report.html", "simulated", "outlets", "tensorboard", "wandb")
"""Files that `hypergpu` derives from a run and writes beside it."""
_LARGEST_COUNT = 1 << 63
"""Bound of a counter that was read from a file."""
_LONGEST_RUN_SECONDS = 100 * 365.25 * 86_400
"""Bound of a time that was read from a file."""


@dataclass(frozen=True)
class ResumedTotals:
    """Totals of a run so far, read from its files."""

    seconds: float = 0.0
    traffic: Mapping[str, int] = field(default_factory=dict)
    """`bytes_sent` and `bytes_received`."""


def archive_previous_run(path: Path, *others: str) -> None:
    """Move an earlier run in `path` to `earlier/`, and the files `others` with it.

    The caller holds the directory's lock.

    Raises:
        ConfigError: it cannot be moved.
    """
    checkpoints = path / CHECKPOINTS
    try:
        if not any((path / name).exists() for name in _OWN) and not any(checkpoints.glob("*")):
            return
        earlier = path / "earlier"
        earlier.mkdir(exist_ok=True)
        numbers = [int(entry.name) for entry in earlier.iterdir() if entry.name.isascii() and entry.name.isdigit()]
        aside = earlier / str(1 + max(numbers, default=0))
        aside.mkdir()
        for name in (*_OWN, CHECKPOINTS, *_MADE_OF_IT, *others):
            if (path / name).exists():
                (path / name).rename(aside / name)
        for directory in (aside, earlier, path):
            sync_directory(directory)
    except OSError as error:
        raise ConfigError(f"cannot set the run in {path} aside: {error.strerror}") from error


class RunDir:
    """Writer of a run's records: whole files are replaced atomically, lines are appended by `flush`.

    Nothing but the lock is written before `begin`.

    Raises:
        RunInUse: another process writes to the directory.
        ConfigError: the directory cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = RunLock(path)
        self._files: dict[str, LineFile] = {}
        """Files of lines; none before `begin`."""
        self.ledger: OpenedLedger | None = None
        """Ledger that `begin` writes; None of a simulated run, which has none."""
        self._kept_leaves = 0
        """Leaves of the ledger that were on the disk when the run began or went on."""

    @property
    def checkpoints(self) -> Path:
        """Directory of checkpoints."""
        return self.path / CHECKPOINTS

    def begin(
        self,
        config: SystemConfig,
        resumed_round: int = 0,
        logged: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Write the configuration; move an earlier run away, or when resuming drop the records after that round.

        `logged` are rows of rounds, which take the place of those that are missing.

        Raises:
            ConfigError: a file cannot be written.
        """
        if not resumed_round:
            archive_previous_run(self.path)
        try:
            self.checkpoints.mkdir(exist_ok=True)
            for directory in (self.path, self.checkpoints):
                remove_partial_files(directory)
            rounds = _completed(self._lines(ROUNDS), logged, resumed_round)
            events = list(self._lines(EVENTS))
            replace_text(self.path / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
            for name, rows in ((ROUNDS, rounds), (EVENTS, events)):
                replace_text(self.path / name, "".join(_line(row) for row in rows))
            if self.ledger is not None:
                self._begin_ledger(self.ledger)
            names = _LINE_FILES if self.ledger is not None else (ROUNDS, EVENTS)
            self._files = {name: LineFile(self.path / name) for name in names}
        except OSError as error:
            raise ConfigError(f"cannot write the run to {self.path}: {error.strerror}") from error

    def _begin_ledger(self, opened: OpenedLedger) -> None:
        """Bring the files of the ledger to where it goes on.

        Raises:
            OSError: they cannot be written.
        """
        key, leaves = self.path / ledger_files.KEY, self.path / ledger_files.LEAVES
        if opened.fault:
            ledger_files.set_aside(self.path)
        replace_text(key, f"{opened.ledger.verifier}\n")
        replace_text(self.path / ledger_files.CHECKPOINTS, "".join(_line(row) for row in opened.checkpoints))
        with leaves.open("ab") as file:
            file.truncate(opened.kept_bytes)
            file.write("".join(f"{leaf}\n" for leaf in opened.leaves).encode())
            file.flush()
            os.fsync(file.fileno())
        sync_directory(self.path)
        self._kept_leaves = opened.ledger.size

    @property
    def pending_lines(self) -> int:
        """Number of pending lines."""
        return sum(file.pending for file in self._files.values())

    @property
    def dropped_lines(self) -> int:
        """Number of dropped lines."""
        return sum(file.dropped for file in self._files.values())

    @property
    def saved_leaves(self) -> int:
        """Number of leaves of the ledger that are known to be on the disk."""
        file = self._files.get(ledger_files.LEAVES)
        return self._kept_leaves + (file.synced if file is not None else 0)

    def round(self, line: str) -> None:
        """Keep the record of a closed round for the next `flush`."""
        self._keep(ROUNDS, f"{line}\n")

    def event(self, row: Mapping[str, Any]) -> None:
        """Keep the record of an event for the next `flush`."""
        self._keep(EVENTS, _line(row))

    def leaf(self, line: str) -> None:
        """Keep a leaf of the ledger for the next `flush`."""
        self._keep(ledger_files.LEAVES, f"{line}\n")

    def ledger_checkpoint(self, row: Mapping[str, Any]) -> None:
        """Keep a published checkpoint of the ledger for the next `flush`."""
        self._keep(ledger_files.CHECKPOINTS, _line(row))

    def flush(self) -> None:
        """Write the pending lines; may be called on any thread.

        Raises:
            StorageError: the disk is full or broken; what is left is kept in memory for the next call.
        """
        for name, file in self._files.items():
            self._try(name, file.flush)

    def sync(self) -> None:
        """Sync the written lines to the disk.

        Raises:
            StorageError: the disk is full or broken.
        """
        for name, file in self._files.items():
            self._try(name, file.sync)

    def nodes(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace nodes.json.

        Raises:
            StorageError: the file cannot be written; the one before is as it was.
        """
        self._replace("nodes.json", strict_json.dumps(list(rows), indent=1))

    def summary(self, result: Mapping[str, Any]) -> None:
        """Replace summary.json.

        Raises:
            StorageError: the file cannot be written; the one before is as it was.
        """
        self._replace("summary.json", strict_json.dumps(result, indent=1))

    def spent(self) -> ResumedTotals:
        """Return the totals of the run until its process ended."""
        seconds = max((_seconds(row.get("seconds")) for row in self._lines(EVENTS)), default=0.0)
        try:
            result = strict_json.read_object(self.path / "summary.json")
            traffic = {name: _count(result[name]) for name in ("bytes_sent", "bytes_received")}
        except (ConfigError, ValueError, KeyError):
            traffic = {}  # the process ended before it wrote one, or somebody has edited it
        return ResumedTotals(seconds, traffic)

    def close(self) -> None:
        """Write the last lines, and release the directory. Calling it again has no effect."""
        with suppress(StorageError):  # `pending_lines` reports them
            self.flush()
        for file in self._files.values():
            with suppress(OSError):  # a network file system may tell of an earlier failure once more
                file.close()
        self._files = {}
        self._lock.release()

    def _lines(self, name: str) -> Iterator[dict[str, Any]]:
        file = self.path / name
        if file.exists():
            # The last line of a process that was killed may be cut short.
            yield from strict_json.read_lines(file, on_invalid=lambda number: None)

    def _replace(self, name: str, text: str) -> None:
        if self._files:
            self._try(name, lambda: replace_text(self.path / name, text))

    def _keep(self, name: str, line: str) -> None:
        if self._files:
            self._files[name].append(line.encode())

    def _try(self, name: str, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            raise StorageError(f"cannot write {self.path / name}: {error.strerror or error}") from error


def _line(row: Mapping[str, Any]) -> str:
    return line_of(row) + "\n"


def _count(value: object) -> int:
    """Return a valid count from a file.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _LARGEST_COUNT:
        raise ValueError(f"{value!r:.40} is not a count")
    return value


def _completed(
    rows: Iterable[Mapping[str, Any]], logged: Iterable[Mapping[str, Any]], last: int
) -> list[Mapping[str, Any]]:
    """Return one row of each round up to the last one, in order."""
    found: dict[int, Mapping[str, Any]] = {}
    for row in (*rows, *logged):
        if _is_round_to_keep(row, last):
            found.setdefault(row["round"], row)
    return [found[number] for number in sorted(found)]


def _is_round_to_keep(row: Mapping[str, Any], last: int) -> bool:
    number = row.get("round")
    return isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= last


def _seconds(value: object) -> float:
    """Return the time of an event from a file; 0 for an invalid one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LONGEST_RUN_SECONDS:
        return 0.0
    return float(value)
