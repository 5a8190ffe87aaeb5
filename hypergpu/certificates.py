"""Certificate authority of a cluster, and the certificates that it signs for servers and nodes."""

import ipaddress
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hypergpu.common.errors import ConfigError, StorageError
from hypergpu.common.files import shown
from hypergpu.common.private_files import create_private
from hypergpu.common.rpc import check_node_id

AUTHORITY, AUTHORITY_KEY = "ca.pem", "ca-key.pem"
AUTHORITY_DAYS: Final = 3650
_EARLIER: Final = timedelta(minutes=5)
"""A certificate is valid from a little before now, for machines whose clocks are behind."""


class Authority:
    """The certificate authority in a directory; it is made where there is none.

    Raises:
        ConfigError: the authority's files cannot be used.
        StorageError: they cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError(f"cannot write {shown(directory)}: {error.strerror}") from error
        file, key_file = directory / AUTHORITY, directory / AUTHORITY_KEY
        if not file.exists() and not key_file.exists():
            self._make()
        try:
            self._certificate = x509.load_pem_x509_certificate(file.read_bytes())
            key = serialization.load_pem_private_key(key_file.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"cannot use the authority in {shown(directory)}: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != self._certificate.public_key():
            raise ConfigError(f"{shown(key_file)} is not the key of {shown(file)}")
        self._key = key

    def sign_server(self, names: Sequence[str], days: int) -> Path:
        """Sign a certificate of a server for the names and addresses that others dial; return its file."""
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]  # a proxy is both
        return self._sign("server", names[0], [_general_name(name) for name in names], usages, days)

    def sign_node(self, node_id: str, days: int) -> Path:
        """Sign a certificate of a node, whose name is its identity; return its file."""
        names: list[x509.GeneralName] = [x509.DNSName(check_node_id(node_id))]
        return self._sign(f"node-{node_id}", node_id, names, [ExtendedKeyUsageOID.CLIENT_AUTH], days)

    def _make(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(f"HyperGPU authority {secrets.token_hex(4)}")
        usage = x509.KeyUsage(
            digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
            data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        builder = _builder(name, name, key.public_key(), AUTHORITY_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        signed = builder.add_extension(usage, critical=True).sign(key, hashes.SHA256())
        _write(self._directory / AUTHORITY_KEY, _private(key), 0o600)
        _write(self._directory / AUTHORITY, signed.public_bytes(serialization.Encoding.PEM), 0o644)

    def _sign(
        self, stem: str, subject: str, names: list[x509.GeneralName], usages: list[x509.ObjectIdentifier], days: int
    ) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(subject[:64]), self._certificate.subject, key.public_key(), days)
        for extension in (
            x509.BasicConstraints(ca=False, path_length=None),
            x509.SubjectAlternativeName(names),
            x509.ExtendedKeyUsage(usages),
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
        ):
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        signed = builder.sign(self._key, hashes.SHA256())
        file = self._directory / f"{stem}.pem"
        _write(self._directory / f"{stem}-key.pem", _private(key), 0o600)
        _write(file, signed.public_bytes(serialization.Encoding.PEM), 0o644)
        return file


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - _EARLIER)
    return builder.not_valid_after(now + timedelta(days=days))


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as error:
        raise ConfigError(f"{name!r} is no host name or address: {error}") from error


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(file: Path, data: bytes, mode: int) -> None:
    """Replace a file at once: a server that reads it finds the old or the new content."""
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        create_private(partial, data, mode=mode)
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(f"cannot write {shown(file)}: {error.strerror}") from error
