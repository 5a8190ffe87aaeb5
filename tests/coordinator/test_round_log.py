"""The log of closed rounds: what is whole is read, what is torn is cut, and damage is told from both."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.config.checkpoint import CheckpointConfig, Interval, interval_of
from hypergpu.common.errors import ConfigError
from hypergpu.coordinator import failpoints
from hypergpu.coordinator.core.checkpoint_rule import LARGEST_LOG_BYTES, CheckpointRule
from hypergpu.coordinator.failpoints import Failpoints, Fault, Point
from hypergpu.coordinator.round_log import Contents, RoundLog, read
from hypergpu.coordinator.storage import Storage


def mean_of(number: int, size: int = 5) -> Any:
    return np.arange(size, dtype=np.float32) + number


def write(log: RoundLog, *numbers: int) -> None:
    for number in numbers:
        log.step(number, mean_of(number))
        log.close_round(number, {"round": number, "text": f"round {number}"})


def numbers_of(contents: Contents) -> list[int]:
    return [each.number for each in contents.rounds]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of three rounds."""
    directory = tmp_path_factory.mktemp("log")
    log = RoundLog(directory)
    write(log, 1, 2, 3)
    log.close()
    return directory / "rounds-000001.log"


def copied(file: Path, tmp_path: Path, data: bytes) -> Path:
    (tmp_path / file.name).write_bytes(data)
    return tmp_path


def test_what_was_written_is_read(file: Path) -> None:
    contents = read(file.parent)
    assert numbers_of(contents) == [1, 2, 3]
    assert not contents.tails
    assert not contents.damage
    for each in contents.rounds:
        assert each.record() == {"round": each.number, "text": f"round {each.number}"}
        np.testing.assert_array_equal(each.mean(), mean_of(each.number))
    assert [each.number for each in contents.after(1)] == [2, 3]
    assert contents.lost_after(1) == ""
    assert contents.lost_after(0) == ""


def test_a_round_without_a_mean(tmp_path: Path) -> None:
    log = RoundLog(tmp_path)
    log.close_round(1, {})
    write(log, 2)
    log.close()
    assert [each.mean() is None for each in read(tmp_path).rounds] == [True, False]


def test_a_log_that_ends_at_any_byte_has_the_whole_rounds_before_it_and_no_damage(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    ends = [0, *(each.end for each in read(file.parent).rounds)]
    for size in range(len(data) + 1):
        contents = read(copied(file, tmp_path, data[:size]))
        whole = sum(end <= size for end in ends[1:])
        assert numbers_of(contents) == [1, 2, 3][:whole], size
        assert contents.lost_after(0) == ""
        torn = size - ends[whole]
        assert [tail.nbytes for tail in contents.tails] == ([torn] if torn else [])


@given(data=st.data())
def test_a_changed_byte_is_found_and_is_a_torn_end_only_in_the_last_round(data: st.DataObject, file: Path) -> None:
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    ends = [each.end for each in read(file.parent).rounds]
    directory = file.parent / "changed"
    directory.mkdir(exist_ok=True)
    (directory / file.name).write_bytes(content)
    found = read(directory)
    hit = sum(end <= at for end in ends) + 1
    assert numbers_of(found) == list(range(1, hit)), "nothing behind a changed byte is used"
    assert bool(found.lost_after(0)) is (hit < 3), "and it is an error unless it may be a torn end"


def test_cutting_leaves_the_whole_rounds_and_the_next_process_goes_on_behind_them(file: Path, tmp_path: Path) -> None:
    directory = copied(file, tmp_path, file.read_bytes()[:-1])
    contents = read(directory)
    log = RoundLog(directory)
    log.cut(contents, 2)
    assert read(directory).tails == ()
    write(log, 3, 4)
    log.close()
    assert numbers_of(read(directory)) == [1, 2, 3, 4]
    assert sorted(each.name for each in directory.iterdir()) == ["rounds-000001.log", "rounds-000003.log"]


def test_cutting_drops_the_rounds_after_the_one_that_a_run_goes_on_from(file: Path, tmp_path: Path) -> None:
    directory = copied(file, tmp_path, file.read_bytes())
    RoundLog(directory).cut(read(directory), 1)
    assert numbers_of(read(directory)) == [1]


def test_a_missing_file_in_the_middle_is_an_error(tmp_path: Path) -> None:
    log = RoundLog(tmp_path)
    for number in (1, 2, 3):
        log.begin_file()
        write(log, number)
    log.close()
    (tmp_path / "rounds-000002.log").unlink()
    contents = read(tmp_path)
    assert [each.number for each in contents.after(0)] == [1]
    assert contents.lost_after(0) == "rounds 3 to 3 are in the log, and round 2 before them is not"
    assert contents.lost_after(2) == "", "a checkpoint of round 2 needs no more of them"


def test_trimming_removes_only_files_whose_rounds_a_checkpoint_has(tmp_path: Path) -> None:
    log = RoundLog(tmp_path)
    for numbers in ((1, 2), (3, 4), (5,)):
        log.begin_file()
        write(log, *numbers)
    log.trim(3)
    assert numbers_of(read(tmp_path)) == [3, 4, 5]
    log.trim(99)
    assert numbers_of(read(tmp_path)) == [5], "the last file is still being written to"


def test_a_new_file_begins_with_a_whole_round(tmp_path: Path) -> None:
    log = RoundLog(tmp_path)
    log.step(1, mean_of(1))
    log.begin_file()  # a checkpoint became durable between the step and the record of the round
    log.close_round(1, {})
    write(log, 2)
    log.close()
    contents = read(tmp_path)
    assert [each.mean() is not None for each in contents.rounds] == [True, True]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["rounds-000001.log", "rounds-000002.log"]


class Dead(Exception):
    pass


def _die() -> None:
    raise Dead


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("point", [Point.LOG_STEP, Point.LOG_ROUND])
@pytest.mark.parametrize("action", ["torn", "short"])
def test_a_torn_or_short_write_costs_the_round_that_nobody_was_told_of(
    tmp_path: Path, action: str, point: Point, share: float
) -> None:
    storage = Storage(Failpoints({point: [Fault(action, share, first=2)]}, _die))
    log = RoundLog(tmp_path, storage)
    write(log, 1)
    with pytest.raises((OSError, Dead)):
        write(log, 2)
    assert numbers_of(read(tmp_path)) == [1]
    assert read(tmp_path).lost_after(0) == ""


# ---------------------------------------------------------------- failpoints


def test_failpoints_act_from_one_visit_to_another() -> None:
    points = failpoints.parse("log.sync=error@2-3, log.step=delay:0.25")
    assert points is not None
    slept: list[float] = []
    points._sleep = slept.append
    outcomes = []
    for _ in range(4):
        try:
            points.reach(Point.LOG_SYNC)
            outcomes.append("passed")
        except OSError:
            outcomes.append("failed")
    assert outcomes == ["passed", "failed", "failed", "passed"]
    points.reach(Point.LOG_STEP)
    assert slept == [0.25]
    assert failpoints.parse("") is None


@pytest.mark.parametrize(
    "text",
    [
        "log.sync",
        "log.sync=explode",
        "log.nowhere=crash",
        "log.sync=crash@x",
        "=",
        "a=b",
        f"log.sync=crash@{'9' * 5000}",
    ],
)
def test_a_wrong_failpoint_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="HYPERGPU_FAILPOINTS"):
        failpoints.parse(text)


def test_a_crash_kills_the_process() -> None:
    child = os.fork()
    if not child:
        points = failpoints.parse("log.sync=crash")
        assert points is not None
        points.reach(Point.LOG_SYNC)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == 9


# ---------------------------------------------------------------- when a checkpoint is due


def test_the_texts_of_intervals() -> None:
    assert interval_of("5 rounds") == Interval(rounds=5)
    assert interval_of("1 round") == Interval(rounds=1)
    assert interval_of("30 seconds") == Interval(seconds=30.0)
    assert interval_of("1.5 MB") == Interval(nbytes=1_500_000)
    assert interval_of("2 %") == interval_of("2%") == Interval(share=0.02)
    assert CheckpointConfig.model_validate({"every": 7}).interval == Interval(rounds=7)
    for wrong in ("", "5", "0 rounds", "1.5 rounds", "-1 seconds", "200 %", "5 rounds or so", "5 GB"):
        with pytest.raises(ValueError, match=r"interval|more than|whole rounds"):
            interval_of(wrong)


def test_a_share_of_the_time_bounds_what_checkpoints_cost() -> None:
    rule = CheckpointRule(Interval(share=0.02), 0, began_at=0.0)
    assert rule.is_due(1, 0.0, 0), "the first round has one, which shows what it costs"
    rule.written(0.0, 1.0)
    assert not rule.is_due(2, 49.9, 0)
    assert rule.is_due(3, 50.0, 0)
    rule.failed()
    assert rule.is_due(4, 51.0, 0), "what failed is made up for"


def test_a_log_that_has_grown_large_makes_one_due_in_any_case() -> None:
    rule = CheckpointRule(Interval(rounds=1000), 0, began_at=0.0)
    assert not rule.is_due(1, 0.0, LARGEST_LOG_BYTES)
    assert rule.is_due(1, 0.0, LARGEST_LOG_BYTES + 1)
    large = CheckpointRule(Interval(rounds=1000), LARGEST_LOG_BYTES, began_at=0.0)
    assert not large.is_due(1, 0.0, 16 * LARGEST_LOG_BYTES)


def test_bytes_and_seconds() -> None:
    by_bytes = CheckpointRule(Interval(nbytes=100), 0, began_at=0.0)
    assert [by_bytes.is_due(1, 1e9, size) for size in (99, 100)] == [False, True]
    by_time = CheckpointRule(Interval(seconds=10.0), 0, began_at=5.0)
    assert [by_time.is_due(1, now, 0) for now in (14.9, 15.0)] == [False, True]
