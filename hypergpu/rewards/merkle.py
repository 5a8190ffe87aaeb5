"""Merkle tree of OpenZeppelin's `StandardMerkleTree`, which contracts check and other tools read.

A leaf is keccak256(keccak256(ABI encoding)): the double hash keeps an inner node from passing for a leaf. Leaves are
sorted, the tree is a complete binary tree in an array with its root first, and the two hashes below a node are sorted.
Source: github.com/OpenZeppelin/merkle-tree, format `standard-v1`.
"""

from collections.abc import Sequence

from hypergpu.rewards.keccak import keccak256


def leaf_hash(encoded: bytes) -> bytes:
    """Return the leaf of an ABI encoding."""
    return keccak256(keccak256(encoded))


def _parent(first: bytes, second: bytes) -> bytes:
    return keccak256(min(first, second) + max(first, second))


class MerkleTree:
    """Tree of leaves, which are given in any order.

    Args:
        leaves: Hashes of the leaves; at least one.
    """

    def __init__(self, leaves: Sequence[bytes]) -> None:
        if not leaves:
            raise ValueError("a tree needs a leaf")
        order = sorted(range(len(leaves)), key=leaves.__getitem__)
        size = 2 * len(leaves) - 1
        nodes = [b""] * size
        self.places = [0] * len(leaves)
        """Index in `nodes` of each leaf."""
        for rank, leaf in enumerate(order):
            self.places[leaf] = size - 1 - rank
            nodes[size - 1 - rank] = leaves[leaf]
        for at in range(size - 1 - len(leaves), -1, -1):
            nodes[at] = _parent(nodes[2 * at + 1], nodes[2 * at + 2])
        self.nodes: Sequence[bytes] = nodes
        """Hashes, the root first."""

    @property
    def root(self) -> bytes:
        """Hash of the whole tree."""
        return self.nodes[0]

    def proof(self, leaf: int) -> list[bytes]:
        """Return the hashes that lead from a leaf, given by its number, to the root."""
        at, proof = self.places[leaf], []
        while at:
            proof.append(self.nodes[at + 1 if at % 2 else at - 1])
            at = (at - 1) // 2
        return proof


def verifies(leaf: bytes, proof: Sequence[bytes], root: bytes) -> bool:
    """Return whether a proof leads from a leaf to the root."""
    for each in proof:
        leaf = _parent(leaf, each)
    return leaf == root
