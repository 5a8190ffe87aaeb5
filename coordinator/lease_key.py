"""Key of a run directory, from which the secrets of the nodes' leases are derived."""

import os
import secrets
from pathlib import Path
from typing import Final

import structlog

from hypergpu.common.errors import ConfigError
from hypergpu.common.private_files import create_private

LEASE_KEY: Final = ".lease-key"
_KEY_BYTES: Final = 32

log = structlog.get_logger()


def lease_key(directory: Path) -> bytes:
    """Return the key of a run directory, and make it where there is none. The caller holds the directory's lock.

    Raises:
        ConfigError: it cannot be read or written.
    """
    file = directory / LEASE_KEY
    try:
        if not file.exists():
            return _make(file)
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW), "rb") as opened:
            key = opened.read(_KEY_BYTES + 1)
        if len(key) == _KEY_BYTES:
            return key
        log.warning("the key of the leases is damaged; nodes get new ones when they register again", file=str(file))
        file.unlink()
        return _make(file)
    except OSError as error:
        raise ConfigError(f"cannot use the key of the leases, {file}: {error.strerror}") from error


def _make(file: Path) -> bytes:
    key = secrets.token_bytes(_KEY_BYTES)
    create_private(file, key, synced=True)
    return key
