"""Receipts: what is signed comes back from a leaf of the ledger, and nothing else passes."""

from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common import strict_json
from hypergpu.common.receipt import Receipt, is_leaf_signed
from hypergpu.common.signed_note import public_bytes

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
RECEIPT = Receipt("run-1", 7, "node_1", 1, "ab" * 32, 640, 0.25, 0.5, None, 12, "root")
FLOATS = st.floats(allow_nan=True, allow_infinity=True)


def leaf_of(receipt: Receipt) -> dict[str, Any]:
    leaf = {"kind": "receipt", "round": receipt.round, **receipt.leaf(public_bytes(KEY), receipt.sign(KEY))}
    return strict_json.parse_object(strict_json.canonical(leaf))


@given(FLOATS, FLOATS, st.none() | FLOATS)
def test_a_receipt_comes_back_from_its_leaf(loss: float, before: float, after: float | None) -> None:
    receipt = replace(RECEIPT, loss=loss, loss_before=before, loss_after=after)
    assert receipt.is_signed(public_bytes(KEY), receipt.sign(KEY))
    assert is_leaf_signed(leaf_of(receipt))


@pytest.mark.parametrize("name", ["run_id", "round", "node", "attempt", "update", "samples", "loss", "loss_before"])
def test_a_changed_field_is_not_signed(name: str) -> None:
    leaf = leaf_of(RECEIPT)
    assert not is_leaf_signed({**leaf, name: 9.5 if name != "node" else "node_2"})
    assert not is_leaf_signed({key: value for key, value in leaf.items() if key != name})


def test_what_is_no_receipt_is_not_signed() -> None:
    leaf = leaf_of(RECEIPT)
    for wrong in ({}, {**leaf, "key": "?"}, {**leaf, "signature": ""}, {**leaf, "key": 3}, {**leaf, "loss": [1]}):
        assert not is_leaf_signed(wrong)
