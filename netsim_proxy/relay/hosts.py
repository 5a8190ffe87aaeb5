"""Likely links of new connections, which name their link only with their first request.

A client that lost its connection connects again, from the same host. So a new connection is presumed to be on a link
that the host's clients have used and have no connection on now.
"""

from collections import OrderedDict
from typing import Final

_MAX_HOSTS: Final = 4096
_MAX_LINKS: Final = 16
"""Largest number of links of a host from which something is presumed; a gateway of a private network has more."""


class Hosts:
    """Open connections by host and link; the host that was seen least recently is forgotten first."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, dict[str, int]] = OrderedDict()

    def joined(self, host: str, link: str) -> None:
        """Record that a connection from `host` is on `link`."""
        links = self._open.setdefault(host, {})
        self._open.move_to_end(host)
        if link in links or len(links) <= _MAX_LINKS:
            links[link] = links.get(link, 0) + 1
        if len(self._open) > _MAX_HOSTS:
            self._open.popitem(last=False)

    def left(self, host: str, link: str) -> None:
        """Forget such a connection."""
        links = self._open.get(host, {})
        if links.get(link):
            links[link] -= 1

    def presumed(self, host: str) -> list[str]:
        """Return the links that a new connection from `host` may be on; empty = unknown."""
        links = self._open.get(host, {})
        return sorted(link for link, count in links.items() if not count) if len(links) <= _MAX_LINKS else []
