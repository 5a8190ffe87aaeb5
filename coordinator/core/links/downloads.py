"""Check of the transfers that nodes report, against what the coordinator has sent."""

from dataclasses import dataclass
from typing import Final

from hypergpu.common.transfer_meter import Transfer

_LEAST_SHARE: Final = 0.25
"""Least share of the sent bytes that a report may be about. The meter of a node counts half of them or more."""


@dataclass(slots=True)
class _Sending:
    began_at: float
    nbytes: int


class DownloadLedger:
    """Parameters sent to each node, for which the node may report one transfer.

    Only the node sees its download, so a report can be false. What the coordinator saw bounds it: a report is about
    most of the bytes that were sent, and took no longer than the time since the sending began. So a node can make its
    link look `1 / _LEAST_SHARE` times slower than the whole exchange was, and no more.
    """

    def __init__(self) -> None:
        self._sendings: dict[str, _Sending] = {}

    def begin(self, node: str, now: float, nbytes: int = 0) -> None:
        """Record that the coordinator begins to send parameters to a node; a report about earlier ones is too late.

        `nbytes` are sent at once; `sent` records more.
        """
        self._sendings[node] = _Sending(now, nbytes)

    def sent(self, node: str, nbytes: int) -> None:
        """Record bytes that were sent since `begin`."""
        sending = self._sendings.get(node)
        if sending is not None:
            sending.nbytes += nbytes

    def is_plausible(self, node: str, transfer: Transfer, now: float) -> bool:
        """Return whether a node's report can be true. Each sending is asked about once: later reports are not."""
        sending = self._sendings.pop(node, None)
        return (
            sending is not None
            and transfer.is_possible
            and transfer.nbytes + transfer.bytes_before <= sending.nbytes
            and transfer.nbytes >= _LEAST_SHARE * sending.nbytes
            and transfer.seconds + transfer.seconds_before <= now - sending.began_at
        )

    def forget(self, node: str) -> None:
        """Forget a node that left."""
        self._sendings.pop(node, None)
