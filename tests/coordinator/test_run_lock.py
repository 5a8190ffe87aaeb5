"""One writer for a run directory, among processes: refused by name, and free again whatever ends the holder."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypergpu.common.errors import ConfigError, RunInUse
from hypergpu.coordinator.run_lock import LOCK_FILE, RunLock

HOLDER = """
import sys
from pathlib import Path
from hypergpu.coordinator.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_another_process_is_refused_by_its_path_and_the_holders_id(
    tmp_path: Path, holder: "subprocess.Popen[str]"
) -> None:
    with pytest.raises(RunInUse) as caught:
        RunLock(tmp_path / "run")
    assert str(caught.value) == (
        f"the run directory {tmp_path / 'run'} is in use by process {holder.pid}; stop that process first, "
        "or choose another directory"
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_process_that_was_killed_is_free(
    tmp_path: Path, holder: "subprocess.Popen[str]", number: int
) -> None:
    holder.send_signal(number)
    holder.wait()
    RunLock(tmp_path / "run").release()


def test_another_name_of_the_same_directory_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with RunLock(tmp_path / "run"), pytest.raises(RunInUse, match="link"):
        RunLock(tmp_path / "link")


def test_a_released_lock_is_free_and_names_nobody(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text("1234567890 " + "a-holder-with-a-long-name" * 5)  # who was killed
    lock = RunLock(tmp_path)
    assert (tmp_path / LOCK_FILE).read_text() == f"{os.getpid()} {socket.gethostname()}\n"
    lock.release()
    lock.release()
    assert (tmp_path / LOCK_FILE).read_text() == ""
    RunLock(tmp_path).release()


def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(code: int) -> None:
        def flock(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(fcntl, "flock", flock)

    for code in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
        refuse(code)
        RunLock(tmp_path).release()
        assert "this file system has no locks" in capsys.readouterr().out
    refuse(errno.EIO)
    with pytest.raises(ConfigError, match=f"cannot lock the run directory {tmp_path}: Input/output error"):
        RunLock(tmp_path)


def test_the_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    RunLock(tmp_path / "a" / "b").release()
    assert (tmp_path / "a" / "b").is_dir()


def test_a_lock_that_cannot_name_its_holder_still_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    lock = RunLock(tmp_path)
    assert "the lock is held, without a name" in capsys.readouterr().out
    with pytest.raises(RunInUse, match="in use by another process"):
        RunLock(tmp_path)
    lock.release()


def test_a_forgotten_lock_is_free(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    del lock
    RunLock(tmp_path).release()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "another process"),
        ("7 elsewhere\n", "process 7 on elsewhere"),
        ("\x1b[2Jrm -rf /\n", "another process"),
        ("7 a b\n", "another process"),
        ("7" * 11 + " elsewhere\n", "another process"),
    ],
)
def test_who_holds_it_is_read_with_care(tmp_path: Path, text: str, named: str) -> None:
    with RunLock(tmp_path):
        (tmp_path / LOCK_FILE).write_text(text)
        with pytest.raises(RunInUse) as caught:
            RunLock(tmp_path)
        assert caught.value.holder == named


def test_a_directory_that_cannot_be_locked_is_one_line(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).mkdir()
    with pytest.raises(ConfigError, match=f"cannot write the run to {tmp_path}: Is a directory"):
        RunLock(tmp_path)
    elsewhere = tmp_path / "run"
    elsewhere.mkdir()
    (elsewhere / LOCK_FILE).symlink_to(tmp_path / "important")
    with pytest.raises(ConfigError, match="cannot write the run"):
        RunLock(elsewhere)
    assert not (tmp_path / "important").exists()
