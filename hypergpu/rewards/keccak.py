"""Keccak-256, the hash of Ethereum. SHA3-256 of the standard library pads differently."""

from Crypto.Hash import keccak


def keccak256(data: bytes) -> bytes:
    """Return the Keccak-256 digest of some bytes."""
    return keccak.new(digest_bits=256, data=data).digest()
