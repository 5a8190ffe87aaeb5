"""Models that a run begins with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hypergpu.common.config import SystemConfig
from hypergpu.common.errors import ConfigError
from hypergpu.coordinator.app import Coordinator, Options
from hypergpu.coordinator.initial_model import initial_values
from hypergpu.tasks import Task, build
from hypergpu.tasks.saved import SavedModel


class Model(nn.Module):
    """A frozen layer, a normalization with statistics and a counter, and a trained layer."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(3, 4).requires_grad_(False)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.norm(self.frozen(x)))
        return found


def task() -> Task:
    x, y = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2
    return Task(model=Model, train=(x, y), test=(x, y))


@pytest.fixture
def saved() -> SavedModel:
    return SavedModel(build(task(), 0))


@pytest.fixture
def trained(tmp_path: Path, saved: SavedModel) -> Path:
    """File of the model after training elsewhere, with plain PyTorch."""
    state = {name: tensor.clone() for name, tensor in saved.initial.items()}
    state["head.weight"] += 1.0
    state["norm.running_mean"] += 0.5
    state["norm.num_batches_tracked"] += 7
    save_file(state, tmp_path / "trained.safetensors")
    return tmp_path / "trained.safetensors"


def test_a_run_begins_with_the_model_of_a_file(trained: Path, saved: SavedModel, tmp_path: Path) -> None:
    config = SystemConfig.model_validate({"training": {"initial_model": str(trained)}})
    coordinator = Coordinator(config, task(), Options(tmp_path / "run"))
    coordinator.run_dir.close()
    model = coordinator.engine.model
    found = saved.state(model.values)
    untrained = saved.initial
    assert torch.equal(found["head.weight"], untrained["head.weight"] + 1.0)
    assert torch.equal(found["norm.running_mean"], untrained["norm.running_mean"] + 0.5)
    assert torch.equal(found["head.bias"], untrained["head.bias"])
    before = model.values.copy()
    model.revert()
    np.testing.assert_array_equal(model.values, before)  # what a ruined first round returns to


@pytest.mark.parametrize("name", ["best.safetensors", "model.safetensors"])
def test_a_run_directory_stands_for_its_best_model_or_its_last(trained: Path, saved: SavedModel, name: str) -> None:
    trained.rename(trained.with_name(name))
    if name == "best.safetensors":
        trained.with_name("model.safetensors").write_text("not looked at")
    values = initial_values(trained.parent, saved)
    assert np.abs(values - build(task(), 0).flat()).max() == pytest.approx(1.0)


def test_files_that_are_missing_or_no_tensors_are_named(tmp_path: Path, saved: SavedModel) -> None:
    with pytest.raises(ConfigError, match=r"there is no best\.safetensors or model\.safetensors in "):
        initial_values(tmp_path, saved)
    with pytest.raises(ConfigError, match=r"none\.safetensors cannot be read: No such file or directory$"):
        initial_values(tmp_path / "none.safetensors", saved)
    (tmp_path / "text.safetensors").write_text("text")
    with pytest.raises(ConfigError, match=r"text\.safetensors cannot be read: "):
        initial_values(tmp_path / "text.safetensors", saved)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"head.weight": None}, "'head.weight' is missing"),
        ({"head.weights": torch.zeros(2)}, "it holds 'head.weights', which .* did you mean 'head.weight'"),
        ({"head.weight": torch.zeros(4, 2)}, r"'head.weight' is torch.float32 of shape \(4, 2\)"),
        ({"head.weight": torch.zeros(2, 4, dtype=torch.float64)}, "'head.weight' is torch.float64"),
        ({"head.bias": torch.full((2,), torch.nan)}, "its values are not all finite"),
        ({"frozen.weight": torch.zeros(4, 3)}, "'frozen.weight' differs from that of the task"),
        ({"frozen.weight": None}, "'frozen.weight' is missing"),
    ],
)
def test_a_file_of_another_model_is_refused_with_the_tensor(
    change: dict[str, torch.Tensor | None], told: str, saved: SavedModel, tmp_path: Path
) -> None:
    state = {name: tensor for name, tensor in {**saved.initial, **change}.items() if tensor is not None}
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=told):
        initial_values(tmp_path / "other.safetensors", saved)
