"""Keys of a run directory: of the nodes' leases, and of the signatures under its ledger."""

import secrets
from pathlib import Path
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hypergpu.common.errors import ConfigError
from hypergpu.common.private_files import create_private, read_private

LEASE_KEY: Final = ".lease-key"
LEDGER_KEY: Final = ".ledger-key"
_KEY_BYTES: Final = 32

log = structlog.get_logger()


def lease_key(directory: Path) -> bytes:
    """Return the key from which the secrets of the nodes' leases are derived, and make it where there is none.

    The caller holds the directory's lock.

    Raises:
        ConfigError: it cannot be read or written.
    """
    return _key(directory / LEASE_KEY, "the key of the leases", "nodes get new ones when they register again")


def ledger_key(directory: Path) -> Ed25519PrivateKey:
    """Return the key that signs the ledger, and make it where there is none. The caller holds the directory's lock.

    Raises:
        ConfigError: it cannot be read or written.
    """
    key = _key(directory / LEDGER_KEY, "the key of the ledger", "it cannot sign what follows on earlier checkpoints")
    return Ed25519PrivateKey.from_private_bytes(key)


def _key(file: Path, what: str, consequence: str) -> bytes:
    try:
        if not file.exists():
            return _make(file)
        key = read_private(file, _KEY_BYTES + 1)
        if len(key) == _KEY_BYTES:
            return key
        log.warning(f"{what} is damaged; another is made, and {consequence}", file=str(file))
        file.unlink()
        return _make(file)
    except OSError as error:
        raise ConfigError(f"cannot use {what}, {file}: {error.strerror}") from error


def _make(file: Path) -> bytes:
    key = secrets.token_bytes(_KEY_BYTES)
    create_private(file, key, synced=True)
    return key
