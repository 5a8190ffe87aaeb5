"""The model as files: whole, plain, and of the round that they say."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hypergpu.common.config.training import TrainingConfig
from hypergpu.common.errors import InvalidInput, NonFiniteUpdate, StorageError
from hypergpu.common.metric import MetricSpec
from hypergpu.coordinator import files
from hypergpu.coordinator.checkpoints import Checkpoints, read_tensors
from hypergpu.coordinator.core.model.global_model import GlobalModel
from hypergpu.coordinator.core.score import Score
from hypergpu.coordinator.model_files import ModelFiles, score_of
from hypergpu.coordinator.resuming import identity_of
from hypergpu.tasks import FlatModel, Task
from hypergpu.tasks.saved import SavedModel

DATA = (torch.zeros(4, 2), torch.zeros(4, 1))
TASK = Task(model=lambda: nn.Linear(2, 1), train=DATA, test=DATA)
TRAINING = TrainingConfig(local_steps=2, server_momentum=0.5)


class Model:
    """A small model whose values tests set, and its files."""

    def __init__(self, path: Path, module: nn.Module | None = None, training: TrainingConfig = TRAINING) -> None:
        flat = FlatModel(nn.Linear(2, 1) if module is None else module)
        saved = SavedModel(flat)
        self.saved = saved
        self.model = GlobalModel(flat.manifest, flat.flat(), flat.parameter_count, training)
        self.files = ModelFiles(
            path, self.model, saved, identity_of(TASK, saved, flat.parameter_count), {"task": "toy"}
        )
        path.joinpath("checkpoints").mkdir(parents=True, exist_ok=True)
        self.path = path

    def set(self, value: float) -> None:
        self.model.values[:] = value

    def evaluated(self, round_number: int, accuracy: float, loss: float = 1.0) -> None:
        self.set(round_number)
        self.files.evaluated(Score(round_number, loss, accuracy))


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path)


def test_the_best_model_is_the_one_that_evaluated_best_and_says_so(model: Model) -> None:
    for number, accuracy in ((1, 0.5), (2, 0.75), (3, 0.75), (4, 0.25)):
        model.evaluated(number, accuracy)
    assert model.files.best == Score(2, 1.0, 0.75)
    assert not (model.path / "best.safetensors").exists()
    model.files.checkpoint(4, {})
    tensors, metadata = read_tensors(model.path / "best.safetensors")
    assert torch.equal(tensors["weight"], torch.full((1, 2), 2.0))
    assert {name: metadata[name] for name in ("round", "loss", "accuracy", "task")} == {
        "round": "2",
        "loss": "1.0",
        "accuracy": "0.75",
        "task": "toy",
    }
    model.evaluated(5, 0.875)
    model.files.finish(5)
    assert score_of(read_tensors(model.path / "best.safetensors")[1]) == Score(5, 1.0, 0.875)


def test_the_best_model_is_written_once(model: Model) -> None:
    model.evaluated(1, 0.5)
    model.files.checkpoint(1, {})
    (model.path / "best.safetensors").unlink()
    model.evaluated(2, 0.25)
    model.files.checkpoint(2, {})
    assert not (model.path / "best.safetensors").exists()


def test_the_last_model_says_how_it_did_only_if_it_was_evaluated(model: Model) -> None:
    model.files.finish(3, Score(3, 0.25, 0.5))
    assert score_of(read_tensors(model.path / "model.safetensors")[1]) == Score(3, 0.25, 0.5)
    model.set(7.0)
    model.files.finish(4)
    tensors, metadata = read_tensors(model.path / "model.safetensors")
    assert torch.equal(tensors["bias"], torch.tensor([7.0]))
    assert metadata["round"] == "4"
    assert not {"loss", "accuracy"} & set(metadata)


def test_a_checkpoint_says_how_its_round_did(model: Model) -> None:
    model.files.checkpoint(3, {}, Score(3, 0.25, 0.5))
    model.files.checkpoint(4, {})
    kept = Checkpoints(model.path / "checkpoints")
    assert score_of(kept.read(3).metadata) == Score(3, 0.25, 0.5)
    assert score_of(kept.read(4).metadata) is None


def test_the_best_of_an_earlier_process_has_to_be_beaten(tmp_path: Path) -> None:
    first = Model(tmp_path)
    first.evaluated(2, 0.75)
    first.files.finish(2)
    again = Model(tmp_path)
    again.files.restore_best()
    again.evaluated(3, 0.5)
    again.files.finish(3)
    assert score_of(read_tensors(tmp_path / "best.safetensors")[1]) == Score(2, 1.0, 0.75)
    again.evaluated(4, 0.875)
    again.files.finish(4)
    assert score_of(read_tensors(tmp_path / "best.safetensors")[1]) == Score(4, 1.0, 0.875)


def test_a_damaged_best_model_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").write_text("rubbish")
    again = Model(tmp_path)
    again.files.restore_best()
    again.evaluated(3, 0.125)
    again.files.finish(3)
    assert score_of(read_tensors(tmp_path / "best.safetensors")[1]) == Score(3, 1.0, 0.125)


@pytest.mark.parametrize("keep", ["checkpoint", "finish"])
def test_a_best_model_that_cannot_be_written_costs_no_checkpoint(
    model: Model, monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    real = files.sync_file

    def full(file: Path) -> None:
        if "best" in file.name:
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(files, "sync_file", full)
    model.evaluated(3, 0.5)
    with pytest.raises(StorageError, match=r"best\.safetensors: No space left on device"):
        model.files.checkpoint(3, {}) if keep == "checkpoint" else model.files.finish(3)
    written = Checkpoints(model.path / "checkpoints").rounds() if keep == "checkpoint" else [3]
    assert written == [3]
    assert (model.path / "model.safetensors").exists() == (keep == "finish")
    monkeypatch.setattr(files, "sync_file", real)
    model.files.checkpoint(4, {})
    assert score_of(read_tensors(model.path / "best.safetensors")[1]) == Score(3, 1.0, 0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nothing_that_is_not_finite_is_written(model: Model, value: float) -> None:
    model.set(value)
    with pytest.raises(NonFiniteUpdate, match="after round 3 is not finite"):
        model.files.checkpoint(3, {})
    with pytest.raises(NonFiniteUpdate, match="after round 3 is not finite"):
        model.files.finish(3)
    model.set(1.0)
    velocity = model.model.optimizer_state()["velocity"]
    velocity[-1] = value
    with pytest.raises(NonFiniteUpdate, match="after round 3 is not finite"):
        model.files.checkpoint(3, {})
    assert list(model.path.rglob("*.safetensors")) == []


@pytest.mark.parametrize("name", ["mean", "square"])
def test_one_part_of_an_optimizer_that_is_not_finite_is_enough(tmp_path: Path, name: str) -> None:
    model = Model(tmp_path, training=TrainingConfig(local_steps=2, server_optimizer="adam"))
    model.model.optimizer_state()[name][0] = np.inf
    with pytest.raises(NonFiniteUpdate):
        model.files.checkpoint(3, {})


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (Score(1, 1.0, 0.5), None),
        (Score(1, 1.0, 0.5), Score(2, 0.5, 0.25)),
        (Score(1, 0.5, 0.5), Score(2, 1.0, 0.5)),
        (Score(1, 2.0, -0.5), Score(2, 1.0, -0.75)),
        (Score(1, 1.0, -9.0), Score(2, 1.0, float("nan"))),
    ],
)
def test_the_better_of_two(better: Score, worse: Score | None) -> None:
    assert better.beats(worse)
    assert worse is None or not worse.beats(better)
    assert not better.beats(better)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_beats_nothing(loss: float) -> None:
    assert not Score(1, loss, 1.0).beats(None)
    assert not Score(1, loss, 1.0).beats(Score(2, 9.0, 0.0))


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"round": "1", "loss": "1.0"},
        {"round": "one", "loss": "1.0", "accuracy": "1.0"},
        {"round": "0", "loss": "1.0", "accuracy": "1.0"},
        {"round": "1", "loss": "nan", "accuracy": "1.0"},
        {"round": "9" * 5000, "loss": "1.0", "accuracy": "1.0"},
    ],
)
def test_what_a_file_says_of_itself_is_checked(metadata: dict[str, str]) -> None:
    assert score_of(metadata) is None


@pytest.mark.parametrize("name", ["mse", "round", "format", "checksum", "server_checksum", "state", "loss", "metric"])
def test_a_metric_of_any_name_is_read_back(model: Model, name: str) -> None:
    score = Score(3, 0.25, 12.5, MetricSpec(name=name, better="lower", format="number"))
    model.files.finish(3, score)
    model.files.checkpoint(3, {}, score)
    assert score_of(read_tensors(model.path / "model.safetensors")[1]) == score
    assert score_of(Checkpoints(model.path / "checkpoints").read(3).metadata) == score


@pytest.mark.parametrize(("better", "best"), [("higher", 2), ("lower", 1)])
def test_the_best_is_by_the_direction_of_the_metric(
    model: Model, better: Literal["higher", "lower"], best: int
) -> None:
    spec = MetricSpec(name="mse", better=better)
    for number, value in ((1, 0.5), (2, 0.75), (3, None)):
        model.files.evaluated(Score(number, 1.0, value, spec))
    assert model.files.best is not None
    assert model.files.best.round == best


# ---------------------------------------------------------------- whole and plain


class Everything(nn.Module):
    """Frozen layers, a tied weight under two names, BatchNorm, and buffers of several kinds."""

    def __init__(self, *, compiled: bool = False) -> None:
        super().__init__()
        self.base = nn.Linear(3, 3).requires_grad_(False)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 3)
        self.again = nn.Linear(3, 3)
        self.again.weight = self.head.weight
        self.register_buffer("table", torch.arange(4))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("turned", torch.arange(6).reshape(2, 3).T)
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        if compiled:
            self.head = torch.compile(self.head, backend="eager")  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.head(self.norm(self.base(x))))  # type: ignore[no-any-return]


def compiled_whole() -> nn.Module:
    return torch.compile(Everything(), backend="eager")  # type: ignore[return-value]


@pytest.mark.parametrize("make", [Everything, lambda: Everything(compiled=True), compiled_whole])
def test_the_file_of_the_model_is_its_whole_state_dict(tmp_path: Path, make: Any) -> None:
    module = make()
    model = Model(tmp_path, module)
    model.set(0.5)
    model.files.evaluated(Score(1, 1.0, 0.5))
    model.files.finish(1)
    model.files.checkpoint(1, {})
    plain = Everything()
    for file in ("model.safetensors", "best.safetensors", "checkpoints/round-000001.safetensors"):
        loaded = load_file(tmp_path / file)
        assert loaded.keys() == plain.state_dict().keys()
        plain.load_state_dict(loaded)
        assert (plain.head.weight == 0.5).all()
        assert torch.equal(plain.get_buffer("norm.running_var"), torch.full((3,), 0.5))
        torch.testing.assert_close(plain.base.weight, getattr(module, "_orig_mod", module).base.weight)
        assert torch.equal(plain.get_buffer("table"), torch.arange(4))
        assert torch.equal(plain.get_buffer("turned"), torch.arange(6).reshape(2, 3).T)


@pytest.mark.parametrize("make", [Everything, lambda: Everything(compiled=True), compiled_whole])
def test_what_travels_is_found_again_in_the_file(tmp_path: Path, make: Any) -> None:
    model = Model(tmp_path, make())
    values = np.arange(model.model.values.size, dtype=np.float32)
    model.model.values[:] = values
    model.files.checkpoint(1, {})
    read = Checkpoints(tmp_path / "checkpoints").read(1)
    assert not [name for name in read.server if name.startswith("model.")]
    np.testing.assert_array_equal(model.saved.values(read.model, {}), values)


def test_a_model_that_renames_its_state_is_restored_too(tmp_path: Path) -> None:
    class Renamed(nn.Linear):
        def state_dict(self, *arguments: Any, **options: Any) -> Any:
            return {f"renamed.{name}": value for name, value in super().state_dict(*arguments, **options).items()}

    model = Model(tmp_path, Renamed(2, 1))
    model.model.values[:] = [1, 2, 3]
    model.files.checkpoint(1, {})
    read = Checkpoints(tmp_path / "checkpoints").read(1)
    assert set(read.model) == {"renamed.weight", "renamed.bias"}
    apart = {name.removeprefix("model."): part for name, part in read.server.items() if name.startswith("model.")}
    np.testing.assert_array_equal(model.saved.values(read.model, apart), [1, 2, 3])


def test_values_that_do_not_fit_are_refused_by_name(model: Model) -> None:
    whole = model.saved.state(model.model.values)
    for name, tensor, reason in (
        (
            "weight",
            torch.ones(2, 2),
            r"'weight' is torch.float32 of shape \(2, 2\), expected torch.float32 of shape \(1, 2\)",
        ),
        ("bias", torch.ones(1, dtype=torch.float64), r"'bias' is torch.float64 of shape \(1,\)"),
    ):
        with pytest.raises(ValueError, match=reason):
            model.saved.values({**whole, name: tensor}, {})
    with pytest.raises(ValueError, match="'bias' is missing"):
        model.saved.values({"weight": whole["weight"]}, {})


@pytest.mark.parametrize(
    ("buffer", "reason"),
    [
        (torch.ones(2, dtype=torch.complex128), "complex128"),
        (torch.eye(2).to_sparse(), "only dense tensors"),
        (torch.empty(2, device="meta"), "only dense tensors"),
    ],
    ids=["complex128", "sparse", "meta"],
)
def test_a_model_that_no_file_can_hold_is_refused_at_the_start(tmp_path: Path, buffer: Tensor, reason: str) -> None:
    module = nn.Linear(2, 1)
    flat = FlatModel(module)
    module.register_buffer("odd", buffer)
    with pytest.raises(InvalidInput, match=f"'odd' of the model .*{reason}"):
        saved = SavedModel(flat)
        model = GlobalModel(flat.manifest, flat.flat(), flat.parameter_count, TRAINING)
        ModelFiles(tmp_path, model, saved, identity_of(TASK, saved, 1), {})
