"""Addresses of the form HOST:PORT."""

import re
from typing import Final

from hypergpu.common.errors import ConfigError
from hypergpu.common.text import printable

_HOST: Final = re.compile(r"\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?\]|[^\s\[\]/@\\:]+")
_SCHEME: Final = re.compile(
    r"(?:dns|ipv4|ipv6|unix|unix-abstract|vsock|xds|https?|grpcs?|tcp|tls):(?!\d+\Z)/*([^/]*)", re.I
)
"""Schemes of gRPC, browsers and others; in `http:80`, http is a host."""
_LONGEST: Final = 300
"""Longest address in characters: a host name has at most 253."""


def split_address(address: str) -> tuple[str, int]:
    """Return HOST and PORT of an address; an IPv6 host keeps its brackets.

    Raises:
        ConfigError: not HOST:PORT with a port of 0 to 65535, or a host that is not a valid name or address.
    """
    shown = printable(address[:80]) + ("…" if len(address) > 80 else "")
    if scheme := _SCHEME.match(address):
        bare = printable(scheme[1][:80])
        raise ConfigError(f"'{shown}': write HOST:PORT without a scheme, as in {bare or '127.0.0.1:50051'}")
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise ConfigError(f"'{shown}' is not an address of the form HOST:PORT, as in 127.0.0.1:50051")
    if ":" in host and not host.startswith("["):
        raise ConfigError(f"'{shown}': write an IPv6 host in brackets, as in [::1]:50051")
    if len(address) > _LONGEST or not _HOST.fullmatch(host) or not _is_resolvable(host):
        raise ConfigError(f"'{shown}': the host is no name or address, as in 127.0.0.1:50051 or node.example.org:50051")
    return host, int(port)


def is_loopback(address: str) -> bool:
    """Return whether HOST:PORT is a loopback address.

    Raises:
        ConfigError: not HOST:PORT.
    """
    host, _ = split_address(address)
    return host in {"localhost", "[::1]"} or re.fullmatch(r"127(?:\.\d{1,3}){3}", host) is not None


def _is_resolvable(host: str) -> bool:
    try:
        host.encode("idna")
    except UnicodeError:  # a label that is empty or too long
        return host.startswith("[")
    return host.isprintable()
