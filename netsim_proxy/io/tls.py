"""TLS on both sides of the proxy: its certificates, and the authorities that it trusts."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from hypergpu.common.errors import ConfigError
from hypergpu.common.tls import read_authority, read_pair


@dataclass(frozen=True, slots=True)
class ServerTls:
    """TLS for clients: the proxy's certificate, and the authority of client certificates."""

    certificate: Path
    key: Path
    client_authority: Path | None = None
    """File of CA certificates (PEM); with it, clients must present a certificate signed by one of them."""

    def context(self) -> ssl.SSLContext:
        """Return a context that speaks HTTP/2 only.

        Raises:
            ConfigError: a file that cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["h2"])
        self.load_into(context)
        return context

    def load_into(self, context: ssl.SSLContext) -> None:
        """Reread the files into a context that may be in use; only new connections get their content.

        Raises:
            ConfigError: a file that cannot be used.
        """
        _load_pair(context, self.certificate, self.key)
        if self.client_authority is not None:
            _load_authority(context, self.client_authority)
            context.verify_mode = ssl.CERT_REQUIRED


@dataclass(frozen=True, slots=True)
class UpstreamTls:
    """TLS to the upstream: its authority, and the proxy's own certificate."""

    authority: Path | None = None
    """File of CA certificates (PEM); by default the system's."""
    server_name: str | None = None
    """Name in the upstream's certificate, if it differs from the host."""
    certificate: Path | None = None
    """Certificate and key for an upstream that requires a client certificate."""
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Return a context that speaks HTTP/2 only.

        Raises:
            ConfigError: a file that cannot be used.
        """
        context = ssl.create_default_context()
        if self.authority is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            _load_authority(context, self.authority)
        if self.certificate is not None and self.key is not None:
            _load_pair(context, self.certificate, self.key)
        context.set_alpn_protocols(["h2"])
        return context


def _load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        read_pair(certificate, key)  # its faults in plain words
        # A pair that does not fit must not be left half loaded in a context that is in use.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
        context.load_cert_chain(certificate, key)
    except (ConfigError, OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot use {certificate} with {key}: {error}") from error


def _load_authority(context: ssl.SSLContext, authority: Path) -> None:
    try:
        read_authority(authority)
        context.load_verify_locations(authority)
    except (ConfigError, OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot use {authority} as authority: {error}") from error
