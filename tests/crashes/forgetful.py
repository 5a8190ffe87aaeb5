"""A disk that forgets what was not synced when the power fails, and a process that dies at a failpoint."""

import os
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from hypergpu.coordinator import files
from hypergpu.coordinator.failpoints import Failpoints, Point
from hypergpu.coordinator.run_dir import RunDir
from hypergpu.coordinator.storage import Storage


class Died(BaseException):
    """The process has died at a failpoint."""


class ForgetfulStorage(Storage):
    """Disk whose syncs only note what would last. The directory had better be one in memory.

    Args:
        draws: What a power failure leaves of the rest.
        trash: Directory of removed files, whose removal may be forgotten.
    """

    def __init__(self, draws: random.Random, trash: Path, failpoints: Failpoints | None = None) -> None:
        super().__init__(failpoints)
        self._draws, self._trash = draws, trash
        self._open: dict[int, Path] = {}
        self._lasting: dict[Path, int] = {}
        """Bytes of each file that was appended to which would last."""
        self._named: list[Path] = []
        """Files whose names may not last."""
        self._removed: list[Path] = []
        trash.mkdir(exist_ok=True)

    def set_failpoints(self, failpoints: Failpoints | None) -> None:
        self._failpoints = failpoints

    def open_end(self, file: Path, point: Point) -> int:
        is_new = not file.exists()
        descriptor = super().open_end(file, point)
        self._open[descriptor] = file
        if is_new:
            self._named.append(file)
            self._lasting[file] = 0
        self._lasting.setdefault(file, file.stat().st_size)
        return descriptor

    def sync(self, descriptor: int, point: Point) -> None:
        self.reach(point)
        file = self._open[descriptor]
        self._lasting[file] = file.stat().st_size

    def sync_file(self, file: Path) -> None:
        self._lasting[file] = file.stat().st_size

    def sync_directory(self, directory: Path, point: Point) -> None:
        self.reach(point)
        self._directory_lasts(directory)

    def close(self, descriptor: int) -> None:
        del self._open[descriptor]
        super().close(descriptor)

    def replace_files(self, writes: Mapping[Path, Callable[[Path], Any]]) -> None:
        super().replace_files(writes)
        for directory in {file.parent for file in writes}:
            self._directory_lasts(directory)

    def rename(self, partial: Path, file: Path) -> None:
        super().rename(partial, file)
        self._named.append(file)

    def remove(self, file: Path, point: Point) -> None:
        self.reach(point)
        shutil.move(file, self._trash / file.name)
        self._removed.append(file)

    def cut(self, file: Path, nbytes: int) -> None:
        self.reach(Point.LOG_CUT)
        os.truncate(file, nbytes)
        self._lasting[file] = nbytes

    def _directory_lasts(self, directory: Path) -> None:
        self._named = [file for file in self._named if file.parent != directory]
        self._removed = [file for file in self._removed if file.parent != directory]

    def process_ends(self) -> None:
        """Close what the process had open: the system keeps all that it wrote."""
        for descriptor in list(self._open):
            self.close(descriptor)

    def power_fails(self) -> None:
        """Forget a part of what was not synced."""
        draws = self._draws
        self.process_ends()
        for file, lasting in self._lasting.items():
            size = file.stat().st_size if file.exists() else 0
            if size > lasting:
                kept = draws.randint(lasting, size)
                os.truncate(file, kept)
                if kept > lasting and draws.random() < 0.3:  # pages reach the disk in any order
                    begin = draws.randint(lasting, kept - 1)
                    with file.open("r+b") as opened:
                        opened.seek(begin)
                        opened.write(bytes(draws.randint(1, kept - begin)))
        for file in self._named:
            if file.exists() and draws.random() < 0.5:
                file.unlink()
        for file in self._removed:
            if not file.exists() and draws.random() < 0.5:
                shutil.move(self._trash / file.name, file)
        self._lasting, self._named, self._removed = {}, [], []


class Lines:
    """Records of a run, of which lines that were not synced may be lost."""

    def __init__(self, run: Path, patch: pytest.MonkeyPatch) -> None:
        self._run = run
        self._lasting: dict[str, int] = {}
        patch.setattr(RunDir, "sync", lambda run_dir: self._sync(run_dir))  # noqa: PLW0108  (a bound method would not get it)
        begin = RunDir.begin

        def begun(run_dir: RunDir, *arguments: Any) -> None:
            begin(run_dir, *arguments)
            self._sync(run_dir)

        patch.setattr(RunDir, "begin", begun)

    def _sync(self, run_dir: RunDir) -> None:
        for file in run_dir._files.values():
            file.note_synced()
        for name in ("rounds.jsonl", "events.jsonl", "ledger.jsonl", "ledger.checkpoints"):
            if (self._run / name).exists():
                self._lasting[name] = (self._run / name).stat().st_size

    def power_fails(self, draws: random.Random) -> None:
        """Cut the records at any byte that was not synced."""
        for name, lasting in self._lasting.items():
            file = self._run / name
            if file.exists() and file.stat().st_size > lasting:
                os.truncate(file, draws.randint(lasting, file.stat().st_size))


def no_fsync(_: Path) -> None:
    """Sync nothing: the directory is in memory, and what lasts is noted."""


def without_fsync(patch: Callable[[Any, str, Any], None]) -> None:
    """Let files that are replaced whole not be synced: their order is what counts here."""
    patch(files, "sync_file", no_fsync)
    patch(files, "sync_directory", no_fsync)
