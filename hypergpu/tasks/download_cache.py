"""Downloaded data sets on disk: whole or absent, checked before use, and downloaded by one process for all.

torchvision-CIFAR10-1f2e3d4c/                 a complete data set
torchvision-CIFAR10-1f2e3d4c/manifest.json    size and CRC-32C of each of its files
.torchvision-CIFAR10-1f2e3d4c.lock            held by the process that downloads it
.torchvision-CIFAR10-1f2e3d4c.partial-a1b2/   a download that is not complete
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import google_crc32c
import structlog

from hypergpu.common import strict_json
from hypergpu.common.errors import ConfigError, InvalidInput
from hypergpu.common.files import shown

log = structlog.get_logger()

VARIABLE: Final = "HYPERGPU_DATA"
"""Environment variable that names the directory of the cache."""
_MANIFEST: Final = "manifest.json"
_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
_READ_BYTES: Final = 1 << 20


def cache_directory() -> Path:
    """Return the directory of the cache: `HYPERGPU_DATA`, or else `~/.cache/hypergpu`.

    Raises:
        InvalidInput: neither is known.
    """
    named = os.environ.get(VARIABLE, "")
    try:
        return Path(named).expanduser() if named else Path.home() / ".cache" / "hypergpu"
    except RuntimeError as error:
        raise InvalidInput(f"there is no home directory for downloads: set {VARIABLE} to a directory") from error


def ensure_downloaded(name: str, download: Callable[[Path], object]) -> Path:
    """Return the directory of a data set, downloading it if it is missing or damaged.

    A complete data set is only read, so that the cache may be on a read-only file system.

    Args:
        name: such as `torchvision:CIFAR10`.
        download: fills an empty directory that it is given. What it leaves behind when it fails is removed.

    Raises:
        InvalidInput: the download failed, or cannot be stored.
    """
    root = cache_directory()
    directory = root / _directory_name(name)
    if _fault(directory) is None:
        return directory
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f".{directory.name}.lock", name) as is_exclusive:
            fault = _fault(directory)  # another process may have downloaded it meanwhile
            if fault is None:
                return directory
            if is_exclusive:
                _remove_partial_downloads(directory)
            if directory.exists():
                log.warning("a data set is damaged; downloading it again", path=str(directory), reason=fault)
            _replace(directory, name, download)
    except OSError as error:
        raise InvalidInput(
            f"{name} cannot be stored in {shown(root)}: {error.strerror or error}; "
            f"set {VARIABLE} to a directory that can be written"
        ) from error
    return directory


def _directory_name(name: str) -> str:
    """Return a file name that no two data sets share, whatever characters their names have."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:80]
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _fault(directory: Path) -> str | None:
    """Return why a data set cannot be used; None if it is whole."""
    if not directory.is_dir():
        return "it is missing"
    try:
        files = strict_json.read_object(directory / _MANIFEST).get("files")
    except ConfigError as error:
        return str(error)
    if not isinstance(files, dict) or not files:
        return f"{_MANIFEST} lists no files"
    for file, expected in files.items():
        try:
            if _described(directory / file) != expected:
                return f"{file} is not as it was downloaded"
        except (OSError, ValueError) as error:
            return f"{file} cannot be read: {error}"
    return None


def _described(file: Path) -> dict[str, int]:
    checksum = google_crc32c.Checksum()
    with file.open("rb") as opened:
        while piece := opened.read(_READ_BYTES):
            checksum.update(piece)
        return {"bytes": opened.tell(), "crc32c": int.from_bytes(checksum.digest(), "big")}


def _replace(directory: Path, name: str, download: Callable[[Path], object]) -> None:
    """Download into a new directory and rename it into place once it is complete."""
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}.partial-", dir=directory.parent))
    try:
        try:
            download(partial)
        except Exception as error:
            raise InvalidInput(f"{name} cannot be downloaded: {type(error).__name__}: {error}") from error
        files = {
            str(file.relative_to(partial)): _described(file) for file in sorted(partial.rglob("*")) if file.is_file()
        }
        (partial / _MANIFEST).write_text(strict_json.dumps({"files": files}), encoding="utf-8")
        if directory.exists():
            directory.rename(partial.with_name(f"{partial.name}-damaged"))
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(partial.with_name(f"{partial.name}-damaged"), ignore_errors=True)


def _remove_partial_downloads(directory: Path) -> None:
    """Remove what processes left behind that were killed. The caller holds the lock."""
    for partial in directory.parent.glob(f".{directory.name}.partial-*"):
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _lock(file: Path, name: str) -> Iterator[bool]:
    """Wait for the lock of a data set; yield whether it is held, which a file system without locks does not allow.

    The lock ends with the process, however that ends.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that downloads the data set", name=name)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            yield False
            return
        yield True
    finally:
        os.close(descriptor)
