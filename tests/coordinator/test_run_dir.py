"""The run directory: readable after any end, and the way back from a checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from common.config import SystemConfig
from common.errors import ConfigError
from coordinator.run_dir import KEEP_CHECKPOINTS, Checkpoint, RunDir, Spent


def checkpoint(number: int) -> Checkpoint:
    return Checkpoint(number, {"w": np.full(3, number, np.float32)}, {"shards": {"owners": {}, "cursors": []}})


def test_lines_and_files(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.begin(SystemConfig())
    run.round({"round": 1, "loss": 0.5})
    run.event({"kind": "x"})
    run.nodes([{"node_id": "a"}])
    run.summary({"rounds": 1})
    # Before anything is closed: a process that is killed now leaves this.
    assert json.loads((tmp_path / "run/rounds.jsonl").read_text()) == {"round": 1, "loss": 0.5}
    assert json.loads((tmp_path / "run/summary.json").read_text()) == {"rounds": 1}
    assert SystemConfig.model_validate(yaml.safe_load((tmp_path / "run/config.yaml").read_text())) == SystemConfig()
    assert not list((tmp_path / "run").glob(".*partial"))
    run.close()
    run.event({"kind": "after the end"})


def test_resuming_drops_what_came_after_the_checkpoint_and_torn_lines(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.begin(SystemConfig())
    for number in range(1, 5):
        run.round({"round": number})
    run.close()
    with (tmp_path / "rounds.jsonl").open("a") as file:
        file.write('{"round": 5, "lo')
    again = RunDir(tmp_path)
    again.begin(SystemConfig(), resumed_round=3)
    again.round({"round": 4, "again": True})
    again.close()
    rows = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["again"]


@pytest.mark.parametrize("text", ['{"bytes_sent": 5, "by', "[1]", '{"bytes_sent": Infinity, "bytes_received": 1}'])
def test_what_a_run_spent_is_read_as_far_as_it_can_be(tmp_path: Path, text: str) -> None:
    run = RunDir(tmp_path)
    assert run.spent() == Spent()
    run.begin(SystemConfig())
    run.event({"seconds": 2.5})
    run.summary({"bytes_sent": 5, "bytes_received": 7, "rounds": 1})
    run.close()
    assert run.spent() == Spent(2.5, {"bytes_sent": 5, "bytes_received": 7})
    (tmp_path / "summary.json").write_text(text)
    assert run.spent() == Spent(2.5)


def test_the_newest_readable_checkpoint_is_found_and_old_ones_go(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.latest() is None
    for number in (5, 10, 15, 20):
        run.checkpoint(checkpoint(number))
    assert len(list((tmp_path / "checkpoints").iterdir())) == KEEP_CHECKPOINTS
    (tmp_path / "checkpoints/round-000020.safetensors").write_bytes(b"torn")
    latest = run.latest()
    assert latest is not None
    assert latest.round == 15
    np.testing.assert_array_equal(latest.tensors["w"], [15, 15, 15])
    assert latest.state["shards"] == {"owners": {}, "cursors": []}


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write the run"):
        RunDir(tmp_path / "file" / "run")


def test_a_new_run_in_the_same_place_sets_the_earlier_one_aside(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        run = RunDir(tmp_path)
        run.begin(SystemConfig())
        run.round({"round": number})
        run.checkpoint(checkpoint(number))
        run.close()
        (tmp_path / "report.html").write_text(str(number))
    kept = [
        json.loads((tmp_path / place / "rounds.jsonl").read_text())["round"]
        for place in ("earlier/1", "earlier/2", ".")
    ]
    assert kept == [1, 2, 3]
    assert [(tmp_path / "earlier" / place / "report.html").read_text() for place in ("1", "2")] == ["1", "2"]
    assert [file.name for file in (tmp_path / "earlier/1/checkpoints").iterdir()] == ["round-000001.safetensors"]
