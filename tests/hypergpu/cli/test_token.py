"""`hypergpu token`, and what servers make of its files."""

from pathlib import Path
from typing import Any

from hypergpu.common.token import token_file


def tokens(file: Path) -> list[str]:
    return list(token_file(file, "file").all)


def test_a_token_is_long_random_and_for_its_user_alone(cli: Any, tmp_path: Path) -> None:
    file = tmp_path / "join-token"
    assert cli("token", str(file)).code == 0
    (made,) = tokens(file)
    assert len(made) >= 43
    assert file.stat().st_mode & 0o777 == 0o600
    printed = [cli("token").out.strip() for _ in range(2)]
    assert len({made, *printed}) == 3
    again = cli("token", str(file))
    assert (again.code, "give --rotate" in again.err) == (2, True)
    assert tokens(file) == [made]


def test_a_rotation_keeps_the_old_token_until_it_is_dropped(cli: Any, tmp_path: Path) -> None:
    file = tmp_path / "join-token"
    file.write_text("old")
    file.chmod(0o640)
    assert cli("token", str(file), "--rotate").code == 0
    new, old = tokens(file)
    assert old == "old"
    assert file.stat().st_mode & 0o777 == 0o640, "its readers stay"
    assert cli("token", str(file), "--drop-old").code == 0
    assert tokens(file) == [new]
    for _ in range(9):
        assert cli("token", str(file), "--rotate").code == 0
    assert len(tokens(file)) == 8
    assert list(tmp_path.iterdir()) == [file]


def test_what_cannot_be_done_is_said(cli: Any, tmp_path: Path) -> None:
    for arguments, told in (
        (("--rotate",), "give the file"),
        ((str(tmp_path / "none"), "--rotate"), "cannot read"),
        ((str(tmp_path / "none"), "--rotate", "--drop-old"), "give --rotate first"),
        ((str(tmp_path / "no" / "directory"),), "cannot write"),
    ):
        result = cli("token", *arguments)
        assert (result.code, told in result.err) == (2, True), result.err
