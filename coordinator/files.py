"""Files that are whole or absent: written beside their place, synced to the disk, then renamed into it."""

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

PARTIAL = ".partial"
"""Suffix of a file that is being written."""
_LEFT_BEHIND = re.compile(rf".*{re.escape(PARTIAL)}|\.tmp\w{{6}}", re.ASCII)
"""Files of a writer that was killed: ours, and those of safetensors."""


def replace_files(writes: Mapping[Path, Callable[[Path], object]]) -> None:
    """Let each `write` produce a new file, and put them in the places of the files that they are for.

    Each is replaced at one stroke, in order, once all are on the disk: whoever reads a file finds the old content or
    the new, also after a loss of power. A write that fails leaves every file as it was.

    Raises:
        OSError: a file cannot be written; it is the error's `filename`. What else a `write` raises passes through.
    """
    partials = {file: file.with_name(f".{file.name}{PARTIAL}") for file in writes}
    try:
        for file, write in writes.items():
            _write_whole(file, partials[file], write)
        for file, partial in partials.items():
            partial.replace(file)
    except BaseException:
        for partial in partials.values():
            with suppress(OSError):
                partial.unlink()
        raise
    for directory in {file.parent for file in writes}:
        sync_directory(directory)


def _write_whole(file: Path, partial: Path, write: Callable[[Path], object]) -> None:
    try:
        write(partial)
        sync_file(partial)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(file)) from error


def replace_file(file: Path, write: Callable[[Path], object]) -> None:
    """Replace one file, see `replace_files`."""
    replace_files({file: write})


def replace_text(file: Path, text: str) -> None:
    """Put `text` in the place of `file` at one stroke.

    Raises:
        OSError: it cannot be written.
    """
    replace_file(file, lambda partial: partial.write_text(text, encoding="utf-8"))


def remove_partial_files(directory: Path) -> None:
    """Remove what writers left behind that were killed. The caller holds the directory's lock."""
    for file in directory.iterdir():
        if _LEFT_BEHIND.fullmatch(file.name) and file.is_file():
            file.unlink()


def sync_file(file: Path) -> None:
    """Wait until the content of a file is on the disk."""
    _sync(file, os.O_RDONLY)


def sync_directory(directory: Path) -> None:
    """Wait until the names in a directory are on the disk: a rename is lost with the power otherwise."""
    _sync(directory, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
