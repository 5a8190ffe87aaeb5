"""Files that are whole or absent: written beside their place, synced to the disk, then renamed into it."""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PARTIAL = ".partial"
"""Suffix of a file that is being written."""
_LEFT_BEHIND = re.compile(rf".*{re.escape(PARTIAL)}|\.tmp\w{{6}}", re.ASCII)
"""Files of a writer that was killed: ours, and those of safetensors."""


def replace_file(file: Path, write: Callable[[Path], object]) -> None:
    """Let `write` produce a new file, and put it in the place of `file` at one stroke.

    Whoever reads `file` finds the old content or the new, also after a loss of power. A failed write leaves nothing.

    Raises:
        OSError: the new file cannot be synced or renamed. What `write` raises passes through.
    """
    partial = file.with_name(f".{file.name}{PARTIAL}")
    try:
        write(partial)
        sync_file(partial)
        partial.replace(file)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_directory(file.parent)


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
            file.unlink(missing_ok=True)


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
