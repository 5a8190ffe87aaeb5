"""Proof that a receipt is in a ledger, in the text format of C2SP (c2sp.org/tlog-proof).

c2sp.org/tlog-proof@v1
extra eyJhdHRlbXB0Ijox…       the leaf, in base64
index 421
gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=
…                             hashes from the leaf to the root

hypergpu/3f9c1a7e5b20         the checkpoint
…
"""

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hypergpu.common import strict_json
from hypergpu.common.errors import CorruptData, InvalidInput
from hypergpu.common.merkle import HASH_BYTES, MOST_HASHES, leaf_hash, require_inclusion
from hypergpu.common.receipt import is_leaf_signed
from hypergpu.common.signed_note import Checkpoint, VerifierKey, decoded
from hypergpu.ledger.files import LedgerFiles
from hypergpu.ledger.receipts import RECEIPT
from hypergpu.ledger.verifying import of_kind

MAX_PROOF_BYTES: Final = 64 << 10
_HEADER: Final = "c2sp.org/tlog-proof@v1"
_LINES = re.compile(rf"{re.escape(_HEADER)}\nextra (\S+)\nindex (0|[1-9]\d{{0,17}})\n((?:\S+\n)*)\n", re.ASCII)


@dataclass(frozen=True)
class Proven:
    """Leaf that a proof shows to be in a ledger."""

    leaf: Mapping[str, Any]
    index: int
    checkpoint: Checkpoint
    is_signed_by_node: bool


def prove(directory: Path, node: str, round_number: int) -> str:
    """Return the proof of a node's receipt for a round: of the accepted one, if there are several.

    Raises:
        InvalidInput: There is none, or it is in no checkpoint yet.
        ConfigError: A file cannot be read.
        CorruptData: The ledger is damaged.
    """
    files = LedgerFiles(directory)
    leaves, key = files.leaves(), files.key()
    found = [
        (leaf.get("outcome") == "accepted", index)
        for index, leaf in of_kind(leaves, RECEIPT)
        if (leaf.get("kind"), leaf.get("node"), leaf.get("round")) == ("receipt", node, round_number)
    ]
    if not found:
        raise InvalidInput(f"the ledger has no receipt of {node[:64]!r} for round {round_number}")
    _, index = max(found)
    note = files.last_note()
    size = key.open(note).size
    tree = files.tree()
    if not index < size <= tree.size:
        raise InvalidInput(f"the receipt is leaf {index + 1}, and the last checkpoint has {size} leaves")
    hashes = "".join(f"{b64encode(each).decode()}\n" for each in tree.inclusion(index, size))
    return f"{_HEADER}\nextra {b64encode(leaves[index]).decode()}\nindex {index}\n{hashes}\n{note}"


def check(proof: str, key: VerifierKey) -> Proven:
    """Return the leaf that a proof shows to be in the ledger with this key.

    Raises:
        CorruptData: It does not show it.
    """
    found = _LINES.match(proof)
    if found is None or len(proof) > MAX_PROOF_BYTES:
        raise CorruptData(f"this is no proof; expected a text that begins with {_HEADER}")
    hashes = [decoded(line) for line in found[3].splitlines()]
    if len(hashes) > MOST_HASHES or any(len(each) != HASH_BYTES for each in hashes):
        raise CorruptData("the proof has hashes of another length, or too many")
    checkpoint, leaf, index = key.open(proof[found.end() :]), decoded(found[1]), int(found[2])
    require_inclusion(leaf_hash(leaf), index, checkpoint.size, checkpoint.root, hashes)
    try:
        content = strict_json.parse_object(leaf)
    except ValueError as error:
        raise CorruptData(f"the leaf is {error}") from error
    return Proven(content, index, checkpoint, is_leaf_signed(content))
