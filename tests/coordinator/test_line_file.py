"""Lines that outlast a full disk."""

import threading
from pathlib import Path
from typing import Any

import pytest

from hypergpu.coordinator.line_file import LineFile


class SmallDisk:
    """A raw file that takes so many bytes and no more."""

    def __init__(self, room: int) -> None:
        self.room, self.content = room, b""

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = data[: self.room]
        self.content += taken
        self.room -= len(taken)
        return len(taken)


def line_file(tmp_path: Path, room: int, **options: Any) -> tuple[LineFile, SmallDisk]:
    lines = LineFile(tmp_path / "lines", **options)
    lines.close()
    disk = SmallDisk(room)
    lines._file = disk  # type: ignore[assignment]
    return lines, disk


def append(lines: LineFile, *texts: bytes) -> None:
    for text in texts:
        lines.append(text)
        with pytest.raises(OSError, match="No space"):
            lines.flush()


def test_lines_are_appended_to_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b"one\n")
    lines = LineFile(tmp_path / "lines")
    lines.append(b"two\n")
    assert (tmp_path / "lines").read_bytes() == b"one\n", "an append does not touch the disk"
    assert lines.pending == 1
    lines.flush()
    assert (tmp_path / "lines").read_bytes() == b"one\ntwo\n"
    assert lines.pending == 0
    lines.close()


@pytest.mark.parametrize("room", range(13))
def test_a_disk_that_is_full_at_any_byte_loses_no_line_and_repeats_none(tmp_path: Path, room: int) -> None:
    lines, disk = line_file(tmp_path, room)
    for text in (b"one\n", b"two\n", b"four\n"):
        lines.append(text)
        try:
            lines.flush()
        except OSError:
            assert lines.pending
    disk.room = 100
    lines.flush()
    assert disk.content == b"one\ntwo\nfour\n"
    assert (lines.pending, lines.dropped) == (0, 0)


def test_the_next_line_writes_those_before_it_first(tmp_path: Path) -> None:
    lines, disk = line_file(tmp_path, 0)
    append(lines, b"one\n", b"two\n")
    assert lines.pending == 2
    disk.room = 100
    lines.append(b"three\n")
    lines.flush()
    assert disk.content == b"one\ntwo\nthree\n"


def test_of_too_many_lines_the_oldest_are_given_up_but_for_one_that_is_begun(tmp_path: Path) -> None:
    lines, disk = line_file(tmp_path, 2, max_pending_bytes=10)
    append(lines, b"one\n", b"two\n", b"six\n")
    assert (lines.pending, lines.dropped) == (3, 0), "2 + 4 + 4 bytes are allowed"
    append(lines, b"ten\n")
    assert (lines.pending, lines.dropped) == (3, 1)
    disk.room = 100
    lines.flush()
    assert disk.content == b"one\nsix\nten\n"


def test_a_line_that_is_not_begun_can_be_given_up_too(tmp_path: Path) -> None:
    lines, disk = line_file(tmp_path, 0, max_pending_bytes=8)
    append(lines, b"one\n", b"two\n", b"six\n")
    disk.room = 100
    lines.flush()
    assert disk.content == b"two\nsix\n"
    assert lines.dropped == 1


def test_one_line_beyond_the_bound_is_kept(tmp_path: Path) -> None:
    lines, _ = line_file(tmp_path, 0, max_pending_bytes=3)
    append(lines, b"longer\n")
    assert (lines.pending, lines.dropped) == (1, 0)


class HungDisk(SmallDisk):
    """A disk whose first write hangs until it is released."""

    def __init__(self) -> None:
        super().__init__(room=1000)
        self.is_hanging, self.answers = threading.Event(), threading.Event()

    def write(self, data: bytes) -> int:
        if not self.answers.is_set():
            self.is_hanging.set()
            self.answers.wait(30)
        return super().write(data)


def test_lines_can_be_appended_while_the_disk_hangs_and_the_one_being_written_is_not_dropped(tmp_path: Path) -> None:
    lines, _ = line_file(tmp_path, 0, max_pending_bytes=8)
    disk = HungDisk()
    lines._file = disk  # type: ignore[assignment]
    lines.append(b"one\n")
    writer = threading.Thread(target=lines.flush)
    writer.start()
    assert disk.is_hanging.wait(30)
    for text in (b"two\n", b"six\n", b"ten\n"):
        lines.append(text)
    assert (lines.pending, lines.dropped) == (2, 2), "8 bytes are allowed"
    disk.answers.set()
    writer.join(30)
    assert disk.content == b"one\nten\n"
    assert (lines.pending, lines._pending_bytes) == (0, 0)


def test_two_threads_that_flush_write_each_line_once(tmp_path: Path) -> None:
    lines, _ = line_file(tmp_path, 0)
    disk = HungDisk()
    lines._file = disk  # type: ignore[assignment]
    lines.append(b"one\n")
    lines.append(b"two\n")
    writers = [threading.Thread(target=lines.flush) for _ in range(2)]
    for writer in writers:
        writer.start()
    assert disk.is_hanging.wait(30)
    disk.answers.set()
    for writer in writers:
        writer.join(30)
    assert disk.content == b"one\ntwo\n"
