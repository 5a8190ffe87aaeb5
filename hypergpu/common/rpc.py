"""gRPC options of both ends, the table of errors and status codes, channels and listening addresses."""

import errno
import re
import socket

import grpc

from hypergpu.common import errors
from hypergpu.common.address import is_loopback, split_address
from hypergpu.common.errors import ConfigError, HyperGPUError, InvalidInput
from hypergpu.common.server_credentials import ServerCredentials
from hypergpu.common.tls import Tls, explain_handshake, read_authority, read_pair

_NODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NODE_ID = "x-node-id"
"""Metadata key of the calling node; the netsim proxy selects the link by it."""
AUTHORIZATION = "authorization"
LEASE = "x-node-lease"
"""Metadata key of the secret that `Register` gave the calling node."""
MAX_MESSAGE_BYTES = 8 << 20
"""Twice the default: room for a chunk, a manifest of many tensors, and framing."""

# A client keepalive below what the server permits ends in "too many pings": both ends are set here. The ping
# timeout makes a stopped peer noticed within seconds, which keepalive alone does not.
_SHARED_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    *_SHARED_OPTIONS,
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.enable_retries", 0),  # retries are ours: a transparent one would run a handler twice
)
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    *_SHARED_OPTIONS,
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),  # a port in use is an error, not a silent share
    ("grpc.max_metadata_size", 16 << 10),
)

_Code = grpc.StatusCode
_STATUS: tuple[tuple[type[HyperGPUError], grpc.StatusCode], ...] = (
    (errors.InvalidInput, _Code.INVALID_ARGUMENT),
    (errors.NotFound, _Code.NOT_FOUND),
    (errors.CorruptData, _Code.DATA_LOSS),
    (errors.PermissionDenied, _Code.PERMISSION_DENIED),
    (errors.NotAuthenticated, _Code.UNAUTHENTICATED),
    (errors.NameInUse, _Code.ALREADY_EXISTS),
    (errors.StaleWork, _Code.FAILED_PRECONDITION),
    (errors.Unavailable, _Code.UNAVAILABLE),
    (errors.DeadlineExceeded, _Code.DEADLINE_EXCEEDED),
    (errors.ResourceExhausted, _Code.RESOURCE_EXHAUSTED),
    (errors.NonFiniteUpdate, _Code.OUT_OF_RANGE),
    (errors.ProtocolError, _Code.ABORTED),
)
_ERRORS = {code: error for error, code in _STATUS} | {
    _Code.UNIMPLEMENTED: errors.ProtocolError,
    _Code.CANCELLED: errors.Unavailable,
}
_NO_CONNECTION = "failed to connect to all addresses"
"""gRPC's message for a call that found no connection, whatever the cause."""
_MAX_DETAILS = 2_000
"""Characters of a status message: gRPC rejects trailers above 8 to 16 KiB, and the caller would get another error."""


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """Return the status code and message for an error; one that is not ours is INTERNAL with only its type."""
    message = str(error) if len(str(error)) <= _MAX_DETAILS else f"{str(error)[:_MAX_DETAILS]}…"
    for kind, code in _STATUS:
        if isinstance(error, kind):
            return code, message
    if isinstance(error, HyperGPUError):
        return _Code.INTERNAL, message
    return _Code.INTERNAL, f"internal error ({type(error).__name__})"


def error_from(error: grpc.RpcError, peer: str) -> HyperGPUError:
    """Return the error for a failed call to `peer`."""
    code, details = error.code(), error.details() or ""
    return _ERRORS.get(code, HyperGPUError)(f"{peer}: {details or code.name.lower()}")


def check_node_id(node_id: str) -> str:
    """Return a valid node id.

    Raises:
        InvalidInput: not 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit.
    """
    if not _NODE_ID.fullmatch(node_id):
        raise InvalidInput(
            f"node id {node_id[:80]!r}: take 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit"
        )
    return node_id


def metadata_for(node_id: str | None, token: str | None, lease: str = "") -> tuple[tuple[str, str], ...]:
    """Return the metadata that identifies a caller."""
    pairs = [(NODE_ID, node_id)] if node_id else []
    if lease:
        pairs.append((LEASE, lease))
    if token:
        pairs.append((AUTHORIZATION, f"Bearer {token}"))
    return tuple(pairs)


def open_channel(address: str, tls: Tls | None, *, http_proxy: bool = False) -> grpc.aio.Channel:
    """Return a channel to HOST:PORT.

    Args:
        address: HOST:PORT.
        tls: own certificate and trusted authority; None is plaintext, which only `--insecure` may ask for.
        http_proxy: dial through the HTTP proxy that the environment names, except to this machine.

    Raises:
        ConfigError: a malformed address, or a certificate that cannot be used.
    """
    options = (*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", int(http_proxy and not is_loopback(address))))
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    key, chain = None, None
    if tls.certificate is not None and tls.key is not None:
        chain, key = read_pair(tls.certificate, tls.key)
    authority = read_authority(tls.authority) if tls.authority is not None else None
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(authority, key, chain), options=options)


async def explain_failure(error: grpc.RpcError, address: str, tls: Tls | None) -> HyperGPUError:
    """Return the error for a failed call to `address`; if there was no connection, find out why."""
    if error.code() is _Code.UNAVAILABLE and _NO_CONNECTION in (error.details() or ""):
        found = await explain_handshake(address, tls)
        if found is not None:
            return found
    return error_from(error, address)


def bind(server: grpc.aio.Server, listen: str, tls: Tls | None) -> str:
    """Bind `server` to HOST:PORT and return the address with the real port.

    Raises:
        ConfigError: a malformed address, an unavailable port, or an unusable certificate.
    """
    host, port = split_address(listen)
    credentials = None
    if tls is not None:
        credentials = ServerCredentials(tls).make()
    _check_free(host, port)
    try:
        bound = (
            server.add_secure_port(f"{host}:{port}", credentials)
            if credentials is not None
            else server.add_insecure_port(f"{host}:{port}")
        )
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {listen}: {error}") from error
    if bound == 0:
        raise ConfigError(f"cannot listen on {listen}: gRPC gave no reason")
    return f"{host}:{bound}"


def _check_free(host: str, port: int) -> None:
    """Try to bind the port first: gRPC would print lines of its own if it is taken."""
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        socket.create_server((host.strip("[]"), port), family=family).close()
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {_why_not_free(error)}") from error


def _why_not_free(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "the port is in use; choose another"
        case errno.EACCES:
            return "a port below 1024 needs privileges; choose another"
        case errno.EADDRNOTAVAIL:
            return "this machine has no such address"
        case _:
            return error.strerror or str(error)
