"""Key of a node, with which it signs its receipts, and what it has seen of the ledger; both outlast its process.

The files lie beside that of the lease. A node without a name of its own has a key for as long as it runs.
"""

import secrets
from hashlib import sha256
from pathlib import Path
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hypergpu.common.errors import CorruptData, ForkedLedger
from hypergpu.common.private_files import create_private, read_private
from hypergpu.common.signed_note import MAX_NOTE_BYTES, public_bytes
from hypergpu.common.tensors import Payload
from hypergpu.common.wire import receipt_of
from hypergpu.node.core.witness import Witness
from hypergpu.protos import coordinator_pb2 as pb

_KEY_BYTES: Final = 32

log = structlog.get_logger()


class Countersigning:
    """Signatures of a node, and its view of the ledger.

    Args:
        path: Files that are kept, without their suffix; None keeps none.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._key = _key_in(path.with_name(f"{path.name}.key")) if path is not None else Ed25519PrivateKey.generate()
        self._file = path.with_name(f"{path.name}.checkpoint") if path is not None else None
        self._witness = Witness(_text_in(self._file) if self._file is not None else "")

    @property
    def public_key(self) -> bytes:
        """Public key, 32 bytes."""
        return public_bytes(self._key)

    @property
    def ledger_size(self) -> int:
        """Leaves of the last checkpoint that was seen."""
        return self._witness.size

    def begin(self, ledger_key: str) -> None:
        """Watch the ledger of the run with which the node has registered.

        Raises:
            ForkedLedger: The ledger has another key than before.
        """
        try:
            self._witness.begin(ledger_key)
        except CorruptData as error:
            raise ForkedLedger(f"the coordinator has shown no key of its ledger: {error}") from error
        except ForkedLedger as error:
            raise self._with_remedy(error) from error

    def see(self, ledger: pb.LedgerCheckpoint) -> None:
        """See the checkpoint in the reply to a heartbeat.

        Raises:
            ForkedLedger: It does not go on from what was seen before.
        """
        try:
            is_new = self._witness.see(ledger.note, ledger.proof)
        except ForkedLedger as error:
            raise self._with_remedy(error) from error
        if is_new and self._file is not None:
            _keep(self._file, self._witness.note)

    def sign(self, header: pb.UpdateHeader, payload: Payload) -> pb.Receipt:
        """Return the receipt of an update, of which the header has the figures. It reads all of the payload."""
        digest = sha256(payload.data).hexdigest()
        receipt = receipt_of(header, digest, self._witness.size, self._witness.root)
        return pb.Receipt(
            signature=receipt.sign(self._key), ledger_size=self._witness.size, ledger_root=self._witness.root
        )

    def _with_remedy(self, error: ForkedLedger) -> ForkedLedger:
        kept = f"; to work for it in spite of that, remove {self._file}" if self._file is not None else ""
        return ForkedLedger(f"{error}. This node does not work for it any more{kept}", error.seen, error.now)


def _key_in(file: Path) -> Ed25519PrivateKey:
    """Return the key in a file, and make it where there is none; a new key if the file cannot be used."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not file.exists():
            create_private(file, secrets.token_bytes(_KEY_BYTES), synced=True)
        return Ed25519PrivateKey.from_private_bytes(read_private(file, _KEY_BYTES + 1))
    except (OSError, ValueError) as error:
        log.warning("the key of the receipts cannot be kept: another is used by this process", file=str(file))
        log.debug("the key's file cannot be used", file=str(file), reason=str(error))
        return Ed25519PrivateKey.generate()


def _text_in(file: Path) -> str:
    """Return the checkpoint in a file; empty if there is none."""
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_NOTE_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def _keep(file: Path, note: str) -> None:
    """Replace the checkpoint in a file."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(note)
        partial.replace(file)
    except OSError as error:
        log.debug("the checkpoint of the ledger cannot be kept", file=str(file), reason=error.strerror)
