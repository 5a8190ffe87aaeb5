"""Receipts of updates: the signature of a node is held against the bytes that arrived."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from hypergpu.common.errors import ProtocolError
from hypergpu.common.merkle import HASH_BYTES
from hypergpu.common.tensors import Payload
from hypergpu.common.wire import receipt_of
from hypergpu.coordinator.core.ledger import Ledger
from hypergpu.protos import coordinator_pb2 as pb


def checked_receipt(header: pb.UpdateHeader, payload: Payload, key: bytes) -> Mapping[str, Any]:
    """Return the receipt of a whole update as part of a leaf. It reads all of the payload.

    Args:
        header: Header of the update.
        payload: Its bytes, as they arrived.
        key: Public key of the node; empty if it has announced none: its receipt is not signed.

    Raises:
        ProtocolError: The node has not signed this update with these figures.
    """
    sent = header.receipt
    if len(sent.ledger_root) not in (0, HASH_BYTES):
        raise ProtocolError(f"a root of {len(sent.ledger_root)} bytes; expected {HASH_BYTES}, or none")
    receipt = receipt_of(header, sha256(payload.data).hexdigest(), sent.ledger_size, sent.ledger_root)
    if key and not receipt.is_signed(key, sent.signature):
        raise ProtocolError(
            f"the receipt of {receipt.node} for round {receipt.round} is not signed with the key of the node: "
            f"SHA-256 {receipt.update}, {receipt.samples} samples, loss {receipt.loss}"
        )
    return receipt.leaf(key, sent.signature if key else b"")


def checkpoint_for(ledger: Ledger, seen: int) -> pb.LedgerCheckpoint | None:
    """Return the published checkpoint, with the proof that it goes on from what a node has seen; None before one."""
    published = ledger.published
    if not published.note:
        return None
    return pb.LedgerCheckpoint(note=published.note, proof=ledger.consistency(seen))
