"""Certificates: checked before a server or channel uses them, and explained when a handshake fails.

gRPC reports a bad certificate late and unclearly, or not at all. Here, the standard library checks the same files, and
errors name the file and the remedy.
"""

import asyncio
import re
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hypergpu.common.address import split_address
from hypergpu.common.errors import ConfigError, HyperGPUError, TlsError, Unavailable
from hypergpu.common.files import read_bytes, shown

MAX_PEM_BYTES: Final = 1 << 20
"""Largest file of certificates: a system's whole bundle takes a quarter of it."""
_HANDSHAKE_SECONDS: Final = 5.0
"""Timeout of the diagnosis of a failed connection; after it, the original error is reported."""
_CERTIFICATE: Final = re.compile(rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----")
_KEY: Final = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----")
_ENCRYPTED: Final = re.compile(rb"-----BEGIN ENCRYPTED PRIVATE KEY-----|^Proc-Type: 4,ENCRYPTED", re.MULTILINE)
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates: a server needs `certificate` and `key`, a client `authority` unless the system knows it.

    With `client_authority`, a server admits only clients that present a certificate of that authority.
    """

    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None
    client_authority: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of these that are given."""
        given = (self.certificate, self.key, self.authority, self.client_authority)
        return tuple(file for file in given if file is not None)


def server_tls(
    certificate: Path | None, key: Path | None, client_authority: Path | None = None, *, insecure: bool
) -> Tls | None:
    """Return the TLS files of a server, checked; None for plaintext.

    Raises:
        ConfigError: a file is missing or cannot be used, or neither files nor `insecure` are given.
    """
    if (certificate is None) != (key is None):
        raise ConfigError("--tls-cert and --tls-key go together")
    if certificate is not None and key is not None:
        read_pair(certificate, key)
        if client_authority is not None:
            read_authority(client_authority)
        return Tls(certificate=certificate, key=key, client_authority=client_authority)
    if client_authority is not None:
        raise ConfigError("--tls-client-ca needs --tls-cert and --tls-key")
    if not insecure:
        raise ConfigError("give --tls-cert and --tls-key for TLS, or --insecure on a trusted network")
    return None


def client_tls(
    authority: Path | None, certificate: Path | None = None, key: Path | None = None, *, insecure: bool
) -> Tls | None:
    """Return the TLS settings of a client that trusts `authority`, else the system's; None for plaintext.

    Raises:
        ConfigError: a file cannot be used, or is missing.
    """
    if (certificate is None) != (key is None):
        raise ConfigError("--tls-cert and --tls-key go together")
    if certificate is not None and key is not None:
        read_pair(certificate, key)
    if authority is not None:
        read_authority(authority)
    if authority is not None or certificate is not None:
        return Tls(certificate=certificate, key=key, authority=authority)
    return None if insecure else Tls()


def read_pair(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """Return a certificate chain and its private key, as PEM.

    Raises:
        ConfigError: a file that cannot be read or is something else, a key that is encrypted or of another
            certificate, or a certificate that is not valid today.
    """
    chain, secret = _read_certificates(certificate), read_bytes(key, MAX_PEM_BYTES)
    if not _KEY.search(secret):
        what = "a certificate" if _CERTIFICATE.search(secret) else "no PEM private key (-----BEGIN PRIVATE KEY-----)"
        raise ConfigError(f"{shown(key)} holds {what}: give the private key of {shown(certificate)}")
    if _ENCRYPTED.search(secret):
        raise ConfigError(
            f"the private key {shown(key)} is encrypted, and its password cannot be entered: "
            "decrypt it with `openssl pkey`"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(
                f"the private key {shown(key)} is not that of the certificate {shown(certificate)}"
            ) from None
        raise ConfigError(
            f"cannot use the certificate {shown(certificate)} with the key {shown(key)}: {_reason(error)}"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot read {shown(certificate)} or {shown(key)}: {error.strerror or error}") from error
    _check_dates(certificate, context)
    return chain, secret


def read_authority(authority: Path) -> bytes:
    """Return the certificates of an authority, as PEM.

    Raises:
        ConfigError: the file cannot be read, holds no certificate, or none that is valid today.
    """
    data = _read_certificates(authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(authority)
        known = context.get_ca_certs()
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"{shown(authority)} holds no certificate that can be used: {_reason(error)}") from error
    now = time.time()
    faults = [fault for found in known if (fault := _out_of_date(str(found["notBefore"]), str(found["notAfter"]), now))]
    if known and len(faults) == len(known):
        raise ConfigError(f"the certificate authority {shown(authority)} {faults[0]}")
    return data


async def explain_handshake(address: str, tls: Tls | None) -> HyperGPUError | None:  # noqa: PLR0911  (one per cause)
    """Return the TLS fault that prevents connections to `address`: a certificate, or TLS on one side only; else None.

    Dials once and sends nothing but a handshake.
    """
    if address.startswith("unix:"):
        return None
    host, port = split_address(address)
    context = ssl.create_default_context(cafile=tls.authority if tls else None)
    if tls is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    elif tls.certificate is not None:
        context.load_cert_chain(tls.certificate, tls.key)
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(_HANDSHAKE_SECONDS):
            reader, writer = await asyncio.open_connection(host.strip("[]"), port, ssl=context)
            is_refused = tls is not None and await _is_refused(reader, writer)
    except ssl.SSLCertVerificationError as error:
        return TlsError(f"the certificate of {address} is not trusted: {_distrust(error, tls)}")
    except ssl.SSLError as error:
        if tls is not None and error.reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE"}:
            return TlsError(f"{address} does not use TLS: give --insecure, or start it with a certificate")
        return None
    except (OSError, TimeoutError, ValueError):
        return None
    writer.transport.abort()
    if tls is not None and is_refused:
        return _refused(address, tls)
    if tls is None:
        return TlsError(f"{address} speaks TLS: give --tls-ca FILE instead of --insecure")
    return None


async def _is_refused(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Return whether a server ends the connection after the handshake: a refused certificate is told only then."""
    try:
        return not await reader.read(1)
    except (ssl.SSLError, ConnectionError):
        return True
    finally:
        writer.transport.abort()


def _refused(address: str, tls: Tls) -> Unavailable:
    """Return the error for a server that ends connections after the handshake; why, it does not say."""
    shown_pair = f"does it accept {shown(tls.certificate)}?" if tls.certificate else "give --tls-cert and --tls-key"
    return Unavailable(
        f"{address} closes connections after the TLS handshake: if it wants a certificate of its clients, {shown_pair}"
    )


def _read_certificates(path: Path) -> bytes:
    data = read_bytes(path, MAX_PEM_BYTES)
    if not _CERTIFICATE.search(data):
        what = "a private key" if _KEY.search(data) else "no PEM certificate (-----BEGIN CERTIFICATE-----)"
        raise ConfigError(f"{shown(path)} holds {what}: give the certificate")
    return data


def _check_dates(certificate: Path, server: ssl.SSLContext) -> None:
    """Check the validity dates of a certificate by a handshake in memory: ssl has no other public way to do so."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(certificate)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the certificate itself is what is trusted
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as error:
                if error.verify_code == _EXPIRED:
                    raise ConfigError(f"the certificate {shown(certificate)} has expired: make a new one") from None
                if error.verify_code == _NOT_YET_VALID:
                    raise ConfigError(
                        f"the certificate {shown(certificate)} is not valid yet: check the clock"
                    ) from None
                return
            except ssl.SSLError:
                return


def _out_of_date(not_before: str, not_after: str, now: float) -> str:
    try:
        since, until = map(ssl.cert_time_to_seconds, (not_before, not_after))
    except ValueError:
        return f"is damaged: it is valid from {not_before!r} to {not_after!r}"
    if now > until:
        return f"expired on {not_after}: get the present one"
    if now < since:
        return f"is not valid before {not_before}: check the clock"
    return ""


def _distrust(error: ssl.SSLCertVerificationError, tls: Tls | None) -> str:
    if error.verify_code == _EXPIRED:
        return "it, or the authority that signed it, has expired"
    if error.verify_code == _NOT_YET_VALID:
        return "it is not valid yet; is the clock right?"
    if "match" in error.verify_message or "not valid for" in error.verify_message:
        return f"it is for another name ({error.verify_message.rstrip('.')}); dial a name that it holds"
    by = f"that {shown(tls.authority)} knows" if tls and tls.authority else "that this system knows; give --tls-ca FILE"
    return f"it is not signed by an authority {by} ({error.verify_message.rstrip('.')})"


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return "what is in it cannot be decoded" if "PEM lib" in str(error) else str(error.reason or error)
    return str(error.strerror or error)
