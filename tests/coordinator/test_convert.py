"""What a node reports of its downloads is bounded before anything uses it."""

import math

import pytest

from hypergpu.common.errors import ProtocolError
from hypergpu.common.transfer_meter import Transfer
from hypergpu.coordinator.convert import MAX_TRANSFER_BYTES, download
from hypergpu.protos import coordinator_pb2 as pb


def test_a_download_is_read_from_either_message() -> None:
    report = pb.Transfer(bytes=500, seconds=2.0, bytes_before=300, seconds_before=1.0)
    for message in (pb.UpdateHeader(download=report), pb.PullWorkRequest(download=report)):
        assert download(message) == Transfer(500, 2.0, 300, 1.0)
    assert download(pb.UpdateHeader()) is None


@pytest.mark.parametrize(
    "report",
    [
        pb.Transfer(bytes=0, seconds=1.0),
        pb.Transfer(bytes=MAX_TRANSFER_BYTES + 1, seconds=1.0),
        pb.Transfer(bytes=1, bytes_before=MAX_TRANSFER_BYTES + 1, seconds=1.0),
        pb.Transfer(bytes=1, seconds=-1.0),
        pb.Transfer(bytes=1, seconds=math.nan),
        pb.Transfer(bytes=1, seconds=math.inf),
        pb.Transfer(bytes=1, seconds=1.0, seconds_before=-1.0),
        pb.Transfer(bytes=1, seconds=1.0, seconds_before=math.nan),
    ],
)
def test_a_download_out_of_range_is_a_protocol_error(report: pb.Transfer) -> None:
    with pytest.raises(ProtocolError):
        download(pb.PullWorkRequest(download=report))
