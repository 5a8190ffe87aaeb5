"""Measurement of a node's downloads."""

from hypergpu.common.clock import Clock, monotonic
from hypergpu.common.transfer_meter import PAUSE_SECONDS, TransferMeter
from hypergpu.protos import coordinator_pb2 as pb


class DownloadMeter:
    """Counts the bytes of all downloads, and measures the latest one for the coordinator, which cannot see it."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self.total_bytes = 0
        self._clock = clock
        self._latest = TransferMeter()

    def arrived(self, data: bytes) -> float:
        """Count a message that has just arrived; return the time."""
        self.total_bytes += len(data)
        return self._clock()

    def begin(self, order_at: float) -> None:
        """Begin to measure the parameters of an order that arrived at a time and was handled until now."""
        self._latest = TransferMeter(order_at if self._clock() - order_at < PAUSE_SECONDS else None)

    def chunk(self, nbytes: int, at: float, connection: int = 0) -> None:
        """Count a chunk of parameters that arrived at a time, on a connection of this number."""
        self._latest.piece(nbytes, at, connection=connection)

    def take_report(self) -> pb.Transfer | None:
        """Return the measurement of the latest download once; None if there is nothing new."""
        measured, self._latest = self._latest.measured, TransferMeter()
        if measured is None:
            return None
        return pb.Transfer(
            bytes=measured.nbytes,
            seconds=measured.seconds,
            bytes_before=measured.bytes_before,
            seconds_before=measured.seconds_before,
        )
