"""The process around a run: what its exit code says."""

from pathlib import Path
from typing import Any

import pytest

from hypergpu.common.errors import StorageError
from hypergpu.coordinator import __main__ as process


def test_a_disk_that_fails_at_the_start_ends_the_process_so_that_it_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def train(*_: Any) -> int:
        raise StorageError("cannot cut the log in checkpoints: Input/output error")

    monkeypatch.setattr(process, "_train", train)
    code = process.run(process.CoordinatorOptions(insecure=True, out=tmp_path))
    assert code == 1, "2 is for bad input, after which a container stays down"
    assert capsys.readouterr().err == "hypergpu: cannot cut the log in checkpoints: Input/output error\n"
