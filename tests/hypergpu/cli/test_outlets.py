"""`hypergpu outlets`, and the settings of outlets."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from hypergpu.cli import main
from hypergpu.common.config import OutletsConfig, SystemConfig, load_config
from tests.hypergpu.outlets.runs import Run


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["outlets", *arguments])
    return int(ended.value.code or 0)


def test_a_run_is_delivered_and_again_adds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run, store = Run(tmp_path / "first"), tmp_path / "store"
    run.close_rounds(1, 3)
    for _ in range(2):
        assert call(str(run.path), "--tensorboard", str(store)) == 0
    assert f"3 rounds of {run.path} in {store / 'first'}" in capsys.readouterr().out.replace("\n", "")
    found = events.EventAccumulator(str(store / "first")).Reload()
    assert [each.step for each in found.Scalars("loss")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((), "choose an outlet"), (("--tensorboard", "x"), "holds no run"), (("--wandb", "on"), "'offline' or 'online'")],
)
def test_bad_input_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert call(str(tmp_path), *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_place_that_takes_no_files_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    run = Run(tmp_path / "first")
    (tmp_path / "file").touch()
    assert call(str(run.path), "--tensorboard", str(tmp_path / "file")) == 2
    assert "tensorboard does not take the run: [Errno 20] Not a directory" in capsys.readouterr().err


def test_settings_are_switches_or_targets(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("outlets: {tensorboard: true, wandb: off}\n")
    assert load_config(SystemConfig, file).outlets.chosen == {"tensorboard": "true"}
    assert load_config(SystemConfig, None, {}, ["outlets.tensorboard=true"]).outlets.chosen == {"tensorboard": "true"}
    assert SystemConfig().outlets.chosen == {}


def test_a_password_is_not_written_to_the_run_directory() -> None:
    with pytest.raises(ValidationError, match="MLFLOW_TRACKING_PASSWORD"):
        OutletsConfig(mlflow="https://me:secret@mlflow.example.org")
    assert OutletsConfig(mlflow="https://mlflow.example.org").chosen == {"mlflow": "https://mlflow.example.org"}
