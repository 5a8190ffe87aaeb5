"""Verification of a ledger: every byte is held against signed checkpoints, and the first fault in a file is named."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from hypergpu.common import strict_json
from hypergpu.common.errors import ConfigError, CorruptData
from hypergpu.common.merkle import MerkleTree, leaf_hash
from hypergpu.common.signed_note import VerifierKey
from hypergpu.coordinator.ledger_files import CHECKPOINTS, KEY, LEAVES
from hypergpu.coordinator.run_dir import ROUNDS
from hypergpu.coordinator.run_lock import is_written
from hypergpu.ledger.files import CheckpointLine, LedgerFiles
from hypergpu.ledger.receipts import NODE, RECEIPT, ReceiptChecks

_ROUND: Final = b'"kind":"round"'
_COUNTS: Final = ("leaves", "signed", "checkpoints", "rounds", "receipts", "unsigned")


@dataclass(frozen=True)
class Fault:
    """Place where a ledger is not what was signed."""

    file: str
    line: int
    """Number of the line; 0 if it concerns the whole file."""
    text: str

    def __str__(self) -> str:
        where = f"{self.file}, line {self.line}" if self.line else self.file
        return f"{where}: {self.text}"


@dataclass
class Verdict:
    """Result of a verification."""

    origin: str = ""
    leaves: int = 0
    signed: int = 0
    """Number of leaves that are in a valid checkpoint."""
    checkpoints: int = 0
    rounds: int = 0
    receipts: int = 0
    """Number of receipts that a node has signed."""
    unsigned: int = 0
    """Number of receipts of nodes without a key."""
    is_live: bool = False
    """A coordinator writes to the run: what it has not signed yet is no fault."""
    faults: list[Fault] = field(default_factory=list)

    def fault(self, file: str, line: int, text: str) -> None:
        """Note a fault."""
        self.faults.append(Fault(file, line, text))

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON."""
        faults = [{"file": each.file, "line": each.line, "text": each.text} for each in self.faults]
        counts = {name: getattr(self, name) for name in _COUNTS}
        return {"origin": self.origin, **counts, "valid": not faults, "faults": faults}


def verify(directory: Path, key: VerifierKey | None = None) -> Verdict:
    """Verify the ledger of a run.

    Args:
        directory: Directory of the run.
        key: Public key from another source; by default the one beside the ledger.

    Raises:
        ConfigError: There is no ledger, or a file cannot be read.
    """
    is_live = is_written(directory)
    files, verdict = LedgerFiles(directory, is_live), Verdict(is_live=is_live)
    beside = _key(files, verdict)
    if key is not None and beside is not None and beside != key:
        verdict.fault(KEY, 1, f"it is the key {beside}, and {key} was given")
    key = key or beside
    if key is None:
        return verdict
    verdict.origin = key.name
    expected, tree = _signed_hashes(files, key, verdict)
    leaves = _leaves(files, verdict)
    _compare(leaves, expected, verdict)
    if not verdict.faults:
        signed = leaves[: verdict.signed]
        _compare_rounds(files, signed, verdict)
        _check_receipts(signed, tree, verdict)
    return verdict


def _key(files: LedgerFiles, verdict: Verdict) -> VerifierKey | None:
    try:
        return files.key()
    except (CorruptData, ConfigError) as error:
        verdict.fault(KEY, 0, str(error))
        return None


def _signed_hashes(files: LedgerFiles, key: VerifierKey, verdict: Verdict) -> tuple[list[bytes], MerkleTree]:
    """Return the hashes of the leaves that valid checkpoints sign, and their tree."""
    tree, hashes = MerkleTree(), list[bytes]()
    try:
        for line in files.checkpoints():
            fault = _checkpoint_fault(line, key, tree)
            if fault:
                verdict.fault(CHECKPOINTS, line.number, fault)
                break
            hashes += line.hashes
            verdict.checkpoints += 1
    except (CorruptData, ConfigError) as error:
        verdict.fault(CHECKPOINTS, 0, str(error))
    verdict.signed = len(hashes)
    return hashes, tree


def _checkpoint_fault(line: CheckpointLine, key: VerifierKey, tree: MerkleTree) -> str:
    """Return the fault of a line of checkpoints, and let its leaves enter the tree; empty if it is valid."""
    before = tree.size
    if line.size != before + len(line.hashes):
        return (
            f"it has {line.size} leaves and {len(line.hashes)} hashes, and the lines before have {before} leaves: "
            "a line was dropped, or is in another place"
        )
    try:
        signed = key.open(line.note)
    except CorruptData as error:
        return str(error)
    if signed.size != line.size:
        return f"it says {line.size} leaves, and {signed.size} are signed"
    for each in line.hashes:
        tree.append(each)
    return "" if tree.root() == signed.root else "its hashes do not lead to the signed root"


def _leaves(files: LedgerFiles, verdict: Verdict) -> list[bytes]:
    try:
        leaves = files.leaves()
    except CorruptData as error:
        verdict.fault(LEAVES, 0, str(error))
        return []
    verdict.leaves = len(leaves)
    return leaves


def _compare(leaves: Sequence[bytes], expected: Sequence[bytes], verdict: Verdict) -> None:
    """Find the first leaf that is not the signed one."""
    if verdict.leaves == 0 and verdict.faults:
        return
    for index, (leaf, signed) in enumerate(zip(leaves, expected, strict=False)):
        if leaf_hash(leaf) != signed:
            verdict.fault(LEAVES, index + 1, _difference(leaves, expected, index))
            return
    if len(leaves) < len(expected):
        last = f"leaves {len(leaves) + 1} to {len(expected)} were dropped from its end"
        verdict.fault(LEAVES, len(leaves) + 1, last)
    elif len(leaves) > len(expected) and not verdict.faults and not verdict.is_live:
        text = (
            f"leaves {len(expected) + 1} to {len(leaves)} are in no checkpoint: the last line of {CHECKPOINTS} was "
            "dropped, or the coordinator died: `--resume` completes it"
        )
        verdict.fault(LEAVES, len(expected) + 1, text)


def _difference(leaves: Sequence[bytes], expected: Sequence[bytes], index: int) -> str:
    """Return what became of the first leaf that is not as it was signed."""
    here, hashes = leaf_hash(leaves[index]), set(map(leaf_hash, leaves[index:]))
    described = describe(leaves[index])
    if here in set(expected[index:]):
        place = expected.index(here, index) + 1
        if expected[index] not in hashes:
            return f"leaf {index + 1} was dropped; here is leaf {place} ({described})"
        return f"leaf {index + 1} is in another place; here is leaf {place} ({described})"
    if expected[index] in hashes:
        return f"a line was put before leaf {index + 1} ({described})"
    return f"leaf {index + 1} was changed ({described})"


def describe(leaf: bytes) -> str:
    """Return a few words about a leaf, whatever it holds."""
    try:
        found = strict_json.parse_object(leaf)
    except ValueError:
        return "which is no JSON now"
    words = [str(found.get(name, ""))[:64] for name in ("kind", "about", "node", "subject")]
    return f"{' '.join(filter(None, words))}, round {str(found.get('round', '?'))[:20]}"


def of_kind(leaves: Sequence[bytes], mark: bytes) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the leaves that have a mark, with their places from 0."""
    for index, leaf in enumerate(leaves):
        if mark in leaf:
            try:
                yield index, strict_json.parse_object(leaf)
            except ValueError:  # no coordinator writes that; what it commits to is not this
                continue


def _check_receipts(leaves: Sequence[bytes], tree: MerkleTree, verdict: Verdict) -> None:
    """Check the receipts, and find the first that is not as its node signed it."""
    checks = ReceiptChecks(tree)
    found = sorted([*of_kind(leaves, NODE), *of_kind(leaves, RECEIPT)], key=lambda each: each[0])
    faults = list(checks.faults(found))
    if faults:
        index, text = faults[0]
        verdict.fault(LEAVES, index + 1, text)
    verdict.receipts, verdict.unsigned = checks.signed, checks.unsigned


def _compare_rounds(files: LedgerFiles, leaves: Sequence[bytes], verdict: Verdict) -> None:
    """Hold rounds.jsonl against the leaves of the rounds."""
    found = (leaf for _, leaf in of_kind(leaves, _ROUND) if leaf.get("kind") == "round")
    signed = {leaf["round"]: leaf.get("row") for leaf in found if isinstance(leaf.get("round"), int)}
    verdict.rounds, first, last = len(signed), min(signed, default=0), max(signed, default=0)
    try:
        lines = files.lines(ROUNDS)
    except (CorruptData, ConfigError) as error:
        verdict.fault(ROUNDS, 0, str(error))
        return
    for number, line in enumerate(lines, 1):
        try:
            row = strict_json.parse_object(line).get("round")
        except ValueError:
            row = None
        if isinstance(row, int) and 1 <= row < first:
            continue  # of a ledger that could not go on
        if isinstance(row, int) and row > last and verdict.is_live:
            return
        digest = signed.pop(row, None) if isinstance(row, int) else None
        if digest != sha256(line).hexdigest():
            which = f"round {row}" if digest else "a round"
            verdict.fault(ROUNDS, number, f"it is not the line of {which} that was signed")
            return
    if signed:
        verdict.fault(ROUNDS, 0, f"the line of round {min(signed)} was dropped")
