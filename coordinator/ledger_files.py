"""Ledger of a run directory: a new one, or the one of the run that is resumed, held against its signed checkpoint.

ledger.jsonl        the leaves, one on a line
ledger.checkpoints  for each round: the signed checkpoint, and the hashes of the leaves since the line before
ledger.vkey         the public key
"""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hypergpu.common import strict_json
from hypergpu.common.errors import CannotResume, ConfigError, CorruptData
from hypergpu.common.merkle import MerkleTree, leaf_hash
from hypergpu.common.signed_note import Signer
from hypergpu.coordinator.core.ledger import ORIGIN, Ledger, checkpoint_row
from hypergpu.coordinator.saved_state import SavedLedger

LEAVES: Final = "ledger.jsonl"
CHECKPOINTS: Final = "ledger.checkpoints"
KEY: Final = "ledger.vkey"
FILES: Final = (LEAVES, CHECKPOINTS, KEY)

log = structlog.get_logger()


@dataclass(frozen=True)
class OpenedLedger:
    """Ledger, and what its files hold when the run begins or goes on."""

    ledger: Ledger
    kept_bytes: int = 0
    """Beginning of the file of leaves that stays."""
    leaves: Sequence[str] = ()
    """Leaves that follow it."""
    checkpoints: Sequence[dict[str, Any]] = ()
    """Lines of the file of checkpoints."""
    fault: str = ""
    """Reason for which an earlier ledger of this run could not go on; empty if there is none."""


def open_ledger(
    directory: Path, key: Ed25519PrivateKey, saved: SavedLedger | None, *, may_replace: bool
) -> OpenedLedger:
    """Return the ledger that goes on from a saved state, or a new one if there is none.

    With `may_replace` a ledger that cannot go on gives way to a new one.

    Raises:
        CannotResume: The files do not lead to the signed checkpoint, or lead beyond it.
    """
    fault = ""
    if saved is not None:
        try:
            return _go_on(directory, Signer(saved.origin, key), saved)
        except (CorruptData, ConfigError) as error:
            fault = f"the ledger {saved.origin} cannot go on: {error}"
            if not may_replace:
                raise CannotResume(
                    f"{fault}. Restore ledger.jsonl, ledger.checkpoints and .ledger-key in {directory} from a backup, "
                    "or begin another ledger with --force: nodes take it for that of another run"
                ) from error
            log.warning(fault)
    return OpenedLedger(Ledger(Signer(f"{ORIGIN}{secrets.token_hex(6)}", key)), fault=fault)


def set_aside(directory: Path) -> None:
    """Rename the files of a ledger that cannot go on.

    Raises:
        OSError: They cannot be renamed.
    """
    number = next(each for each in count(1) if not any((directory / _aside(file, each)).exists() for file in FILES))
    for file in FILES:
        if (directory / file).exists():
            (directory / file).rename(directory / _aside(file, number))


def _aside(file: str, number: int) -> str:
    return file.replace("ledger", f"ledger-{number}")


def _go_on(directory: Path, signer: Signer, saved: SavedLedger) -> OpenedLedger:
    """Return the ledger of a saved state.

    Raises:
        CorruptData: The leaves are not those that were signed, or a later checkpoint was published.
        ConfigError: A file cannot be read.
    """
    tree, kept_bytes = MerkleTree(), 0
    for line in _first_lines(directory / LEAVES, saved.first):
        tree.append(leaf_hash(line[:-1]))
        kept_bytes += len(line)
    if tree.size < saved.first:
        raise CorruptData(f"{LEAVES} has {tree.size} leaves, and {saved.first} were written")
    for each in saved.leaves:
        tree.append(leaf_hash(each.encode()))
    if saved.size:
        signed = signer.verifier.open(saved.note)
        if (signed.size, signed.root) != (tree.size, tree.root()):
            raise CorruptData(f"its leaves do not lead to the signed checkpoint of {signed.size} leaves")
    checkpoints = list(_checkpoints(directory / CHECKPOINTS, tree, saved))
    return OpenedLedger(Ledger(signer, tree, saved.note, saved.leaves), kept_bytes, saved.leaves, checkpoints)


def _first_lines(file: Path, count: int) -> Iterator[bytes]:
    """Yield the first lines of a file, as far as they are whole."""
    if not count:
        return
    try:
        with file.open("rb") as opened:
            for _ in range(count):
                line = opened.readline(strict_json.MAX_LINE_BYTES)
                if not line.endswith(b"\n"):
                    return
                yield line
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error


def _checkpoints(file: Path, tree: MerkleTree, saved: SavedLedger) -> Iterator[dict[str, Any]]:
    """Yield the lines of the file of checkpoints, up to that of the saved state.

    Raises:
        CorruptData: A later checkpoint was published.
    """
    size = 0
    rows = strict_json.read_lines(file, on_invalid=lambda _: None) if file.exists() else iter(())
    for row in rows:
        number = row.get("size")
        if not isinstance(number, int) or not size < number:
            continue
        if number > saved.size:
            raise CorruptData(f"nodes may have seen it with {number} leaves, and the run goes back to {saved.size}")
        size = number
        yield row
    if size < saved.size:
        yield checkpoint_row(tree, size, saved.size, saved.note)
