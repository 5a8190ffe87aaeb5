import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.errors import ConfigError
from hypergpu.netsim_proxy.link import Deliver, Direction, Link
from hypergpu.netsim_proxy.link.traces import Row, Trace, format_trace, mahimahi_rows, parse_mahimahi, parse_trace

TEXT = "# a train\nseconds,rtt_ms,loss,up_mbit,down_mbit\n0,40,0.001,8,\n10,200,,1,20\n"


def test_a_link_replays_a_trace_from_when_it_takes_it_on() -> None:
    link = Link("n", parse_trace(TEXT, "t.csv").profile("train"), seed=0)

    def delay(now: float) -> float:
        outcome = link.offer(now, Direction.UP, 1000, link.begin(now), end=True)
        assert isinstance(outcome, Deliver)
        return outcome.at - now

    assert delay(100.0) == pytest.approx(0.021)
    assert link.next_change == 110.0
    assert delay(109.0) == pytest.approx(0.021)
    assert delay(110.0) == pytest.approx(0.108)
    assert delay(119.9) == pytest.approx(0.108)
    assert delay(120.0) == pytest.approx(0.021)
    assert link.bandwidth_mbit(Direction.DOWN) == math.inf


@given(
    st.lists(
        st.tuples(st.integers(1, 100), st.integers(0, 500), st.integers(0, 100), st.integers(1, 10_000)),
        min_size=1,
        max_size=20,
    )
)
def test_a_trace_survives_writing_and_reading(steps: list[tuple[int, int, int, int]]) -> None:
    rows, at = [], 0
    for gap, rtt, loss, mbit in steps:
        rows.append(Row(float(at), float(rtt), loss / 100, float(mbit), math.inf))
        at += gap
    trace = parse_trace(format_trace(rows, "two\nlines"), "x")
    assert trace.rows == tuple(rows)
    for row in rows:
        assert trace.profile_at(row.seconds).up.latency.at(0.5) == pytest.approx(row.rtt_ms / 2000)
        assert trace.next_change(row.seconds) > row.seconds


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "expected the columns"),
        ("seconds,rtt\n", r"t.csv:1: expected the columns"),
        ("seconds,rtt_ms\n0,x\n", r"t.csv:2: rtt_ms: expected a number, found 'x'"),
        ("seconds,rtt_ms\n0,1\n0,2\n", r"t.csv:3: seconds: expected more than 0, found 0"),
        ("seconds,rtt_ms\n4,1\n", r"t.csv:2: seconds: expected 0 in the first row, found 4"),
        ("seconds,rtt_ms,loss\n0,1,1.5\n", r"t.csv:2: loss: invalid value 1.5"),
        ("seconds,rtt_ms,up_mbit\n0,1,0\n", r"t.csv:2: up_mbit: expected more than 0"),
        ("seconds,rtt_ms\n0,\n", r"t.csv:2: rtt_ms: invalid value .empty."),
        ("seconds,rtt_ms\n0\n", r"t.csv:2: expected at least seconds and rtt_ms"),
        ("seconds,rtt_ms\n0," + "9" * 140_000, r"t.csv:2: not a line of CSV: field larger than"),
    ],
)
def test_what_does_not_hold_is_named_with_its_line(text: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        parse_trace(text, "t.csv")


def test_mahimahi_packets_become_bandwidth() -> None:
    text = "".join(f"{ms}\n" for ms in range(1, 1001)) + "".join(f"{ms}\n" for ms in range(1002, 2001, 4))
    bins = parse_mahimahi(text, "lte.up", bin_seconds=1.0)
    assert [start for start, _ in bins] == [0.0, 1.0]
    assert bins[0][1] == pytest.approx(12.0, rel=0.01)
    assert bins[1][1] == pytest.approx(3.0, rel=0.02)
    rows = mahimahi_rows(bins, bins, rtt_ms=40)
    assert Trace("lte", rows).profile_at(0.5).up.bandwidth_mbit == bins[0][1]


def test_mahimahi_outages_keep_a_trickle() -> None:
    bins = parse_mahimahi("1\n2999\n", "t", bin_seconds=1.0)
    assert bins[1][1] == 0
    assert all(row.up_mbit > 0 for row in mahimahi_rows(bins, bins, 10))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("1\nx\n", "t:2: expected a time"),
        ("1\n²\n", "t:2: expected a time"),
        ("9" * 5_000, "t:1: expected a time"),
        ("5\n3\n", "t:2: expected 5 or more"),
        ("9" * 18, "28 hours"),
        ("", "one a line"),
    ],
)
def test_what_is_no_mahimahi_trace(text: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        parse_mahimahi(text, "t")


@pytest.mark.parametrize("starts", [[], [1.0], [0.0, 0.0]])
def test_times_of_a_trace_grow_from_zero(starts: list[float]) -> None:
    with pytest.raises(ValueError, match="start at 0"):
        Trace("t", [Row(start, 1.0) for start in starts])
