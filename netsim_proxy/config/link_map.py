"""Which link a connection is on that does not say so itself: by the client's address or the name of the server.

addresses:
  10.1.0.0/16: rack_1
  10.1.7.3: node_7       # the longest prefix counts
server_names:            # of TLS that is passed through
  train.example.com: node_1
  "*.example.com": others
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final

from hypergpu.common.errors import ConfigError
from hypergpu.common.rpc import check_node_id

MAX_ENTRIES: Final = 10_000
_V4_PREFIX: Final = 96


@dataclass(frozen=True, slots=True)
class LinkMap:
    """Links by address and by name of a server. Immutable: a change is another map."""

    by_prefix: Mapping[int, Mapping[int, str]] = field(default_factory=dict)
    """By the length of a prefix, longest first, and its bits; addresses of IPv4 are those that IPv6 maps them to."""
    by_server_name: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, addresses: Mapping[str, str], server_names: Mapping[str, str]) -> "LinkMap":
        """Return the map with these entries: link by network or address, and link by name.

        Raises:
            InvalidInput: an entry that does not hold, or too many.
        """
        if len(addresses) + len(server_names) > MAX_ENTRIES:
            raise ConfigError(f"a link map has at most {MAX_ENTRIES} entries, not {len(addresses) + len(server_names)}")
        by_prefix: dict[int, dict[int, str]] = {}
        for network, link in addresses.items():
            length, bits = _prefix(network)
            by_prefix.setdefault(length, {})[bits] = check_node_id(link)
        names = {name.lower().rstrip("."): check_node_id(link) for name, link in server_names.items()}
        return cls({length: by_prefix[length] for length in sorted(by_prefix, reverse=True)}, names)

    def of_peer(self, peer: Any) -> str:
        """Return the link of a client, by the name of its socket's other end; empty where there is none."""
        if not self.by_prefix or not isinstance(peer, tuple):  # a Unix socket has no address
            return ""
        return self.of_address(str(peer[0]))

    def of_address(self, address: str) -> str:
        """Return the link of the longest prefix that an IP address has; empty where there is none."""
        bits = _bits(ip_address(address.partition("%")[0]))
        for length, links in self.by_prefix.items():
            link = links.get(bits >> (128 - length))
            if link is not None:
                return link
        return ""

    def of_server_name(self, name: str | None) -> str:
        """Return the link of a server's name, itself or with a `*` for its first part; empty where there is none."""
        name = (name or "").lower().rstrip(".")
        wild = f"*.{name.partition('.')[2]}"
        return self.by_server_name.get(name) or self.by_server_name.get(wild, "")


def _prefix(text: str) -> tuple[int, int]:
    try:
        network = ip_network(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is no network or address, as in 10.0.0.0/8: {error}") from error
    length = network.prefixlen + (0 if isinstance(network, IPv6Network) else _V4_PREFIX)
    return length, _bits(network.network_address) >> (128 - length)


def _bits(address: IPv4Address | IPv6Address) -> int:
    return int(address) if isinstance(address, IPv6Address) else 0xFFFF << 32 | int(address)


EMPTY: Final = LinkMap()
