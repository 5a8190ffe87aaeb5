"""Signed notes and checkpoints of a log, as C2SP defines them (c2sp.org/signed-note, c2sp.org/tlog-checkpoint).

    hypergpu/3f9c1a7e5b20
    1284
    sFodV/vSp5O8n9a8QpW6PRY97tfOSW5bsc2Xl/EQi08=

    — hypergpu/3f9c1a7e5b20 hI2DJw…

A checkpoint is the origin of a log, its size and its root. The signature is of the lines before the blank one, by an
Ed25519 key whose name is the origin. A public key is written as `NAME+ID+KEY`, as in Go's `sumdb`.
"""

import binascii
import re
from base64 import b64decode, b64encode
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hypergpu.common.errors import CorruptData
from hypergpu.common.merkle import HASH_BYTES

MAX_NOTE_BYTES: Final = 4096
MAX_KEY_BYTES: Final = 512
SIGNATURE_BYTES: Final = 64
PUBLIC_KEY_BYTES: Final = 32
_ED25519: Final = b"\x01"
_ID_BYTES: Final = 4
_NAME = re.compile(r"[^\s+]{1,200}")
_SIZE = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)
_SIGNATURE = re.compile(r"\u2014 ([^\s+]+) ([A-Za-z0-9+/]+={0,2})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Size and root of a log at one time."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """Text of the note, without its signature."""
        return f"{self.origin}\n{self.size}\n{b64encode(self.root).decode()}\n"


@dataclass(frozen=True)
class VerifierKey:
    """Public key of a log, under its name."""

    name: str
    key: bytes
    """Ed25519, 32 bytes."""

    @property
    def id(self) -> bytes:
        """Four bytes that tell keys apart."""
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.key).digest()[:_ID_BYTES]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{b64encode(_ED25519 + self.key).decode()}"

    def open(self, note: str) -> Checkpoint:
        """Return the checkpoint in a note that this key has signed.

        Raises:
            CorruptData: the note is no checkpoint of this log, or is not signed by this key.
        """
        text, signatures = _parts(note)
        for line in signatures:
            found = _SIGNATURE.fullmatch(line)
            raw = decoded(found[2]) if found is not None and found[1] == self.name else b""
            if raw[:_ID_BYTES] == self.id and is_signed(self.key, text.encode(), raw[_ID_BYTES:]):
                return _checkpoint(text, self.name)
        raise CorruptData(f"the checkpoint is not signed by the key {self.name}+{self.id.hex()}")


class Signer:
    """Private key of a log, under the log's name."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.verifier = VerifierKey(name, public_bytes(key))

    def sign(self, size: int, root: bytes) -> str:
        """Return the signed checkpoint of a size and root of the log."""
        name = self.verifier.name
        text = Checkpoint(name, size, root).text
        signature = b64encode(self.verifier.id + self._key.sign(text.encode())).decode()
        return f"{text}\n\u2014 {name} {signature}\n"


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """Return the 32 bytes of the public key of a private one."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def is_signed(key: bytes, data: bytes, signature: bytes) -> bool:
    """Return whether a signature of the data is by the private key of this public one."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def verifier_key(text: str) -> VerifierKey:
    """Return the public key of a log that a text `NAME+ID+KEY` describes.

    Raises:
        CorruptData: the text describes none.
    """
    name, _, rest = text.strip()[:MAX_KEY_BYTES].partition("+")
    identity, _, key = rest.partition("+")
    raw = decoded(key)
    if not _NAME.fullmatch(name) or raw[:1] != _ED25519 or len(raw) != 1 + PUBLIC_KEY_BYTES:
        raise CorruptData(f"{text[:80]!r} is no key of a log; expected NAME+ID+KEY, as in ledger.vkey of the run")
    found = VerifierKey(name, raw[1:])
    if identity != found.id.hex():
        raise CorruptData(f"the key of the log {name} is damaged: its id is {found.id.hex()}, not {identity[:16]!r}")
    return found


def unverified(note: str) -> Checkpoint:
    """Return the checkpoint in a note, whoever signed it.

    Raises:
        CorruptData: there is none.
    """
    text, _ = _parts(note)
    return _checkpoint(text, text.partition("\n")[0])


def _parts(note: str) -> tuple[str, list[str]]:
    note = note.encode(errors="replace").decode()  # halves of surrogate pairs, which JSON may hold
    text, blank, signatures = note[:MAX_NOTE_BYTES].rpartition("\n\n")
    if not blank or not signatures.endswith("\n") or len(note) > MAX_NOTE_BYTES:
        raise CorruptData("the checkpoint is no signed note")
    return text + "\n", signatures[:-1].split("\n")


def _checkpoint(text: str, origin: str) -> Checkpoint:
    lines = text.split("\n")
    if len(lines) != 4 or not _NAME.fullmatch(origin) or lines[0] != origin or not _SIZE.fullmatch(lines[1]):
        raise CorruptData(f"the checkpoint is none of the log {origin[:80]}")
    root = decoded(lines[2])
    if len(root) != HASH_BYTES:
        raise CorruptData(f"the checkpoint of the log {origin[:80]} has no root")
    return Checkpoint(origin, int(lines[1]), root)


def decoded(text: str) -> bytes:
    """Return what a text in base64 encodes in its only way; nothing if it is none."""
    try:
        raw = b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
    return raw if b64encode(raw).decode() == text else b""
