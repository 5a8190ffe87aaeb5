"""The run directory: readable after any end, never two writers, and nothing of an earlier run is lost."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from hypergpu.common.config import SystemConfig
from hypergpu.common.errors import ConfigError, RunInUse, StorageError
from hypergpu.coordinator.run_dir import ResumedTotals, RunDir, archive_previous_run
from hypergpu.coordinator.run_records import line_of


def begun(path: Path, resumed_round: int = 0) -> RunDir:
    run = RunDir(path)
    run.begin(SystemConfig(), resumed_round)
    return run


def rounds_of(path: Path) -> list[int]:
    return [json.loads(line)["round"] for line in (path / "rounds.jsonl").read_text().splitlines()]


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_lines_and_files(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    run.round(line_of({"round": 1, "loss": 0.5}))
    run.event({"kind": "x"})
    run.flush()
    run.nodes([{"node_id": "a"}])
    run.summary({"rounds": 1})
    # Before anything is closed: a process that is killed now leaves this.
    assert json.loads((tmp_path / "run/rounds.jsonl").read_text()) == {"round": 1, "loss": 0.5}
    assert json.loads((tmp_path / "run/summary.json").read_text()) == {"rounds": 1}
    assert SystemConfig.model_validate(yaml.safe_load((tmp_path / "run/config.yaml").read_text())) == SystemConfig()
    assert not list((tmp_path / "run").glob(".*partial"))
    run.close()
    before = contents(tmp_path)
    run.event({"kind": "after the end"})
    run.summary({"rounds": 2})
    assert contents(tmp_path) == before


def test_nothing_is_written_before_the_run_begins(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.round(line_of({"round": 1}))
    run.event({"kind": "x"})
    run.nodes([])
    run.summary({})
    run.sync()
    run.close()
    assert contents(tmp_path) == {".lock": b""}


def test_no_file_holds_a_number_that_json_does_not_have(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.begin(SystemConfig())
    odd = {"round": 1, "loss": float("nan"), "deep": [{"x": float("inf")}]}
    run.round(line_of(odd))
    run.event(odd)
    run.nodes([odd])
    run.summary(odd)
    run.close()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for name in ("rounds.jsonl", "events.jsonl", "nodes.json", "summary.json"):
        read = json.loads((tmp_path / name).read_text(), parse_constant=refuse)
        row = read[0] if name == "nodes.json" else read
        assert row == {"round": 1, "loss": None, "deep": [{"x": None}]}, name


def test_resuming_drops_what_came_after_the_checkpoint_and_torn_lines(tmp_path: Path) -> None:
    run = begun(tmp_path)
    for number in range(1, 5):
        run.round(line_of({"round": number}))
    run.close()
    with (tmp_path / "rounds.jsonl").open("a") as file:
        file.write('{"round": 5, "lo')
    again = begun(tmp_path, resumed_round=3)
    again.round(line_of({"round": 4, "again": True}))
    again.close()
    assert rounds_of(tmp_path) == [1, 2, 3, 4]
    assert json.loads((tmp_path / "rounds.jsonl").read_text().splitlines()[-1])["again"]


@pytest.mark.parametrize(
    "line", ['{"round": "2"}', '{"round": null}', '{"round": true}', '{"round": 0}', "[" * 100_000, "\x00", "[2]"]
)
def test_a_damaged_line_is_left_out_on_resuming(tmp_path: Path, line: str) -> None:
    run = begun(tmp_path)
    run.round(line_of({"round": 1}))
    run.close()
    with (tmp_path / "rounds.jsonl").open("a") as file:
        file.write(line + "\n")
    begun(tmp_path, resumed_round=2).close()
    assert rounds_of(tmp_path) == [1]


@pytest.mark.parametrize(
    "text",
    [
        '{"bytes_sent": 5, "by',
        "[1]",
        '{"bytes_sent": Infinity, "bytes_received": 1}',
        '{"bytes_sent": -1, "bytes_received": 1}',
        '{"bytes_sent": true, "bytes_received": 1}',
        '{"bytes_sent": 9223372036854775808, "bytes_received": 1}',
        "[" * 100_000,
    ],
)
def test_what_a_run_spent_is_read_as_far_as_it_can_be(tmp_path: Path, text: str) -> None:
    run = RunDir(tmp_path)
    assert run.spent() == ResumedTotals()
    run.begin(SystemConfig())
    run.event({"seconds": 2.5})
    run.flush()
    run.summary({"bytes_sent": 5, "bytes_received": 7, "rounds": 1})
    assert run.spent() == ResumedTotals(2.5, {"bytes_sent": 5, "bytes_received": 7})
    run.close()
    (tmp_path / "summary.json").write_text(text)
    assert run.spent() == ResumedTotals(2.5)


@pytest.mark.parametrize("seconds", ["soon", None, [1], True, -3, 1e400, float("nan"), 1e30, 10**400])
def test_an_event_without_a_valid_time_does_not_move_the_clock(tmp_path: Path, seconds: object) -> None:
    run = begun(tmp_path)
    run.event({"seconds": 2.5})
    run.event({"seconds": seconds})
    run.flush()
    assert run.spent().seconds == 2.5
    run.close()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write the run"):
        RunDir(tmp_path / "file" / "run")


def test_a_run_that_cannot_begin_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    run = RunDir(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"cannot write the run to .*: No space left on device"):
        run.begin(SystemConfig())
    run.close()


def test_a_new_run_in_the_same_place_sets_the_earlier_one_aside(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        run = begun(tmp_path)
        run.round(line_of({"round": number}))
        run.close()
        for name in ("report.html", "checkpoints/round-000001.safetensors", "model.safetensors", "best.safetensors"):
            (tmp_path / name).write_text(str(number))
    assert [rounds_of(tmp_path / place) for place in ("earlier/1", "earlier/2", ".")] == [[1], [2], [3]]
    for name in ("report.html", "checkpoints/round-000001.safetensors", "model.safetensors", "best.safetensors"):
        assert [(tmp_path / "earlier" / place / name).read_text() for place in ("1", "2")] == ["1", "2"]


def test_earlier_runs_are_counted_by_number(tmp_path: Path) -> None:
    for name in ("9", "10", "²", "notes"):
        (tmp_path / "earlier" / name).mkdir(parents=True)
    begun(tmp_path).close()
    begun(tmp_path).close()
    assert (tmp_path / "earlier/11/config.yaml").exists()


@pytest.mark.parametrize("name", ["rounds.jsonl", "checkpoints/round-000005.safetensors", "best.safetensors"])
def test_a_run_without_its_configuration_is_set_aside_too(tmp_path: Path, name: str) -> None:
    """As a process leaves it that is killed while it sets a run aside."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / name).write_text("precious")
    begun(tmp_path).close()
    assert (tmp_path / "earlier/1" / name).read_text() == "precious"
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_an_empty_place_holds_no_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    archive_previous_run(tmp_path)
    assert not (tmp_path / "earlier").exists()


def test_files_of_a_writer_that_was_killed_are_removed(tmp_path: Path) -> None:
    left = [".summary.json.partial", "checkpoints/.round-000005.safetensors.partial", "checkpoints/.tmpA1b2C3"]
    for resumed in (0, 1):
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        for name in (*left, "mine.tmp"):
            (tmp_path / name).write_text("half")
        begun(tmp_path, resumed).close()
        assert [name for name in left if (tmp_path / name).exists()] == []
        assert (tmp_path / "mine.tmp").exists()


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path)
    run.summary({"rounds": 1})
    before = sorted(file.name for file in tmp_path.iterdir())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space"):
        run.summary({"rounds": 2})
    with pytest.raises(StorageError, match="No space"):
        run.sync()
    assert json.loads((tmp_path / "summary.json").read_text()) == {"rounds": 1}
    assert sorted(file.name for file in tmp_path.iterdir()) == before
    run.close()


class Syncs:
    """Records what is synced to the disk and when a file is renamed into its place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        real_sync, real_replace = os.fsync, Path.replace

        def fsync(descriptor: int) -> None:
            self.log.append("sync " + Path(f"/proc/self/fd/{descriptor}").readlink().name)
            real_sync(descriptor)

        def replace(path: Path, target: Any) -> Path:
            self.log.append("rename " + Path(target).name)
            return real_replace(path, target)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "replace", replace)


def test_a_file_is_synced_before_it_is_renamed_and_its_directory_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(tmp_path / "run")
    syncs = Syncs(monkeypatch)
    run.summary({"rounds": 1})
    assert syncs.log == ["sync .summary.json.partial", "rename summary.json", "sync run"]
    syncs.log.clear()
    run.round(line_of({"round": 1}))
    run.sync()
    assert syncs.log == ["sync rounds.jsonl", "sync events.jsonl"]
    run.close()


def test_a_second_writer_is_refused_by_name_and_touches_nothing(tmp_path: Path) -> None:
    first = begun(tmp_path)
    first.round(line_of({"round": 1}))
    first.flush()
    before = contents(tmp_path)
    with pytest.raises(RunInUse, match=f"{tmp_path} is in use by process {os.getpid()};") as caught:
        RunDir(tmp_path)
    assert (caught.value.path, caught.value.holder) == (tmp_path, f"process {os.getpid()}")
    assert contents(tmp_path) == before
    first.close()
    first.close()
    begun(tmp_path, resumed_round=1).close()
    assert rounds_of(tmp_path) == [1]
