"""Proof that a ledger goes on from an earlier size of it, or from a checkpoint that somebody has kept."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypergpu.common.errors import CorruptData, InvalidInput
from hypergpu.common.files import read_text, shown
from hypergpu.common.merkle import MerkleTree, require_consistency
from hypergpu.common.signed_note import MAX_NOTE_BYTES, VerifierKey
from hypergpu.ledger.files import LedgerFiles


@dataclass(frozen=True)
class Comparison:
    """Proof of consistency, or the reason why there is none."""

    origin: str
    old: int
    old_root: str
    size: int
    root: str
    proof: Sequence[bytes] = ()
    fault: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        proof = [b64encode(each).decode() for each in self.proof]
        roots = {"old_root": self.old_root, "root": self.root}
        sizes = {"origin": self.origin, "old": self.old, "size": self.size}
        return {**sizes, **roots, "proof": proof, "consistent": not self.fault, "fault": self.fault}


def compare(directory: Path, old: str, new: str | None, key: VerifierKey | None) -> Comparison:
    """Return the proof that the first `new` leaves begin with `old`: a number of leaves, or a file with a checkpoint.

    Raises:
        InvalidInput: There are not so many leaves.
        ConfigError: A file cannot be read.
        CorruptData: The kept checkpoint is none of this ledger.
    """
    files = LedgerFiles(directory)
    key = key or files.key()
    tree = files.tree()
    size = tree.size if new is None else _number(new, tree.size)
    if old.isdecimal():
        kept_size = _number(old, size)
        kept_root = tree.root(kept_size)
    else:
        kept = key.open(read_text(Path(old), MAX_NOTE_BYTES))
        kept_size, kept_root = kept.size, kept.root
    origin, root = key.name, tree.root(size)
    described = (origin, kept_size, b64encode(kept_root).decode(), size, b64encode(root).decode())
    try:
        proof = tree.consistency(kept_size, size) if kept_size <= size else []
        require_consistency(kept_size, kept_root, size, root, proof)
    except CorruptData:
        return Comparison(*described, fault=_fault(tree, directory, kept_size, size))
    return Comparison(*described, proof=proof)


def _fault(tree: MerkleTree, directory: Path, kept: int, size: int) -> str:
    if kept > size:
        return f"the ledger in {shown(directory)} has {size} leaves, and the checkpoint {kept}: it was taken back"
    return f"the first {kept} of {tree.size} leaves in {shown(directory)} are not those of the checkpoint: a fork"


def _number(text: str, most: int) -> int:
    if not text.isdecimal() or len(text) > 18 or not 0 < int(text) <= most:
        raise InvalidInput(f"{text[:40]!r} is no number of leaves; expected 1 to {most}")
    return int(text)
