import math
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.errors import Unavailable
from hypergpu.netsim_proxy.link.traces import parse_trace
from hypergpu.path_probe import rate_of_train, record

Cli = Callable[..., Any]


def test_a_mahimahi_trace_is_imported(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "lte.up").write_text("".join(f"{ms}\n" for ms in range(1, 2001)))
    out = tmp_path / "lte.csv"
    assert cli("trace", "import", str(tmp_path / "lte.up"), "--format", "mahimahi", "--out", str(out)).code == 0
    trace = parse_trace(out.read_text(), str(out))
    assert trace.rows[0].up_mbit == pytest.approx(12, rel=0.01)
    assert "cannot write" in cli("trace", "record", "127.0.0.1:9", "--out", str(tmp_path)).err
    bad = cli("trace", "import", str(out), "--out", str(out))
    assert bad.code == 2
    assert f"{out}:1: expected a time in whole milliseconds" in bad.err


@pytest.fixture
async def path() -> AsyncIterator[str]:
    """A server with the health service, and what it was asked."""
    server = grpc.aio.server()
    checks = health.aio.HealthServicer()
    await checks.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def test_a_real_path_is_recorded(path: str) -> None:
    found = record(path, None, seconds=0.5, row_seconds=0.1, calls_per_row=3)
    rows = [measured.row async for measured in found]
    assert rows[0].seconds == 0 and 2 <= len(rows) <= 5
    assert all(after.seconds - before.seconds >= 0.1 for before, after in pairwise(rows))
    assert all(0 < row.rtt_ms < 1000 and row.loss == 0 and row.up_mbit == math.inf for row in rows)


async def test_bandwidth_is_of_the_way_up_and_holds_until_it_is_measured_again(path: str) -> None:
    found = record(path, None, seconds=0.2, row_seconds=0.1, calls_per_row=1, probe_bytes=100_000)
    rows = [measured.row async for measured in found]
    assert 1 < rows[0].up_mbit < math.inf and rows[0].down_mbit == math.inf
    assert {row.up_mbit for row in rows} == {rows[0].up_mbit}


async def test_a_server_that_answers_without_reading_tells_no_bandwidth() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        found = record(f"127.0.0.1:{port}", None, seconds=0.1, row_seconds=0.1, calls_per_row=1, probe_bytes=100_000)
        (row,) = [measured.row async for measured in found]
    finally:
        await server.stop(None)
    assert (row.loss, row.up_mbit) == (0, math.inf)


async def test_nobody_there_is_said_at_once() -> None:
    with pytest.raises(Unavailable, match="no gRPC server answers at"):
        async for _ in record("127.0.0.1:9", None, seconds=1):
            pass


@given(
    begin=st.floats(0, 1000),
    slow_start=st.lists(st.floats(0.001, 1), min_size=3, max_size=3),
    per_call=st.floats(0.001, 1),
    call_bytes=st.integers(1000, 3_000_000),
    late=st.integers(0, 4),
)
def test_the_rate_of_a_train_is_that_of_its_second_half_whatever_came_before(
    begin: float, slow_start: list[float], per_call: float, call_bytes: int, late: int
) -> None:
    times = [begin]
    for gap in (*slow_start, *[per_call] * 4):
        times.append(times[-1] + gap)
    rate, seconds = rate_of_train(times, call_bytes)
    assert rate == pytest.approx(call_bytes * 8e-6 / per_call, rel=1e-6)
    assert seconds == pytest.approx(4 * per_call)
    # One answer that is noticed late, by less than the next one takes.
    times[3 + late] += 0.9 * per_call
    assert rate_of_train(times, call_bytes)[0] == pytest.approx(rate, rel=0.1)
