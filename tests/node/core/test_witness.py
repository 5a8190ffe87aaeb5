"""A node as the witness of a ledger: what it is shown has to go on from what it has seen."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.errors import CorruptData, ForkedLedger
from hypergpu.common.merkle import MerkleTree, leaf_hash
from hypergpu.common.signed_note import Signer
from hypergpu.node.core.witness import Witness

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SIGNER = Signer("hypergpu/0123456789ab", KEY)
TREE = MerkleTree(leaf_hash(b"%d" % number) for number in range(40))
OTHER = MerkleTree(leaf_hash(b"%d" % (number if number != 3 else 99)) for number in range(40))


def note(size: int, tree: MerkleTree = TREE, signer: Signer = SIGNER) -> str:
    return signer.sign(size, tree.root(size))


def witness(size: int = 0, kept: str = "") -> Witness:
    """A witness that has seen this many leaves."""
    found = Witness(kept)
    found.begin(str(SIGNER.verifier))
    if size:
        assert found.see(note(size), [])
    return found


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_log_that_grows_is_followed_and_a_fork_of_any_size_is_refused(old: int, new: int) -> None:
    old, new = min(old, new), max(old, new)
    follows = witness(old)
    assert follows.see(note(new), TREE.consistency(old, new)) is (new > old)
    assert (follows.size, follows.root) == (new, TREE.root(new))
    if old > 3:
        with pytest.raises(ForkedLedger, match=f"was forked or taken back after {old} leaves") as caught:
            witness(old).see(note(new, OTHER), OTHER.consistency(old, new))
        assert (caught.value.seen, caught.value.now) == (note(old), note(new, OTHER))


def test_a_log_that_was_taken_back_is_refused() -> None:
    with pytest.raises(ForkedLedger, match="no proof that a log of 7 leaves begins with 8"):
        witness(8).see(note(7), [])


def test_a_log_that_is_not_shown_any_more_is_refused_with_the_second_reply() -> None:
    watching = witness(8)
    assert not watching.see("", [])
    with pytest.raises(ForkedLedger, match="no checkpoint is shown any more"):
        watching.see("", [])
    new = witness()
    assert not any(new.see("", []) for _ in range(5)), "nothing is shown before the first round has closed"


def test_a_wrong_proof_signature_or_text_is_refused() -> None:
    forged = note(9, signer=Signer(SIGNER.verifier.name, Ed25519PrivateKey.from_private_bytes(bytes(32))))
    for shown, proof in ((note(9), []), (note(9), [b"short"]), (forged, TREE.consistency(8, 9)), ("text", [])):
        with pytest.raises(ForkedLedger):
            witness(8).see(shown, proof)


def test_the_same_ledger_keeps_its_key_and_another_run_has_another_ledger() -> None:
    watching = witness(8)
    watching.begin(str(SIGNER.verifier))
    assert watching.size == 8, "a registration with the same run"
    stranger = Signer(SIGNER.verifier.name, Ed25519PrivateKey.from_private_bytes(bytes(32)))
    with pytest.raises(ForkedLedger, match="had the key"):
        watching.begin(str(stranger.verifier))
    watching.begin(str(Signer("hypergpu/ffffffffffff", KEY).verifier))
    assert watching.size == 0
    with pytest.raises(CorruptData):
        watching.begin("")


def test_the_next_process_of_a_node_goes_on_from_what_was_kept() -> None:
    again = witness(kept=note(8))
    assert again.size == 8
    with pytest.raises(ForkedLedger):
        again.see(note(9, OTHER), OTHER.consistency(8, 9))
    assert witness(kept=note(8, signer=Signer("hypergpu/ffffffffffff", KEY))).size == 0, "of another run"
    assert witness(kept="damaged").size == 0
    stranger = Signer(SIGNER.verifier.name, Ed25519PrivateKey.from_private_bytes(bytes(32)))
    with pytest.raises(ForkedLedger, match="had another key when this node saw it last"):
        Witness(note(8)).begin(str(stranger.verifier))
