"""Text for people: foreign text cannot steer a terminal, and numbers have their units."""

from pathlib import Path

import pytest

from hypergpu.common.errors import ConfigError
from hypergpu.common.text import (
    counted,
    duration,
    figure,
    mbit,
    milliseconds,
    natural_key,
    number,
    one_line,
    percent,
    printable,
    size,
)
from hypergpu.netsim_proxy.config.profile_file import load_profiles
from hypergpu.simulation.scenario_file import load_scenario


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain [red]text[/] ü 漢", "plain [red]text[/] ü 漢"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\u2028", "\\u2028"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_does_not_print_as_itself_is_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_what_is_kept_stays() -> None:
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"


def test_one_line_is_one_line() -> None:
    assert one_line("  a\n b\t\tc\x1b ") == "a b c\\x1b"


def test_names_sort_by_their_numbers() -> None:
    names = ["node_10", "node_2", "a", "node_2b", "10", "9", "rack2_node10", "rack2_node9", "node_²"]
    assert sorted(names, key=natural_key) == [
        "9",
        "10",
        "a",
        "node_2",
        "node_2b",
        "node_10",
        "node_²",
        "rack2_node9",
        "rack2_node10",
    ]


def test_a_figure_has_four_digits() -> None:
    shown = {0: "0", 0.00012345: "0.0001234", 12.345: "12.35", 999.4: "999.4", 1234.4: "1,234", 1234567: "1,234,567"}
    assert {value: figure(value) for value in shown} == shown
    assert figure(-1234.5, digits=2) == "-1,234"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 ms"),
        (0.0421, "42 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (12.34, "12.3 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7380, "2 h 03 min"),
        (36e6, "10,000 h 00 min"),
        (float("inf"), "–"),
    ],
)
def test_a_duration_has_the_unit_that_suits_it(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (4_100_000, "4.1 MB"),
        (9.9e15, "9900.0 TB"),
    ],
)
def test_a_size_has_the_unit_that_suits_it(count: float, shown: str) -> None:
    assert size(count) == shown


def test_what_is_unknown_is_a_dash() -> None:
    assert {show(None) for show in (duration, size, figure, number, milliseconds, percent)} == {"–"}


def test_shares_counts_and_times_have_their_units() -> None:
    assert (percent(0.9514), percent(0.125, digits=0)) == ("95.1 %", "12 %")
    assert (counted(1, "node"), counted(0, "node"), counted(1200, "node")) == ("1 node", "0 nodes", "1,200 nodes")
    assert (milliseconds(12.4), number(3.6)) == ("12 ms", "4")


def test_files_of_users_are_bounded_wherever_they_are_read() -> None:
    faults = (("/dev/zero", "larger than"), ("/dev", "Is a directory"), ("/not/there.yaml", "No such file"))
    for read in (load_profiles, load_scenario):
        for path, told in faults:
            with pytest.raises(ConfigError, match=f"cannot read {path}: .*{told}"):
                read(Path(path))


@pytest.mark.parametrize(
    ("value", "least", "shown"),
    [
        (None, None, "–"),
        (7.946, None, "7.95"),
        (9.99, 12.0, "9.99"),
        (9.996, None, "10.0"),
        (99.94, None, "99.9"),
        (99.96, None, "100"),
        (None, 0.5, "≥ 0.50"),
        (None, 120.4, "≥ 120"),
    ],
)
def test_a_rate_or_what_it_is_at_least(value: float | None, least: float | None, shown: str) -> None:
    assert mbit(value, least) == shown
