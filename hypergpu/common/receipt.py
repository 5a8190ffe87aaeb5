"""Receipt of an update: what a node signs of its work, so that neither side can claim another update later.

It names the last checkpoint of the ledger that the node has seen. A coordinator that shows two ledgers to two nodes has
receipts of both, and they do not fit in one ledger.
"""

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hypergpu.common import strict_json
from hypergpu.common.signed_note import is_signed

_CONTEXT: Final = b"hypergpu receipt 1\n"
"""Beginning of what is signed: a node's key signs nothing else that could pass for a receipt."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Statement of a node about one update."""

    run_id: str
    round: int
    node: str
    attempt: int
    update: str
    """SHA-256 of the payload as it was sent, in hexadecimal digits."""
    samples: int
    loss: float
    loss_before: float
    loss_after: float | None
    ledger_size: int = 0
    """Leaves of the last checkpoint of the ledger that the node has seen; 0 = none."""
    ledger_root: str = ""
    """Its root, in base64."""

    @property
    def signed_bytes(self) -> bytes:
        """Bytes that the node signs."""
        return _CONTEXT + strict_json.canonical(asdict(self)).encode()

    def sign(self, key: Ed25519PrivateKey) -> bytes:
        """Return the signature of a node."""
        return key.sign(self.signed_bytes)

    def is_signed(self, key: bytes, signature: bytes) -> bool:
        """Return whether this is what the holder of a key has signed."""
        return is_signed(key, self.signed_bytes, signature)

    def leaf(self, key: bytes, signature: bytes) -> dict[str, Any]:
        """Return the receipt as part of a leaf of the ledger."""
        signed = {"key": b64encode(key).decode(), "signature": b64encode(signature).decode()}
        return {name: value for name, value in asdict(self).items() if name != "round"} | signed


_NAMES: Final = tuple(each.name for each in fields(Receipt))


def is_leaf_signed(leaf: Mapping[str, Any]) -> bool:
    """Return whether the receipt in a leaf of the ledger is signed by the key in it."""
    try:
        receipt = Receipt(**{name: leaf[name] for name in _NAMES})
        return receipt.is_signed(b64decode(leaf["key"]), b64decode(leaf["signature"]))
    except (KeyError, TypeError, ValueError):
        return False
