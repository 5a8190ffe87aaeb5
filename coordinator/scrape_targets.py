"""Rule for the addresses that may be dialled to read a node's /metrics.

A node registers the address of its own endpoint. Whoever holds the join token could register any address, so one is
used only if its host is the one that the node calls from, or one that `server.scrape_hosts` names. The scraper and the
service discovery for Prometheus (`/sd`) share this rule: neither lets a node point the other side at a third party.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from hypergpu.common.address import split_address
from hypergpu.common.errors import ConfigError
from hypergpu.coordinator.core.rounds.membership import Member


@dataclass(frozen=True, slots=True)
class ScrapeTarget:
    """Endpoint of one node that may be scraped."""

    node: str
    host: str
    """Host name or IP address, without brackets."""
    port: int

    @property
    def address(self) -> str:
        """HOST:PORT, with an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class ScrapeRule:
    """Decides which registered addresses may be scraped.

    Args:
        allowed: host names, IP addresses and networks in CIDR notation, beside the host that a node calls from.

    Raises:
        ConfigError: an entry with a slash is not a network.
    """

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        entries = list(allowed)
        self._hosts = frozenset(entry.strip("[]") for entry in entries if "/" not in entry)
        self._networks = [_network(entry) for entry in entries if "/" in entry]

    def target(self, member: Member) -> ScrapeTarget | None:
        """Return the target of `member`, or None if it may not be scraped."""
        try:
            host, port = split_address(member.info.get("address", ""))
        except ConfigError:
            return None
        host = host.strip("[]")
        if port == 0 or not (host == member.info.get("peer") or self._allows(host)):
            return None
        return ScrapeTarget(member.node_id, host, port)

    def targets(self, members: Iterable[Member]) -> list[ScrapeTarget]:
        """Return the targets of all members that may be scraped, in their order."""
        return [target for member in members if (target := self.target(member)) is not None]

    def _allows(self, host: str) -> bool:
        if host in self._hosts:
            return True
        try:
            address = ip_address(host)
        except ValueError:
            return False  # a name belongs to no network: what it resolves to may change
        return any(address in network for network in self._networks)


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text, strict=False)
    except ValueError as error:
        raise ConfigError(f"server.scrape_hosts: {text!r} is not a network, as in 172.16.0.0/12") from error
