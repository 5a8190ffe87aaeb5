"""Commands that write to a run directory leave one alone that another process writes to."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hypergpu.common.config import SystemConfig
from hypergpu.coordinator.run_dir import RunDir
from hypergpu.coordinator.run_records import line_of

Cli = Callable[..., Any]


@pytest.fixture
def in_use(tmp_path: Path) -> Iterator[Path]:
    """The directory of a run that is going on, and under `real` one of a validation."""
    runs = [RunDir(tmp_path), RunDir(tmp_path / "real")]
    for run in runs:
        run.begin(SystemConfig())
        run.round(line_of({"round": 1}))
        run.summary({"rounds": 1})
        (run.path / "logs").mkdir()
        (run.path / "logs/coordinator.log").write_text("hello")
    yield tmp_path
    for run in runs:
        run.close()


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--rounds", "1", "--nodes", "1", "--out"],
        ["simulate", "calm", "--rounds", "1", "--out"],
        ["validate", "--out"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_directory_in_use_is_refused_and_not_touched(cli: Cli, in_use: Path, arguments: list[str]) -> None:
    def contents() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in in_use.rglob("*") if file.is_file()}

    before = contents()
    result = cli(*arguments, str(in_use))
    assert result.code == 2
    last = result.err.splitlines()[-1]
    assert last.startswith(f"hypergpu: the run directory {in_use}")
    assert f"is in use by process {os.getpid()}" in last
    assert contents() == before


def test_a_report_of_a_run_that_goes_on_can_be_written(cli: Cli, in_use: Path) -> None:
    result = cli("report", str(in_use), "--json")
    assert result.code == 0
    assert json.loads(result.out)["report"] == str(in_use / "report.html")
