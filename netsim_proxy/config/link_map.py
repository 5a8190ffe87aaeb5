"""Map from a client's address or the TLS server name to a link, for connections that do not name their link.

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
    """Links by address and by server name. Immutable."""

    by_prefix: Mapping[int, Mapping[int, str]] = field(default_factory=dict)
    """Links by length of a prefix, longest first, then by its bits. IPv4 addresses are mapped to IPv6."""
    by_server_name: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, addresses: Mapping[str, str], server_names: Mapping[str, str]) -> "LinkMap":
        """Return the map with these entries: link by network or address, and link by name.

        Raises:
           InvalidInput: an invalid entry, or too many entries.
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
        """Return the link of a client by its socket's peer name; empty if there is none."""
        if not self.by_prefix or not isinstance(peer, tuple):  # a Unix socket has no address
            return ""
        return self.of_address(str(peer[0]))

    def of_address(self, address: str) -> str:
        """Return the link of the longest prefix of an IP address; empty if there is none."""
        bits = _bits(ip_address(address.partition("%")[0]))
        for length, links in self.by_prefix.items():
            link = links.get(bits >> (128 - length))
            if link is not None:
                return link
        return ""

    def of_server_name(self, name: str | None) -> str:
        """Return the link of a server name, exact or with `*` for its first label; empty if there is none."""
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
