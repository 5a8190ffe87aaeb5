"""Processes of outlets beside a run: what becomes of one that fails, hangs or ends."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hypergpu.coordinator.outlets import LOG, Outlets
from tests.patience import patience, until_async

PROGRAMS = {
    "complains": (
        "import sys\nprint('the disk is full', flush=True)\nsys.stdin.buffer.read()\nprint('', flush=True)\n"
    ),
    "hangs": "import time, sys\nsys.stderr.write('hanging')\nsys.stderr.flush()\ntime.sleep(3600)\n",
    "dies": "import os\nos._exit(7)\n",
    "shouts": "print('x' * 1000000, flush=True)\n",
}
Start = Callable[..., Outlets]


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reports: list[str]) -> Start:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name, text in PROGRAMS.items():
        (tmp_path / f"outlet_that_{name}.py").write_text(text)

    def make(name: str, finish_seconds: float = 3600.0) -> Outlets:
        return Outlets(
            tmp_path,
            {"tensorboard": "some where"},
            reports.append,
            module=f"outlet_that_{name}",
            finish_seconds=finish_seconds,
        )

    return make


async def reported(reports: list[str], text: str) -> None:
    async def found() -> bool:
        return any(text in report for report in reports)

    await until_async(found, f"a report {text!r}", more=lambda: repr(reports))


async def test_a_fault_is_reported_and_its_end_too(start: Start, reports: list[str]) -> None:
    outlets = start("complains")
    await outlets.start()
    await reported(reports, "the disk is full")
    with capture_logs() as logs:
        await asyncio.wait_for(outlets.close(), patience())
    assert reports == ["tensorboard: the disk is full", ""]
    assert logs == []


async def test_an_outlet_that_hangs_is_ended_with_a_hint(start: Start, reports: list[str], tmp_path: Path) -> None:
    outlets = start("hangs", finish_seconds=0.0)
    await outlets.start()

    async def hangs() -> bool:
        return (tmp_path / LOG).read_text() == "hanging"

    await until_async(hangs, "the process")
    with capture_logs() as logs:
        await asyncio.wait_for(outlets.close(), patience())
    assert "not done 0 s after the end" in reports[0]
    assert "hypergpu outlets" in logs[0]["event"]
    assert "--tensorboard 'some where'" in logs[0]["event"]


@pytest.mark.parametrize("name", ["dies", "shouts"])
async def test_a_process_that_ends_or_shouts_is_survived(start: Start, reports: list[str], name: str) -> None:
    outlets = start(name)
    await outlets.start()
    if name == "dies":
        await reported(reports, "ended with code 7")
    outlets.finish()
    await asyncio.wait_for(outlets.close(), patience())


async def test_without_outlets_nothing_is_started(tmp_path: Path) -> None:
    outlets = Outlets(tmp_path, {}, lambda reason: None)
    await outlets.start()
    await outlets.close()
    assert not (tmp_path / LOG).exists()
