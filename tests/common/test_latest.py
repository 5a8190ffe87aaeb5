import os
from pathlib import Path
from typing import Any

import pytest

from hypergpu.common.latest import find_run, point_latest


@pytest.fixture(params=["links", "no links"])
def runs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of runs, on a file system with symbolic links and on one without."""
    if request.param == "no links":

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError("symbolic links are not supported")

        monkeypatch.setattr(os, "symlink", refuse)
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return Path("runs")


def test_latest_is_the_run_that_was_begun_last(runs: Path) -> None:
    for name in ("first", "second", "first"):
        assert point_latest(runs / name)
        assert find_run(runs / "latest") == runs / name
    assert sorted(path.name for path in runs.iterdir()) == ["first", "latest", "second"], "nothing is left behind"


def test_a_directory_of_that_name_is_left_alone(runs: Path) -> None:
    (runs / "latest").mkdir()
    (runs / "latest" / "config.yaml").write_text("")
    assert not point_latest(runs / "first")
    assert find_run(runs / "latest") == runs / "latest"
    assert (runs / "latest" / "config.yaml").exists()
    assert sorted(path.name for path in runs.iterdir()) == ["first", "latest", "second"]


@pytest.mark.parametrize("path", ["runs/latest", "elsewhere/first", "first"])
def test_a_run_elsewhere_changes_nothing(runs: Path, path: str) -> None:
    Path(path).mkdir(parents=True)
    assert not point_latest(Path(path))
    assert not Path("latest").exists()
    assert not Path("elsewhere/latest").exists()


def test_a_run_is_named_relative_to_its_directory_wherever_the_command_runs(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    assert point_latest(Path("second"))
    monkeypatch.chdir("..")
    assert find_run(runs / "latest") == runs / "second"


@pytest.mark.parametrize("text", ["", "../elsewhere\n", "/etc\n", "a/b"])
def test_a_file_that_names_no_run_is_taken_as_it_is(tmp_path: Path, text: str) -> None:
    (tmp_path / "latest").write_text(text)
    assert find_run(tmp_path / "latest") == tmp_path / "latest"
