"""Atomic files: written under a temporary name, synced to the disk, then renamed into place."""

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

PARTIAL = ".partial"
"""Suffix of a file that is being written."""
_LEFT_BEHIND = re.compile(rf".*{re.escape(PARTIAL)}|\.tmp\w{{6}}", re.ASCII)
"""Name patterns of partial files that a killed writer leaves behind: our own and those of safetensors."""


class Step(StrEnum):
    """Step of the replacement of files."""

    WRITE = "write"
    SYNC = "sync"
    DIRECTORY = "directory"


def _no_notice(_: Step) -> None:
    pass


def _rename(partial: Path, file: Path) -> None:
    partial.replace(file)


def replace_files(
    writes: Mapping[Path, Callable[[Path], object]],
    *,
    before: Callable[[Step], None] = _no_notice,
    rename: Callable[[Path, Path], None] = _rename,
) -> None:
    """Replace files atomically, each with the output of its `write`.

    The files are replaced in order, once all outputs are on the disk: a reader finds the old or the new content, also
    after a power failure. A `write` that fails leaves every file unchanged.

    Args:
        writes: What writes each file, given a path.
        before: Called before each step.
        rename: Gives a written file its name.

    Raises:
        OSError: a file cannot be written; it is the error's `filename`. Other errors of a `write` pass through.
    """
    partials = {file: file.with_name(f".{file.name}{PARTIAL}") for file in writes}
    try:
        for file, write in writes.items():
            _write_whole(file, partials[file], write, before)
        for file, partial in partials.items():
            rename(partial, file)
    except BaseException:
        for partial in partials.values():
            with suppress(OSError):
                partial.unlink()
        raise
    for directory in {file.parent for file in writes}:
        before(Step.DIRECTORY)
        sync_directory(directory)


def _write_whole(file: Path, partial: Path, write: Callable[[Path], object], before: Callable[[Step], None]) -> None:
    try:
        before(Step.WRITE)
        write(partial)
        before(Step.SYNC)
        sync_file(partial)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(file)) from error


def replace_file(file: Path, write: Callable[[Path], object]) -> None:
    """Replace one file; see `replace_files`."""
    replace_files({file: write})


def replace_text(file: Path, text: str) -> None:
    """Replace the content of `file` with `text`, atomically.

    Raises:
        OSError: it cannot be written.
    """
    replace_file(file, lambda partial: partial.write_text(text, encoding="utf-8"))


def remove_partial_files(directory: Path) -> None:
    """Remove partial files of killed writers. The caller holds the directory's lock."""
    for file in directory.iterdir():
        if _LEFT_BEHIND.fullmatch(file.name) and file.is_file():
            file.unlink()


def sync_file(file: Path) -> None:
    """Sync the content of a file to the disk."""
    _sync(file, os.O_RDONLY)


def sync_directory(directory: Path) -> None:
    """Sync the entries of a directory to the disk, so that a rename survives a power failure."""
    _sync(directory, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
