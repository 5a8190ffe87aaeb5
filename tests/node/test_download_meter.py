"""A node measures its downloads, and reports each once."""

from hypergpu.common.clock import ManualClock
from hypergpu.node.download_meter import DownloadMeter
from hypergpu.protos import coordinator_pb2 as pb


def download(meter: DownloadMeter, clock: ManualClock, *seconds: float, handling_seconds: float = 0.0) -> None:
    """Receive an order, and then a chunk of 100 bytes after each of these times."""
    order_at = meter.arrived(b"order")
    clock.advance(handling_seconds)
    meter.begin(order_at)
    for each in seconds:
        clock.advance(each)
        meter.chunk(100, meter.arrived(b"x" * 105))


def test_a_download_is_reported_once() -> None:
    clock = ManualClock()
    meter = DownloadMeter(clock)
    assert meter.take_report() is None
    download(meter, clock, 1.0, 2.0, 3.0, 4.0)
    assert meter.take_report() == pb.Transfer(bytes=200, seconds=7.0, bytes_before=200, seconds_before=3.0)
    assert meter.take_report() is None
    assert meter.total_bytes == 4 * 105 + 5


def test_the_latest_download_is_reported() -> None:
    clock = ManualClock()
    meter = DownloadMeter(clock)
    download(meter, clock, 1.0, 2.0)
    download(meter, clock, 8.0)
    assert meter.take_report() == pb.Transfer(bytes=100, seconds=8.0)


def test_chunks_that_waited_for_an_order_to_be_handled_do_not_count() -> None:
    clock = ManualClock()
    meter = DownloadMeter(clock)
    download(meter, clock, 1.0, handling_seconds=0.04)
    assert meter.take_report() == pb.Transfer(bytes=100, seconds=1.04)
    download(meter, clock, 0.0, 1.0, handling_seconds=0.06)
    assert meter.take_report() == pb.Transfer(bytes=100, seconds=1.0)
