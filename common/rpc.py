"""gRPC as we use it: one set of options for both ends, one table of errors and status codes, TLS or said otherwise."""

import re
import socket
from dataclasses import dataclass
from pathlib import Path

import grpc

from common import errors
from common.errors import ConfigError, HyperGPUError, InvalidInput

_NODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NODE_ID = "x-node-id"
"""Metadata key of the calling node; the netsim proxy picks the link by it."""
AUTHORIZATION = "authorization"
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
    (errors.NotAuthenticated, _Code.UNAUTHENTICATED),
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
    _Code.PERMISSION_DENIED: errors.NotAuthenticated,
}
RETRYABLE = (errors.Unavailable, errors.DeadlineExceeded, errors.CorruptData)
"""What may succeed when tried again."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates: a server needs `certificate` and `key`, a client `authority` unless the system knows it."""

    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """The status that tells a caller about `error`; what is not ours is INTERNAL and says no more than its type."""
    for kind, code in _STATUS:
        if isinstance(error, kind):
            return code, str(error)
    if isinstance(error, HyperGPUError):
        return _Code.INTERNAL, str(error)
    return _Code.INTERNAL, f"internal error ({type(error).__name__})"


def error_from(error: grpc.RpcError, peer: str) -> HyperGPUError:
    """The error of our tree for a failed call to `peer`."""
    code, details = error.code(), error.details() or ""
    return _ERRORS.get(code, HyperGPUError)(f"{peer}: {details or code.name.lower()}")


def check_node_id(node_id: str) -> str:
    """A node's name, as the coordinator takes it.

    Raises:
        InvalidInput: not 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit.
    """
    if not _NODE_ID.fullmatch(node_id):
        raise InvalidInput(
            f"node id {node_id[:80]!r}: take 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit"
        )
    return node_id


def metadata_for(node_id: str | None, token: str | None) -> tuple[tuple[str, str], ...]:
    """What a call carries about its caller."""
    pairs = [(NODE_ID, node_id)] if node_id else []
    if token:
        pairs.append((AUTHORIZATION, f"Bearer {token}"))
    return tuple(pairs)


def open_channel(address: str, tls: Tls | None) -> grpc.aio.Channel:
    """A channel to HOST:PORT; `tls=None` is plaintext, which only `--insecure` may ask for."""
    if tls is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read(tls.authority), private_key=_read(tls.key), certificate_chain=_read(tls.certificate)
    )
    return grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)


def bind(server: grpc.aio.Server, listen: str, tls: Tls | None) -> str:
    """Let `server` listen on HOST:PORT and return the address with the real port.

    Raises:
        ConfigError: a malformed address, a port in use, or a certificate that cannot be read.
    """
    host, port = split_address(listen)
    busy = f"cannot listen on {listen}: the port is in use or not ours; choose another"
    try:
        # Asked first, because gRPC would write lines of its own about it.
        family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        socket.create_server((host.strip("[]"), port), family=family).close()
    except OSError as error:
        raise ConfigError(busy) from error
    try:
        if tls is None:
            bound = server.add_insecure_port(f"{host}:{port}")
        else:
            pair = (_read(tls.key) or b"", _read(tls.certificate) or b"")
            bound = server.add_secure_port(f"{host}:{port}", grpc.ssl_server_credentials([pair]))
    except RuntimeError as error:
        raise ConfigError(busy) from error
    if bound == 0:
        raise ConfigError(busy)
    return f"{host}:{bound}"


def split_address(address: str) -> tuple[str, int]:
    """HOST and PORT of an address; an IPv6 host keeps its brackets.

    Raises:
        ConfigError: not of the form HOST:PORT with a port of 0 to 65535.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{address!r} is not an address of the form HOST:PORT, as in 127.0.0.1:50051")
    if ":" in host and not host.startswith("["):
        raise ConfigError(f"{address!r}: write an IPv6 host in brackets, as in [::1]:50051")
    return host, int(port)


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
