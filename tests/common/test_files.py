"""Files that change while a program runs."""

from pathlib import Path

from hypergpu.common.clock import ManualClock
from hypergpu.common.files import FileWatch


def test_a_change_is_told_once_and_a_missing_file_is_none(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("1")
    second.write_text("1")
    clock = ManualClock()
    watch = FileWatch([first, second], clock)
    second.write_text("another")
    assert not watch.have_changed(), "it was looked at a moment ago"
    clock.advance(1.0)
    assert watch.have_changed()
    clock.advance(1.0)
    assert not watch.have_changed()
    first.unlink()
    clock.advance(1.0)
    assert not watch.have_changed(), "it is being replaced"
    first.write_text("a third")
    clock.advance(1.0)
    assert watch.have_changed()
    assert not FileWatch([]).have_changed()
