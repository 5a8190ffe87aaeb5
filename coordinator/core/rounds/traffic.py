"""Bytes of parameters and updates on each link, since the record of the last round."""

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple


class Traffic(NamedTuple):
    """Bytes on one link."""

    down: int = 0
    """Parameters."""
    up: int = 0
    """Updates."""


class RoundTraffic:
    """Counts bytes by node, until a closed round takes them."""

    def __init__(self) -> None:
        self._counted: defaultdict[str, Traffic] = defaultdict(Traffic)

    def sent(self, node: str, nbytes: int) -> None:
        """Count bytes of parameters for a node."""
        down, up = self._counted[node]
        self._counted[node] = Traffic(down + nbytes, up)

    def received(self, node: str, nbytes: int) -> None:
        """Count bytes of an update of a node."""
        down, up = self._counted[node]
        self._counted[node] = Traffic(down, up + nbytes)

    def take(self) -> Mapping[str, Traffic]:
        """Return what was counted since the last call, by node."""
        counted, self._counted = self._counted, defaultdict(Traffic)
        return counted
