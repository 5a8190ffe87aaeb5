"""Foreign text cannot steer a terminal."""

from pathlib import Path

import pytest

from hypergpu.common.errors import ConfigError
from hypergpu.common.text import one_line, printable
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


def test_files_of_users_are_bounded_wherever_they_are_read() -> None:
    faults = (("/dev/zero", "larger than"), ("/dev", "Is a directory"), ("/not/there.yaml", "No such file"))
    for read in (load_profiles, load_scenario):
        for path, told in faults:
            with pytest.raises(ConfigError, match=f"cannot read {path}: .*{told}"):
                read(Path(path))
