"""TLS credentials of a gRPC server, whose files are read again when they change."""

from typing import Any

import grpc
import structlog

from hypergpu.common.errors import ConfigError
from hypergpu.common.files import state_of
from hypergpu.common.tls import Tls, read_authority, read_pair

log = structlog.get_logger()


class ServerCredentials:
    """The certificate of a server, and the authority of its clients' certificates, for each new connection.

    Files with a fault change nothing: the former ones stay in use, and the log says so.

    Raises:
        ConfigError: a file is missing or cannot be used.
    """

    def __init__(self, tls: Tls) -> None:
        if tls.certificate is None or tls.key is None:
            raise ConfigError("a server needs a certificate and its key")
        self._certificate, self._key, self._authority = tls.certificate, tls.key, tls.client_authority
        self._state = self._files()
        self._first = self._read()

    def make(self) -> grpc.ServerCredentials:
        """Return the credentials for gRPC; with an authority, clients must present a certificate of it."""
        changed: Any = self._changed  # the stub does not know that None means no change
        return grpc.dynamic_ssl_server_credentials(
            self._first, changed, require_client_authentication=self._authority is not None
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what the files hold if they have changed; gRPC asks before each handshake."""
        state = self._files()
        if state == self._state:
            return None
        try:
            found = self._read()
        except ConfigError as error:
            if None not in state:  # files that are being replaced may be missing for a moment, or not fit each other
                log.warning("changed certificates cannot be used; the former ones stay in use", reason=str(error))
            return None
        self._state = state
        log.info("certificates were read again", certificate=str(self._certificate))
        return found

    def _read(self) -> grpc.ServerCertificateConfiguration:
        chain, key = read_pair(self._certificate, self._key)
        authority = read_authority(self._authority) if self._authority is not None else None
        return grpc.ssl_server_certificate_configuration([(key, chain)], authority)

    def _files(self) -> list[tuple[int, int, int] | None]:
        return [state_of(file) for file in (self._certificate, self._key, self._authority) if file is not None]
