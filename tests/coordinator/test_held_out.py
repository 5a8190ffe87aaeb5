from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hypergpu.common.config import SystemConfig
from hypergpu.common.errors import ConfigError
from hypergpu.coordinator.app import Coordinator, Options
from hypergpu.coordinator.held_out import HeldOut, evaluation_device
from hypergpu.tasks import Task, build

X, Y = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)), torch.arange(100) % 2


class Watched(nn.Module):
    """Remembers the batches that it was evaluated on, and holds at most `limit` samples."""

    sizes: list[int]
    limit = 1000

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self.training:
            type(self).sizes.append(len(inputs))
        if len(inputs) > self.limit:
            raise MemoryError
        out: torch.Tensor = self.layer(inputs)
        return out


@pytest.fixture(autouse=True)
def no_sizes() -> None:
    Watched.sizes, Watched.limit = [], 1000


TASK = Task(model=Watched, train=(X, Y), test=(X, Y))


@pytest.mark.parametrize(
    ("sections", "largest"),
    [
        ({}, 64),
        ({"training": {"batch_size": 16}}, 16),
        ({"training": {"batch_size": 16}, "server": {"evaluation_batch_size": 40}}, 40),
    ],
)
def test_an_evaluation_takes_the_training_batch_or_what_is_set(
    tmp_path: Path, sections: dict[str, Any], largest: int
) -> None:
    coordinator = Coordinator(SystemConfig.model_validate(sections), TASK, Options(tmp_path))
    coordinator.engine._dependencies.evaluate(coordinator.engine.model.values)
    assert max(Watched.sizes) == largest
    coordinator.run_dir.close()


def test_a_batch_that_did_not_fit_is_not_tried_again_in_the_next_evaluation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Watched.limit = 30
    model = build(TASK, 0)
    held_out = HeldOut(model, TASK, 100)
    Watched.sizes.clear()  # of the one sample that tells a classification
    first = held_out.evaluate(model.flat())
    assert Watched.sizes[:3] == [100, 50, 25]
    assert "server.evaluation_batch_size" in "".join(capsys.readouterr())
    Watched.sizes.clear()
    assert held_out.evaluate(model.flat()) == pytest.approx(first)
    assert Watched.sizes == [25] * 4
    assert "server.evaluation_batch_size" not in "".join(capsys.readouterr())


def test_the_device_is_one_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert evaluation_device("cpu") == torch.device("cpu")
    assert evaluation_device("auto") == torch.device("cuda")
    assert evaluation_device("cuda:0") == torch.device("cuda:0")
    for name, match in (
        ("cuda:1", "finds 1 CUDA card"),
        ("gpu", "not a device"),
        ("meta", "not supported"),
        ("", "not a device"),
    ):
        with pytest.raises(ConfigError, match=rf"server\.evaluation_device: '{name}'.*{match}"):
            evaluation_device(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert evaluation_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="finds 0 CUDA cards"):
        evaluation_device("cuda")
