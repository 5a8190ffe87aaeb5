"""Files of a ledger, as bytes that are not trusted yet."""

from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hypergpu.common import strict_json
from hypergpu.common.errors import ConfigError, CorruptData
from hypergpu.common.files import read_text, shown
from hypergpu.common.merkle import HASH_BYTES, MerkleTree, leaf_hash
from hypergpu.common.signed_note import MAX_KEY_BYTES, VerifierKey, decoded, verifier_key
from hypergpu.coordinator.ledger_files import CHECKPOINTS, KEY, LEAVES

MAX_BYTES: Final = 8 << 30
"""Largest file of a ledger that is read: about 20 million leaves."""


@dataclass(frozen=True)
class CheckpointLine:
    """Line of ledger.checkpoints."""

    number: int
    size: int
    hashes: Sequence[bytes]
    """Hashes of the leaves since the line before."""
    note: str


@dataclass(frozen=True)
class LedgerFiles:
    """Files of a ledger.

    Raises:
        ConfigError: There is none, or a file cannot be read.
    """

    directory: Path
    is_live: bool = False
    """A coordinator writes to them: a line that is not whole yet is left out."""

    def __post_init__(self) -> None:
        if not (self.directory / LEAVES).is_file():
            raise ConfigError(
                f"{shown(self.directory)} has no {LEAVES}: name the directory of a run, and no simulated one"
            )

    def key(self) -> VerifierKey:
        """Return the key that lies beside the ledger.

        Raises:
            CorruptData: It is damaged.
        """
        text = read_text(self.directory / KEY, MAX_KEY_BYTES)
        key = verifier_key(text)
        if text != f"{key}\n":
            raise CorruptData("there is more in it than a key")
        return key

    def leaves(self) -> list[bytes]:
        """Return the leaves.

        Raises:
            CorruptData: The last one is not whole.
        """
        return self.lines(LEAVES)

    def checkpoints(self) -> Iterator[CheckpointLine]:
        """Yield the lines of ledger.checkpoints.

        Raises:
            CorruptData: A line is none; the message names it.
        """
        for number, line in enumerate(self.lines(CHECKPOINTS), 1):
            try:
                yield _checkpoint(number, line)
            except ValueError as error:
                raise CorruptData(f"line {number} was changed: {error}") from error

    def tree(self) -> MerkleTree:
        """Return the tree of the leaves."""
        return MerkleTree(map(leaf_hash, self.leaves()))

    def last_note(self) -> str:
        """Return the last checkpoint.

        Raises:
            CorruptData: There is none.
        """
        lines = list(self.checkpoints())
        if not lines:
            raise CorruptData("the ledger has no checkpoint yet: the first is made when a round has closed")
        return lines[-1].note

    def _read(self, name: str) -> bytes:
        """Return what a file holds now; it may grow meanwhile."""
        file = self.directory / name
        try:
            size = file.stat().st_size
        except OSError as error:
            raise ConfigError(f"cannot read {shown(file)}: {error.strerror}") from error
        if size > MAX_BYTES:
            raise ConfigError(f"cannot read {shown(file)}: larger than {MAX_BYTES:,} bytes")
        try:
            with file.open("rb") as opened:
                return opened.read(size)
        except OSError as error:
            raise ConfigError(f"cannot read {shown(file)}: {error.strerror}") from error

    def lines(self, name: str) -> list[bytes]:
        """Return the lines of a file.

        Raises:
            CorruptData: The last one is not whole.
            ConfigError: It cannot be read.
        """
        *lines, rest = self._read(name).split(b"\n")
        if rest and not self.is_live:
            raise CorruptData(f"line {len(lines) + 1} is not whole")
        return lines


def read_key(text: str) -> VerifierKey:
    """Return the key in a file, or the one that a text itself is.

    Raises:
        CorruptData: It is none.
        ConfigError: The file cannot be read.
    """
    return verifier_key(text if text.count("+") >= 2 and "\n" not in text else read_text(Path(text), MAX_KEY_BYTES))


def _checkpoint(number: int, line: bytes) -> CheckpointLine:
    """Return a line of checkpoints.

    Raises:
        ValueError: It is none, or is written in another way than the coordinator writes it.
    """
    row: dict[str, Any] = strict_json.parse_object(line)
    size, hashes, note = row.get("size"), row.get("hashes"), row.get("note")
    if not isinstance(size, int) or not isinstance(hashes, str) or not isinstance(note, str):
        raise ValueError("it has no size, hashes or note")
    raw = decoded(hashes)
    written = {"size": size, "hashes": b64encode(raw).decode(), "note": note}
    if strict_json.dumps(written, separators=(",", ":")) != line.decode():
        raise ValueError("it is not as the coordinator writes it")
    parts = [raw[at : at + HASH_BYTES] for at in range(0, len(raw), HASH_BYTES)]
    if not parts or len(parts[-1]) != HASH_BYTES:
        raise ValueError("its hashes are not whole")
    return CheckpointLine(number, size, parts, note)
