"""The Merkle tree, held against the vectors of certificate-transparency and against the definition in RFC 6962."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.errors import CorruptData
from hypergpu.common.merkle import EMPTY_ROOT, MerkleTree, leaf_hash, node_hash, require_consistency, require_inclusion

LEAVES = [
    bytes.fromhex(each)
    for each in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
"""Inputs, roots and proofs of the tests of certificate-transparency (`merkle_tree_test.cc`)."""
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
A = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
B = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
C = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
D = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
E = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
F = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
INCLUSION = {
    (0, 1): (),
    (0, 8): (A, B, C),
    (5, 8): (D, E, ROOTS[3]),
    (2, 3): (ROOTS[1],),
    (1, 5): (ROOTS[0], B, D),
}
CONSISTENCY = {(1, 1): (), (1, 8): (A, B, C), (6, 8): (F, E, ROOTS[3]), (2, 5): (B, D)}


def tree_of(leaves: list[bytes]) -> MerkleTree:
    return MerkleTree(map(leaf_hash, leaves))


def defined_root(leaves: list[bytes]) -> bytes:
    """MTH(D[n]) as section 2.1 writes it."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaf_hash(leaves[0])
    half = 1
    while 2 * half < len(leaves):
        half *= 2
    return node_hash(defined_root(leaves[:half]), defined_root(leaves[half:]))


def test_the_vectors_of_certificate_transparency() -> None:
    tree = tree_of(LEAVES)
    assert [tree.root(size).hex() for size in range(1, 9)] == list(ROOTS)
    for (index, size), proof in INCLUSION.items():
        assert tuple(each.hex() for each in tree.inclusion(index, size)) == proof
    for (old, size), proof in CONSISTENCY.items():
        assert tuple(each.hex() for each in tree.consistency(old, size)) == proof
    assert MerkleTree().root() == EMPTY_ROOT


SMALL = st.lists(st.binary(max_size=8), min_size=1, max_size=70)


@given(SMALL, st.data())
def test_roots_and_proofs_of_any_size(leaves: list[bytes], data: st.DataObject) -> None:
    tree = tree_of(leaves)
    size = data.draw(st.integers(1, len(leaves)))
    old = data.draw(st.integers(0, size))
    index = data.draw(st.integers(0, size - 1))
    assert tree.root(size) == defined_root(leaves[:size])
    assert tree.leaf(index) == leaf_hash(leaves[index])
    require_inclusion(leaf_hash(leaves[index]), index, size, tree.root(size), tree.inclusion(index, size))
    require_consistency(old, tree.root(old), size, tree.root(size), tree.consistency(old, size))


@given(SMALL, st.data())
def test_no_other_leaf_place_size_or_proof_is_accepted(leaves: list[bytes], data: st.DataObject) -> None:
    leaves = [bytes([number]) + each for number, each in enumerate(leaves)]  # all of them differ
    tree = tree_of(leaves)
    size = tree.size
    index = data.draw(st.integers(0, size - 1))
    proof, root = tree.inclusion(index), tree.root()
    wrong = data.draw(st.integers(0, size).filter(lambda each: each != index))
    with pytest.raises(CorruptData):
        require_inclusion(leaf_hash(leaves[index]), wrong, size, root, proof)
    with pytest.raises(CorruptData):
        require_inclusion(leaf_hash(b"another"), index, size, root, proof)
    for changed in damaged(proof, data):
        with pytest.raises(CorruptData):
            require_inclusion(leaf_hash(leaves[index]), index, size, root, changed)


@given(SMALL, st.data())
def test_a_log_that_was_changed_before_the_old_size_is_not_consistent(leaves: list[bytes], data: st.DataObject) -> None:
    tree, size = tree_of(leaves), len(leaves)
    old = data.draw(st.integers(1, size))
    place = data.draw(st.integers(0, old - 1))
    other = tree_of([*leaves[:place], b"another leaf", *leaves[place + 1 :]])
    with pytest.raises(CorruptData):
        require_consistency(old, tree.root(old), size, other.root(), other.consistency(old))
    for changed in damaged(tree.consistency(old), data):
        with pytest.raises(CorruptData):
            require_consistency(old, tree.root(old), size, tree.root(), changed)


def damaged(proof: list[bytes], data: st.DataObject) -> list[list[bytes]]:
    """A proof with a hash too many, and with a changed bit, and one too few."""
    result = [[*proof, bytes(32)]]
    if proof:
        place = data.draw(st.integers(0, len(proof) - 1))
        bit = data.draw(st.integers(0, 255))
        value = (int.from_bytes(proof[place], "big") ^ (1 << bit)).to_bytes(32, "big")
        result += [[*proof[:place], value, *proof[place + 1 :]], [*proof[:place], *proof[place + 1 :]]]
    return result


def test_sizes_out_of_range_are_refused() -> None:
    tree = tree_of(LEAVES)
    for call in (
        lambda: tree.root(9),
        lambda: tree.inclusion(8),
        lambda: tree.inclusion(-1),
        lambda: tree.consistency(9),
    ):
        with pytest.raises(ValueError, match="of "):
            call()
    with pytest.raises(CorruptData):
        require_consistency(3, tree.root(3), 2, tree.root(2), [])
    with pytest.raises(CorruptData):
        require_consistency(0, tree.root(3), 8, tree.root(), [])
    with pytest.raises(CorruptData, match="no proof"):
        require_inclusion(tree.leaf(0), 0, 8, tree.root(), [bytes(32)] * 65)
