"""Explanations for an upstream that does not speak HTTP/2, with what to change."""

from typing import Final

from hypergpu.netsim_proxy.relay import http2

MIN_BYTES: Final = 9
"""Bytes needed for the explanation: the header of a frame."""


def mistake_in(first: bytes) -> str | None:
    """Return the fault in the first bytes of an upstream; None if they begin its SETTINGS."""
    if first[:2] in (b"\x15\x03", b"\x16\x03"):
        return "speaks TLS: use --upstream-tls, or --upstream-ca with its authority"
    if first.startswith((b"HTTP/1", b"HTTP/0")):
        return "speaks HTTP/1 and no HTTP/2: gRPC needs HTTP/2"
    if len(first) >= MIN_BYTES and first[3] == http2.SETTINGS and first[5:9] == b"\0\0\0\0":
        return None
    return "does not speak HTTP/2"


def reason_of(error: BaseException | None) -> str:
    """Return the fault of a TLS connection."""
    text = str(error)
    if "certificate required" in text.lower() or "CERTIFICATE_REQUIRED" in text or "HANDSHAKE_FAILURE" in text:
        return f"wants a certificate of its clients, and the proxy shows none ({text})"
    if "WRONG_VERSION_NUMBER" in text:
        return f"speaks no TLS ({text})"
    return f"fails in TLS: {text}"
