"""What a node's calls show of it, and what its next process finds."""

import subprocess
import sys
from pathlib import Path

import pytest

from hypergpu.common.token import TokenSource
from hypergpu.node.credentials import Credentials
from hypergpu.node.lease_file import LeaseFile, lease_path


def test_a_call_shows_the_name_the_token_and_the_lease() -> None:
    credentials = Credentials("a", TokenSource(["t"]))
    assert credentials.metadata() == (("x-node-id", "a"), ("authorization", "Bearer t"))
    credentials.keep("secret")
    assert credentials.metadata() == (("x-node-id", "a"), ("x-node-lease", "secret"), ("authorization", "Bearer t"))
    credentials.forget()
    assert dict(credentials.metadata()).keys() == {"x-node-id", "authorization"}


def test_the_next_process_finds_the_secret_once_the_first_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "a.lease"
    first = LeaseFile(path)
    assert first.read() == ""
    first.write("one.secret")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    second = Credentials("a", file=LeaseFile(path))
    assert "x-node-lease" not in dict(second.metadata()), "the first one lives"
    first.close()
    assert dict(second.metadata())["x-node-lease"] == "one.secret"
    second.keep("two.s")
    assert path.read_text() == "two.s"
    second.forget()
    assert not path.exists()


def test_the_lock_ends_with_the_process(tmp_path: Path) -> None:
    path = tmp_path / "a.lease"
    program = (
        "import os, sys; from pathlib import Path; from hypergpu.node.lease_file import LeaseFile; "
        "file = LeaseFile(Path(sys.argv[1])); file.write('x.y'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == 9
    assert LeaseFile(path).read() == "x.y"


@pytest.mark.parametrize("content", [b"", b"a secret", b"\xff\xfe", b"x" * 2000, b"a\nb"])
def test_a_file_with_something_else_counts_as_empty(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.lease").write_bytes(content)
    assert LeaseFile(tmp_path / "a.lease").read() == ""


def test_a_directory_that_cannot_be_used_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    file = LeaseFile(tmp_path / "file" / "a.lease")
    file.write("one.secret")
    assert file.read() == ""
    file.remove()


def test_each_coordinator_has_a_file_of_its_own(tmp_path: Path) -> None:
    paths = {lease_path(tmp_path, address, "a").name for address in ("h:1", "h:2", "[::1]:1", "../x:1")}
    assert len(paths) == 4
    assert all("/" not in name and not name.startswith("..-") for name in paths)
