"""Receipts in a ledger: each is signed by the key that its node announced, and names the ledger as the node saw it."""

from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from hypergpu.common.merkle import MerkleTree
from hypergpu.common.receipt import is_leaf_signed

RECEIPT: Final = b'"kind":"receipt"'
NODE: Final = b'"kind":"node"'


class ReceiptChecks:
    """Checks of receipts, in the order of the leaves.

    Args:
        tree: The leaves, all of which are signed.
    """

    def __init__(self, tree: MerkleTree) -> None:
        self._tree = tree
        self._keys: dict[str, str] = {}
        self._accepted: set[tuple[Any, ...]] = set()
        self.signed = 0
        self.unsigned = 0
        """Receipts of nodes without a key."""

    def faults(self, leaves: Sequence[tuple[int, Mapping[str, Any]]]) -> Iterator[tuple[int, str]]:
        """Yield the places of the leaves with a fault, and the fault."""
        for index, leaf in leaves:
            try:
                fault = self._fault(index, leaf) if leaf.get("kind") == "receipt" else self._announce(leaf)
            except (TypeError, ValueError):
                fault = "is none, although it is signed by the coordinator"
            if fault:
                node, number = str(leaf.get("node"))[:64], str(leaf.get("round"))[:20]
                yield index, f"the receipt of {node} for round {number} {fault}"

    def _announce(self, leaf: Mapping[str, Any]) -> str:
        """Note the key that a node has announced."""
        if leaf.get("kind") == "node":
            self._keys[str(leaf.get("node"))] = b64encode(b64decode(str(leaf.get("key", "")), validate=True)).decode()
        return ""

    def _fault(self, index: int, leaf: Mapping[str, Any]) -> str:
        if leaf.get("key") != self._keys.get(str(leaf.get("node")), ""):
            return "has another key than the node has announced"
        if leaf.get("key"):
            self.signed += 1
            if not is_leaf_signed(leaf):
                return "is not signed by the node"
        else:
            self.unsigned += 1
        work = tuple(leaf.get(name) for name in ("run_id", "round", "node", "attempt"))
        if leaf.get("outcome") == "accepted":
            if work in self._accepted:
                return "was accepted twice"
            self._accepted.add(work)
        return self._fault_of_view(index, leaf)

    def _fault_of_view(self, index: int, leaf: Mapping[str, Any]) -> str:
        """Return where the ledger is not the one that the node had seen when it signed."""
        size, root = leaf.get("ledger_size", 0), str(leaf.get("ledger_root", ""))
        if not size:
            return ""
        if not isinstance(size, int) or size > index or b64decode(root) != self._tree.root(size):
            return f"names a ledger of {size} leaves with the root {root}, and this one has another: it was forked"
        return ""
