"""Merkle tree of RFC 6962 (section 2.1): a log whose root commits to every leaf and to their order.

    tree = MerkleTree()
    tree.append(leaf_hash(b"one"))
    proof = tree.inclusion(0)
    require_inclusion(leaf_hash(b"one"), 0, tree.size, tree.root(), proof)

A leaf is hashed behind a byte 0x00 and an inner node behind 0x01, so that neither can pass for the other.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Final

from hypergpu.common.errors import CorruptData

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = sha256(b"").digest()
MOST_HASHES: Final = 64
"""Longest proof: that of a log of 2⁶⁴ leaves."""

Proof = Sequence[bytes]
"""Hashes of a proof, in the order of RFC 6962."""


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return sha256(b"\x01" + left + right).digest()


class MerkleTree:
    """Tree that only grows. It keeps the hash of each complete subtree: 64 bytes for each leaf.

    A leaf is appended in O(1) on average, and a root or a proof of any size so far takes O(log n).
    """

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        self._levels: list[bytearray] = [bytearray()]
        """Hashes of the complete subtrees of 1, 2, 4, … leaves, each level from the left."""
        for each in leaves:
            self.append(each)

    @property
    def size(self) -> int:
        """Number of leaves."""
        return len(self._levels[0]) // HASH_BYTES

    def append(self, leaf: bytes) -> None:
        """Add the hash of a leaf."""
        level, value = 0, leaf
        while True:
            if level == len(self._levels):
                self._levels.append(bytearray())
            hashes = self._levels[level]
            hashes += value
            if (len(hashes) // HASH_BYTES) % 2:
                return
            value = node_hash(bytes(hashes[-2 * HASH_BYTES : -HASH_BYTES]), value)
            level += 1

    def leaf(self, index: int) -> bytes:
        """Return the hash of a leaf."""
        return self._subtree(0, index)

    def root(self, size: int | None = None) -> bytes:
        """Return the root of the first `size` leaves; by default of all."""
        size = self._require_size(size)
        return self._range(0, size) if size else EMPTY_ROOT

    def inclusion(self, index: int, size: int | None = None) -> list[bytes]:
        """Return the proof that a leaf is among the first `size` leaves.

        Raises:
            ValueError: it is not.
        """
        size = self._require_size(size)
        if not 0 <= index < size:
            raise ValueError(f"leaf {index} of a tree of {size}")
        low, high, path = 0, size, []
        while high - low > 1:
            middle = low + _split(high - low)
            if index < middle:
                path.append(self._range(middle, high))
                high = middle
            else:
                path.append(self._range(low, middle))
                low = middle
        return path[::-1]

    def consistency(self, old: int, size: int | None = None) -> list[bytes]:
        """Return the proof that the first `size` leaves begin with the first `old` leaves.

        Raises:
            ValueError: there are fewer than `old`.
        """
        size = self._require_size(size)
        if not 0 <= old <= size:
            raise ValueError(f"{old} leaves of a tree of {size}")
        if old in (0, size):
            return []
        low, high, proof, is_old_root = 0, size, [], True
        while high != old:
            middle = low + _split(high - low)
            if old <= middle:
                proof.append(self._range(middle, high))
                high = middle
            else:
                proof.append(self._range(low, middle))
                low, is_old_root = middle, False
        if not is_old_root:
            proof.append(self._range(low, high))
        return proof[::-1]

    def _require_size(self, size: int | None) -> int:
        if size is None:
            return self.size
        if not 0 <= size <= self.size:
            raise ValueError(f"a size of {size}; the tree has {self.size} leaves")
        return size

    def _subtree(self, level: int, index: int) -> bytes:
        return bytes(self._levels[level][index * HASH_BYTES : (index + 1) * HASH_BYTES])

    def _range(self, low: int, high: int) -> bytes:
        """Return the hash of a range as it occurs in a tree: `low` is a multiple of the power of 2 that holds it."""
        count = high - low
        if count & (count - 1) == 0:
            level = count.bit_length() - 1
            return self._subtree(level, low >> level)
        middle = low + _split(count)
        return node_hash(self._range(low, middle), self._range(middle, high))


def require_inclusion(leaf: bytes, index: int, size: int, root: bytes, proof: Proof) -> None:
    """Check that a leaf is at its place in a tree (RFC 9162, section 2.1.3.2).

    Raises:
        CorruptData: the proof does not show it.
    """
    if not 0 <= index < size or len(proof) > MOST_HASHES:
        raise CorruptData(f"no proof that leaf {index} is in a log of {size} leaves")
    place, last, value = index, size - 1, leaf
    for each in proof:
        if not last:
            raise CorruptData("the proof of inclusion has too many hashes")
        if place % 2 or place == last:
            value = node_hash(each, value)
            while not place % 2 and place:
                place, last = place >> 1, last >> 1
        else:
            value = node_hash(value, each)
        place, last = place >> 1, last >> 1
    if last or value != root:
        raise CorruptData(f"the proof does not lead from leaf {index} to the root of the log of {size} leaves")


def require_consistency(old: int, old_root: bytes, size: int, root: bytes, proof: Proof) -> None:
    """Check that a log of `size` leaves begins with the log of `old` leaves (RFC 9162, section 2.1.4.2).

    Raises:
        CorruptData: the proof does not show it.
    """
    if not 0 <= old <= size or len(proof) > MOST_HASHES:
        raise CorruptData(f"no proof that a log of {size} leaves begins with {old}")
    if old in (0, size):
        expected = EMPTY_ROOT if not old else root
        if proof or old_root != expected:
            raise CorruptData(f"the two logs of {old} leaves are not the same")
        return
    found = _roots_of(old, old_root, size, proof)
    if found != (old_root, root):
        raise CorruptData(f"the log of {size} leaves does not begin with the log of {old} leaves")


def _roots_of(old: int, old_root: bytes, size: int, proof: Proof) -> tuple[bytes, bytes] | None:
    """Return the roots of both sizes to which a proof of consistency leads; None if it has a wrong number of hashes."""
    hashes = list(proof) if old & (old - 1) else [old_root, *proof]
    place, last = old - 1, size - 1
    while place % 2:
        place, last = place >> 1, last >> 1
    if not hashes:
        return None
    first = second = hashes[0]
    for each in hashes[1:]:
        if not last:
            return None
        if place % 2 or place == last:
            first, second = node_hash(each, first), node_hash(each, second)
            while not place % 2 and place:
                place, last = place >> 1, last >> 1
        else:
            second = node_hash(second, each)
        place, last = place >> 1, last >> 1
    return None if last else (first, second)


def _split(count: int) -> int:
    """Return the largest power of 2 below `count`, which is at least 2."""
    return 1 << ((count - 1).bit_length() - 1)
