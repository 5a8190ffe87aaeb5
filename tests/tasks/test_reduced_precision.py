"""Models of bfloat16 and float16, and a transformer as users have them: frozen, tied, with an integer buffer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hypergpu.common.config import TrainingConfig
from hypergpu.common.config.compression import CompressionConfig
from hypergpu.common.errors import ConfigError, InvalidInput
from hypergpu.common.local_optimizer import LocalOptimizer
from hypergpu.coordinator.core.model.global_model import GlobalModel
from hypergpu.coordinator.initial_model import initial_values
from hypergpu.node.optimizers import KeptState
from hypergpu.node.trainer import Trainer, Update
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario
from hypergpu.tasks import Task, build
from hypergpu.tasks.flat import FlatModel
from hypergpu.tasks.own_type import with_own_type
from hypergpu.tasks.saved import SavedModel

WORDS, WIDTH, LENGTH = 12, 16, 6
TYPES = (torch.float32, torch.bfloat16, torch.float16)
CONFIG = TrainingConfig(local_steps=8)


class Transformer(nn.Module):
    """Predicts the next token: frozen positions, an integer buffer, and an output layer tied to the embedding."""

    positions: Tensor

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.tokens = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.places.weight.requires_grad_(False)
        self.block = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.tokens.weight
        self.register_buffer("positions", torch.arange(LENGTH))
        self.to(dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.tokens(tokens) + self.places(self.positions)
        scores: Tensor = self.head(self.block(hidden))
        return scores.transpose(1, 2)


def task(dtype: torch.dtype = torch.float32) -> Task:
    """Sequences that count: each token is the one before it plus one, or plus two."""
    first, step = torch.meshgrid(torch.arange(WORDS), torch.tensor([1, 2]), indexing="ij")
    line = (first.reshape(-1, 1) + step.reshape(-1, 1) * torch.arange(LENGTH + 1)) % WORDS
    data = line[:, :-1], line[:, 1:]
    return Task(model=lambda: Transformer(dtype), train=data, test=data, name="counting")


def bfloat16() -> Task:
    return task(torch.bfloat16)


def work(trainer: Trainer, values: "np.ndarray[tuple[int], np.dtype[np.float32]]", rate: float, steps: int) -> Update:
    optimizer = KeptState().local_training(LocalOptimizer("adamw", rate), CONFIG.local_settings, 0)
    return trainer.work(values, lambda _: trainer.samples(range(24)), local_steps=steps, local=optimizer)


@pytest.mark.parametrize("dtype", TYPES)
def test_adamw_trains_a_transformer_of_each_type_with_frozen_and_tied_weights(dtype: torch.dtype) -> None:
    trainer = Trainer(task(dtype), 0)
    model = trainer.model
    names = [spec.name for spec in model.manifest.tensors]
    assert "tokens.weight" in names
    assert not {"head.weight", "places.weight", "positions"} & set(names), "tied, frozen, or whole numbers"
    first = model.flat()
    frozen = model.at_home["places.weight"].clone()
    update = work(trainer, first, 0.01, 30)
    assert update.flat.dtype == np.float32
    assert update.loss_after is not None
    assert update.loss_after < 0.6 * update.steps[0].loss
    module = model.module
    assert isinstance(module, Transformer)
    assert {p.dtype for p in module.parameters()} == {dtype}
    assert module.head.weight is module.tokens.weight
    assert torch.equal(module.places.weight, frozen)
    assert module.positions.tolist() == list(range(LENGTH))


def test_steps_that_bfloat16_rounds_away_add_up() -> None:
    plain = Transformer(torch.bfloat16)
    before = plain.tokens.weight.detach().clone()
    optimizer = torch.optim.AdamW(plain.parameters(), 1e-5, weight_decay=0.0)
    trainer = Trainer(bfloat16(), 0)
    first = trainer.model.flat()
    for _ in range(20):
        x, y = trainer.samples(range(24))
        assert isinstance(x, Tensor)
        nn.functional.cross_entropy(plain(x).float(), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    stuck = float((plain.tokens.weight.detach() == before).float().mean())
    assert stuck > 0.5, "in plain bfloat16, most weights never move"
    moved = work(trainer, first, 1e-5, 20).flat[: before.numel()]
    assert float((moved != 0).mean()) > 0.95
    assert float(np.abs(moved).max()) < 3e-4


def test_the_gradient_of_a_bfloat16_model_is_that_of_torch_in_any_parts() -> None:
    trainer = Trainer(bfloat16(), 0)
    x, y = trainer.samples(range(24))
    assert isinstance(x, Tensor)
    trainer.gradient(x, y)
    whole = trainer.model.gradients.clone()
    trainer.gradient(x, y, micro_batch=8)
    torch.testing.assert_close(trainer.model.gradients, whole, rtol=0.1, atol=0.02)
    own = build(bfloat16(), 0).module
    nn.functional.cross_entropy(own(x).float(), y).backward()
    expected = torch.cat([p.grad.float().reshape(-1) for p in own.parameters() if p.grad is not None])
    torch.testing.assert_close(whole, expected)


def test_float64_and_other_types_are_refused_with_the_reason() -> None:
    with pytest.raises(InvalidInput, match=r"is torch.float64: updates are added and sent as float32.*\.float\(\)"):
        FlatModel(nn.Linear(2, 2).double())


def test_running_statistics_of_a_bfloat16_model_travel() -> None:
    model = FlatModel(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).to(torch.bfloat16))
    before = model.state.clone()
    model.module.train()
    model.module(torch.randn(32, 4, dtype=torch.bfloat16))
    model.collect_state()
    assert not torch.equal(model.state, before)
    values = model.flat()
    values[-8:] = 3.0
    model.load(values)
    assert float(model.module[1].running_mean.float().mean()) == 3.0  # type: ignore[index]


def test_a_bfloat16_model_travels_in_half_the_bytes_unless_a_codec_is_chosen() -> None:
    made = {dtype: build(task(dtype), 0) for dtype in TYPES}
    plain = CompressionConfig()
    assert with_own_type(plain, made[torch.float32]) is plain
    assert with_own_type(plain, made[torch.float16]) is plain, "bf16 would lose digits of float16"
    codecs = with_own_type(plain, made[torch.bfloat16]).codecs
    assert (codecs.update, codecs.parameters) == ("bf16", "bf16")
    chosen = CompressionConfig(strategy="fixed", update_codec="int8")
    assert with_own_type(chosen, made[torch.bfloat16]) is chosen
    model = made[torch.bfloat16]
    shared = GlobalModel(model.manifest, model.flat(), model.parameter_count, CONFIG)
    assert 2 * shared.payload_format("bf16").payload_bytes == shared.payload_format("none").payload_bytes
    decoded = np.empty_like(shared.values)
    form = shared.payload_format("bf16")
    form.decode(form.encode(shared.values)[0], decoded)
    assert np.array_equal(decoded, shared.values), "the initial parameters are of bfloat16: nothing is lost"


@pytest.mark.parametrize("codec", ["none", "bf16", "int8", "int4", "topk"])
def test_every_codec_carries_a_bfloat16_model(codec: str, tmp_path: Path) -> None:
    compression = {} if codec == "none" else {"strategy": "fixed", "update_codec": codec}
    tree = {
        "task": "tests.tasks.test_reduced_precision:bfloat16",
        "rounds": 40,
        "policy": "none",
        "nodes": [{"id": "n", "count": 2, "profile": "good"}],
        "config": {
            "training": {"local_optimizer": "adamw", "learning_rate": 0.01, "local_steps": 8, "batch_size": 12},
            "compression": compression,
        },
    }
    outcome = simulate(Scenario.model_validate(tree), tmp_path / "run")
    assert outcome.final_loss is not None
    assert outcome.final_loss < (1.5 if codec == "topk" else 0.6)


def test_export_has_the_models_own_type_and_a_run_begins_with_it(tmp_path: Path) -> None:
    saved = SavedModel(build(bfloat16(), 0))
    values = build(bfloat16(), 1).flat() + np.float32(1e-6)
    state = saved.state(values)
    assert state["tokens.weight"].dtype is torch.bfloat16
    apart = saved.kept_apart(state, values)
    assert np.array_equal(saved.values(state, apart), values), "a checkpoint keeps the master copies"
    rounded = saved.values(state, {})
    assert not np.array_equal(rounded, values)
    assert np.abs(rounded - values).max() < 0.01
    file = tmp_path / "model.safetensors"
    save_file({name: tensor.clone() for name, tensor in state.items()}, file)
    assert np.array_equal(initial_values(file, saved), rounded)
    plain = Transformer(torch.bfloat16)
    plain.load_state_dict(load_file(file))
    tensors = dict(load_file(file))
    tensors["head.weight"] = tensors["head.weight"] + 1
    save_file(tensors, file)
    with pytest.raises(ConfigError, match=r"'head.weight' differs from 'tokens.weight', to which the task ties it"):
        initial_values(file, saved)
