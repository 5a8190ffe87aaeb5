"""Distribution of an epoch's amount: the leaves, their tree, and the file that anybody can check it with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from hypergpu.common.errors import InvalidInput
from hypergpu.rewards.merkle import MerkleTree, leaf_hash, verifies
from hypergpu.rewards.shares import divide

LEAF_ENCODING: Final = ["uint256", "address", "uint256"]
"""Types of (index, account, amount)."""
LARGEST_AMOUNT: Final = (1 << 256) - 1


@dataclass(frozen=True)
class Share:
    """One leaf: what an account may claim."""

    node: str
    index: int
    address: str
    amount: int

    @property
    def leaf(self) -> bytes:
        """Hash of the leaf; each of its fields takes 32 bytes."""
        account = bytes.fromhex(self.address[2:]).rjust(32, b"\0")
        return leaf_hash(self.index.to_bytes(32) + account + self.amount.to_bytes(32))


class Distribution:
    """Shares of an amount, and their Merkle tree.

    Args:
        shares: At least one share; its index is its place.
    """

    def __init__(self, shares: list[Share]) -> None:
        self.shares = shares
        self._tree = MerkleTree([share.leaf for share in shares])

    @property
    def root(self) -> str:
        """Root for the contract, in hexadecimal digits."""
        return _hex(self._tree.root)

    @property
    def total(self) -> int:
        """Sum of the shares."""
        return sum(share.amount for share in self.shares)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object that OpenZeppelin's `StandardMerkleTree.load` reads, with the proof of each share.

        Amounts are texts: JSON's numbers lose digits above 2^53 in most readers.
        """
        proofs = [self._tree.proof(share.index) for share in self.shares]
        assert all(
            verifies(share.leaf, proof, self._tree.root) for share, proof in zip(self.shares, proofs, strict=True)
        )
        return {
            "format": "standard-v1",
            "leafEncoding": LEAF_ENCODING,
            "tree": [_hex(node) for node in self._tree.nodes],
            "values": [
                {"value": [str(share.index), share.address, str(share.amount)], "treeIndex": place}
                for share, place in zip(self.shares, self._tree.places, strict=True)
            ],
            "root": self.root,
            "total": str(self.total),
            "claims": [
                {
                    "node": share.node,
                    "index": share.index,
                    "address": share.address,
                    "amount": str(share.amount),
                    "proof": [_hex(each) for each in proof],
                }
                for share, proof in zip(self.shares, proofs, strict=True)
            ],
        }


def distribute(total: int, scores: Mapping[str, float], addresses: Mapping[str, str]) -> Distribution:
    """Divide an amount among the nodes by their scores.

    Args:
        total: Amount in the smallest unit of the token.
        scores: Score of each node.
        addresses: Address of each node; an empty one takes no share.

    Raises:
        InvalidInput: The amount is out of range, a node with a share has no address, an address is of a node that the
            run does not know, or nobody is left to pay.
    """
    if not 0 < total <= LARGEST_AMOUNT:
        raise InvalidInput(f"the amount is {total}; expected 1 to 2^256 - 1 of the token's smallest unit")
    unknown = sorted(addresses.keys() - scores.keys())
    if unknown:
        raise InvalidInput(f"the run knows no {_named(unknown)}, which have an address: correct the name, or remove it")
    missing = sorted(node for node, score in scores.items() if score > 0 and node not in addresses)
    if missing:
        raise InvalidInput(
            f"{_named(missing)} earned a share and have no address: add one, or an empty one for whoever takes no share"
        )
    paid = {node: score for node, score in scores.items() if addresses.get(node)}
    shares = sorted(divide(total, paid).items())
    return Distribution([Share(node, at, addresses[node], amount) for at, (node, amount) in enumerate(shares)])


def _named(nodes: list[str]) -> str:
    return ", ".join(nodes[:5]) + (f" and {len(nodes) - 5} more" if len(nodes) > 5 else "")


def _hex(data: bytes) -> str:
    return f"0x{data.hex()}"
