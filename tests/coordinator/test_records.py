"""Records are written by a thread: the event loop never waits for the disk."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from hypergpu.common.config import SystemConfig
from hypergpu.coordinator import records
from hypergpu.coordinator.health import Health, Part
from hypergpu.coordinator.line_file import LineFile
from hypergpu.coordinator.records import Records
from hypergpu.coordinator.run_dir import RunDir


class Hanging:
    """Files of lines on a disk that does not answer until it is released."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.hangs, self.answers = threading.Event(), threading.Event()
        self.threads: list[str] = []
        real = LineFile.flush

        def flush(lines: LineFile) -> None:
            self.threads.append(threading.current_thread().name)
            self.hangs.set()
            self.answers.wait(30)
            real(lines)

        patch.setattr(LineFile, "flush", flush)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Hanging:
    monkeypatch.setattr(records, "PATIENCE_SECONDS", 0.0)
    return Hanging(monkeypatch)


@pytest.fixture
async def run_dir(tmp_path: Path) -> AsyncIterator[RunDir]:
    run = RunDir(tmp_path)
    run.begin(SystemConfig())
    yield run
    run.close()


def numbers(path: Path) -> list[int]:
    return [json.loads(line)["number"] for line in (path / "events.jsonl").read_text().splitlines()]


async def test_a_disk_that_hangs_stalls_nobody_is_told_and_gets_every_line_in_order(
    run_dir: RunDir, disk: Hanging
) -> None:
    health = Health(CollectorRegistry())
    kept = Records(run_dir, health)
    for number in range(100):
        kept.event({"number": number})
    await asyncio.to_thread(disk.hangs.wait, 30)
    assert health.problems == []
    await kept.retry()
    assert len(health.problems) == 1
    assert "100 lines wait in memory" in health.problems[0]
    assert health.is_failing(Part.RECORDS)
    disk.answers.set()
    await kept.close()
    assert health.problems == []
    assert numbers(run_dir.path) == list(range(100))
    assert kept.missing == ""
    assert disk.threads[0] == "records_0"


async def test_a_full_queue_is_told_while_the_disk_still_hangs(
    run_dir: RunDir, disk: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    health = Health(CollectorRegistry())
    kept = Records(run_dir, health)
    run_dir._files["events.jsonl"]._max_pending_bytes = 40
    for number in range(10, 14):
        kept.event({"number": number})
    assert health.problems == ["records: too many lines wait to be written; 2 of the oldest were dropped"]
    disk.answers.set()
    await kept.flush()
    assert numbers(run_dir.path) == [12, 13]
    assert kept.missing == "2 lines of rounds.jsonl, events.jsonl and the ledger"


async def test_no_file_that_is_written_on_another_thread_is_ahead_of_the_lines(tmp_path: Path, run_dir: RunDir) -> None:
    kept = Records(run_dir, Health(CollectorRegistry()))
    kept._write = lambda: None  # type: ignore[method-assign]  # the thread is late
    kept.event({"number": 7})

    def checkpoint(*arguments: Any) -> list[Any]:
        return [numbers(tmp_path), *arguments]

    assert await asyncio.to_thread(kept.flush_before(checkpoint), "a", 2) == [[7], "a", 2]


async def test_a_row_that_cannot_be_a_line_is_told_and_survived(run_dir: RunDir) -> None:
    health = Health(CollectorRegistry())
    kept = Records(run_dir, health)
    circular: list[Any] = []
    circular.append(circular)
    kept.event({"number": circular})
    assert health.is_failing(Part.RECORDS)
    kept.event({"number": 1})
    await kept.flush()
    assert health.problems == []
    assert numbers(run_dir.path) == [1]
