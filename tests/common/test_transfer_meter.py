"""The meter of a transfer counts bytes and seconds while data flows."""

import pytest

from hypergpu.common.transfer_meter import Transfer, TransferMeter


def meter(*pieces: tuple[int, float], began_at: float | None = 0.0) -> TransferMeter:
    made = TransferMeter(began_at)
    for nbytes, at in pieces:
        made.piece(nbytes, at)
    return made


def test_a_single_piece_is_measured_from_the_first_byte() -> None:
    assert meter((1000, 3.0), began_at=1.0).measured == Transfer(1000, 2.0, 0)


def test_without_the_first_byte_a_single_piece_measures_nothing() -> None:
    assert meter((1000, 3.0), began_at=None).measured is None
    assert meter().measured is None


def test_without_the_first_byte_the_first_piece_is_the_beginning() -> None:
    assert meter((1000, 3.0), (500, 4.0), began_at=None).measured == Transfer(500, 1.0, 0)


@pytest.mark.parametrize(
    ("count", "measured"),
    [
        (2, Transfer(100, 1.0, 100, 1.0)),
        (3, Transfer(200, 2.0, 100, 1.0)),
        (4, Transfer(200, 2.0, 200, 2.0)),
        (7, Transfer(400, 4.0, 300, 3.0)),
        (8, Transfer(400, 4.0, 400, 4.0)),
        (44, Transfer(2500, 25.0, 1900, 19.0)),
    ],
)
def test_the_later_half_or_more_of_the_pieces_counts(count: int, measured: Transfer) -> None:
    assert meter(*[(100, float(at + 1)) for at in range(count)]).measured == measured


def test_a_short_last_piece_alone_is_not_measured() -> None:
    assert meter((100, 1.0), (10, 1.1)).measured == Transfer(110, 1.1, 0)


def test_pieces_of_several_connections_count_alike() -> None:
    made = meter((100, 2.0), (100, 2.0), (100, 1.9), (100, 4.0))
    assert made.measured == Transfer(200, 2.0, 200, 2.0)


def test_pieces_that_arrive_together_at_the_end_have_travelled_since_the_beginning() -> None:
    made = TransferMeter(0.0)
    for connection in range(6):
        made.piece(1000, 9.9 + 0.01 * connection, connection=connection)
    assert made.measured == Transfer(6000, made._ended_at)


@pytest.mark.parametrize("pieces", [1, 4, 40])
@pytest.mark.parametrize("connections", [1, 4, 16])
@pytest.mark.parametrize("interleaved", [False, True])
def test_the_rate_does_not_depend_on_the_number_of_connections(
    connections: int, pieces: int, interleaved: bool
) -> None:
    """Connections share a line byte by byte, or send whole pieces in turn."""
    made, rate = TransferMeter(0.0), 1000.0
    for turn in range(pieces):
        for connection in range(connections):
            sent = (turn + 1) * connections if interleaved else turn * connections + connection + 1
            made.piece(100, 100 * sent / rate, connection=connection)
    measured = made.measured
    assert measured is not None
    assert measured.nbytes / measured.seconds == pytest.approx(rate, rel=0.051)


def test_time_without_data_to_send_does_not_count() -> None:
    made = TransferMeter(0.0)
    made.piece(100, 1.0, more=False)
    made.piece(100, 50.0)  # began at an unknown time
    made.piece(150, 52.0)
    assert made.measured == Transfer(150, 2.0, 0)


def test_time_without_reading_does_not_count() -> None:
    made = meter((100, 1.0), (100, 2.0), (100, 3.0))
    made.pause()
    assert made.measured == Transfer(200, 2.0, 100, 1.0)
    made.piece(100, 50.0)
    made.piece(200, 51.0)
    assert made.measured == Transfer(200, 2.0, 100, 1.0), "the longer stretch, and the earlier of equal ones"
    made.piece(50, 51.5)
    assert made.measured == Transfer(250, 1.5, 0)


def test_pieces_without_data_need_no_memory() -> None:
    made = meter(*[(0, float(at)) for at in range(1000)])
    assert made.measured is None
    assert len(made._marks) == 1


def test_after_a_pause_the_first_piece_of_each_connection_does_not_count() -> None:
    """They have been on their way for a second, and arrive together: 300 Mbit/s were measured where the line has 3."""
    meter = TransferMeter(began_at=0.0)
    meter.pause()
    for connection in range(6):
        meter.piece(64_000, 1.0 + 0.001 * connection, connection=connection)
    assert meter.measured is None
    for connection in range(6):
        meter.piece(64_000, 2.0 + 0.001 * connection, connection=connection)
    measured = meter.measured
    assert measured is not None
    assert (measured.nbytes + measured.bytes_before) / (measured.seconds + measured.seconds_before) < 400_000
