"""Links of a plan, from CSV."""

import math

import pytest

from hypergpu.common.errors import ConfigError
from hypergpu.simulation.planning.links_file import PlannedNode, parse_links

HEADER = "name,rtt_ms,jitter_ms,loss,up_mbit,down_mbit,step_seconds,price_per_hour"


def test_a_row_is_a_node() -> None:
    text = f"# measured on Monday\n{HEADER}\n\na, 40, 3, 0.01, 20, 200, 0.2, 1.5\n"
    assert parse_links(text, "x.csv") == [PlannedNode("a", 40.0, 0.2, 3.0, 0.01, 20.0, 200.0, 1.5)]


def test_columns_may_be_left_out_or_empty_and_stand_in_any_order() -> None:
    text = "step_seconds,name,rtt_ms,price_per_hour\n0.1,a,5,\n0.2,b,6,3\n"
    first, second = parse_links(text, "x.csv", price_per_hour=0.5)
    assert first == PlannedNode("a", 5.0, 0.1, price_per_hour=0.5)
    assert (first.up_mbit, first.jitter_ms, second.price_per_hour) == (math.inf, 0.0, 3.0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", r"x.csv: expected the columns name,rtt_ms,.* and at least one row"),
        (f"{HEADER}\n", "at least one row"),
        ("name,rtt,step_seconds\na,1,1\n", r"x.csv:1: unknown column 'rtt'; did you mean 'rtt_ms'"),
        ("name,rtt_ms\na,1\n", r"x.csv:1: step_seconds: expected this column; found name,rtt_ms"),
        ("name,name,rtt_ms,step_seconds\n", r"x.csv:1: column name twice"),
        (f"{HEADER}\na,1,,,,,x,\n", r"x.csv:2: step_seconds: expected a number above 0, up to 1,000,000, found 'x'"),
        (f"{HEADER}\na,1,,,,,,\n", r"x.csv:2: step_seconds: expected a number above 0, up to 1,000,000, found nothing"),
        (f"{HEADER}\n#\na,1,,,0,,1,\n", r"x.csv:3: up_mbit: expected a number above 0, found '0'"),
        (f"{HEADER}\na,1,,60,,,1,\n", r"x.csv:2: loss: expected a number from 0 to 0.5, found '60'"),
        (f"{HEADER}\na,nan,,,,,1,\n", r"x.csv:2: rtt_ms: expected a number from 0 to 1,000,000, found 'nan'"),
        (f"{HEADER}\na,-1,,,,,1,\n", r"x.csv:2: rtt_ms: .* found '-1'"),
        (f"{HEADER}\na,{'9' * 140_000}\n", r"x.csv:2: not a line of CSV: field larger than"),
        (f"{HEADER}\na,1\n", r"x.csv:2: expected 8 values, found 2"),
        (f"{HEADER}\na b,1,,,,,1,\n", r"x.csv:2: name: node id 'a b'"),
        (f"{HEADER}\na,1,,,,,1,\na,1,,,,,1,\n", r"x.csv:3: name: 'a' is in the file twice"),
    ],
)
def test_a_fault_is_named_with_its_line_and_column(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_links(text, "x.csv")


def test_a_plan_has_a_bound() -> None:
    rows = "".join(f"n{number},1,1\n" for number in range(1001))
    with pytest.raises(ConfigError, match="1,001 nodes; expected 1,000 or fewer"):
        parse_links(f"name,rtt_ms,step_seconds\n{rows}", "x.csv")
