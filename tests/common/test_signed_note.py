"""Signed notes, held against an example of Go's `note` package, and against every change of a byte."""

from base64 import b64decode, b64encode

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.errors import CorruptData
from hypergpu.common.signed_note import Checkpoint, Signer, VerifierKey, is_signed, unverified, verifier_key

SIGNER = Signer("hypergpu/0123456789ab", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
ROOT = bytes(range(32))
NOTE = SIGNER.sign(1284, ROOT)
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
GO_SIGNATURE = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="


def test_a_key_and_a_signature_of_go_are_read() -> None:
    key = verifier_key(GO_KEY)
    assert (key.name, key.id.hex(), str(key)) == ("PeterNeumann", "c74f20a3", GO_KEY)
    raw = b64decode(GO_SIGNATURE)
    assert raw[:4] == key.id
    assert is_signed(key.key, GO_TEXT.encode(), raw[4:])


def test_a_checkpoint_has_the_lines_of_the_format() -> None:
    lines = NOTE.split("\n")
    assert lines[:4] == ["hypergpu/0123456789ab", "1284", b64encode(ROOT).decode(), ""]
    assert lines[4].startswith("\u2014 hypergpu/0123456789ab ")
    assert len(lines) == 6
    assert SIGNER.verifier.open(NOTE) == unverified(NOTE) == Checkpoint("hypergpu/0123456789ab", 1284, ROOT)


def test_a_further_signature_by_another_key_does_no_harm() -> None:
    other = Signer("other", Ed25519PrivateKey.from_private_bytes(bytes(32)))
    line = other.sign(1284, ROOT).split("\n")[-2]
    assert SIGNER.verifier.open(NOTE + line + "\n").size == 1284
    with pytest.raises(CorruptData, match="not signed by the key other"):
        other.verifier.open(NOTE)


@given(st.integers(0, len(NOTE.encode()) - 1), st.integers(1, 255))
def test_no_changed_byte_is_accepted(place: int, change: int) -> None:
    data = bytearray(NOTE.encode())
    data[place] ^= change
    with pytest.raises(CorruptData):
        SIGNER.verifier.open(data.decode("utf-8", "surrogateescape"))


@given(st.text(max_size=300))
def test_any_text_is_refused_in_order(text: str) -> None:
    for call in (SIGNER.verifier.open, unverified, verifier_key):
        with pytest.raises(CorruptData):
            call(text)


def test_a_key_comes_back_from_its_text_and_a_damaged_one_does_not() -> None:
    text = str(SIGNER.verifier)
    assert verifier_key(text + "\n") == SIGNER.verifier
    with pytest.raises(CorruptData, match="is damaged"):
        verifier_key(text.replace("0123456789ab", "0123456789ac"))


def test_a_note_of_another_log_by_the_same_key_is_refused() -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    other = Signer("hypergpu/another", key)
    renamed = VerifierKey("hypergpu/0123456789ab", other.verifier.key)
    with pytest.raises(CorruptData):
        renamed.open(other.sign(3, ROOT))
