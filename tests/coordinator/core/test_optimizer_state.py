"""The state of an optimizer in a checkpoint: restored exactly, and refused where it cannot be its own."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from hypergpu.common.config.training import TrainingConfig
from hypergpu.common.tensors import Flat, Manifest, TensorSpec
from hypergpu.coordinator.core.model.aggregation import BLOCK
from hypergpu.coordinator.core.model.global_model import GlobalModel
from hypergpu.coordinator.core.model.optimizer import Adam, Sgd, make_optimizer

GOOD: Mapping[str, Flat] = {
    "mean": np.array([0.5, -0.5], np.float32),
    "square": np.array([0.0, 0.25], np.float32),
    "steps": np.array([0, 3], np.float32),
}


def flat(*values: float) -> Flat:
    return np.array(values, np.float32)


@pytest.mark.parametrize("steps", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 24) + 1, (1 << 40) - 1])
def test_steps_are_counted_exactly_however_many(steps: int) -> None:
    """One float32 counts to 16 million only, and then stands still."""
    first = Adam(2, 0.1)
    first._steps = steps
    second = Adam(2, 0.1)
    second.restore(first.state())
    assert second._steps == steps


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mean": None}, "holds square, steps where mean, square, steps belongs"),
        ({"velocity": flat(0, 0)}, "holds mean, square, steps, velocity where mean, square, steps belongs"),
        ({"mean": flat(0, 0, 0)}, r"mean is float32 of shape \(3,\) where float32 of shape \(2,\) belongs"),
        ({"mean": flat(0)}, r"mean is float32 of shape \(1,\)"),
        ({"mean": np.zeros(2)}, "mean is float64"),
        ({"mean": flat(0, np.nan)}, "mean is not finite"),
        ({"square": flat(np.inf, 0)}, "square is not finite"),
        ({"square": flat(0, -1e-9)}, "mean of squares is negative"),
        ({"steps": flat(0, -1)}, "steps are 0 and -1"),
        ({"steps": flat(-1, 0)}, "steps are -1 and 0"),
        ({"steps": flat(0, 0.5)}, "steps are 0 and 0.5"),
        ({"steps": flat(0, 1 << 20)}, "which are no count"),
        ({"steps": flat(1 << 20, 0)}, "which are no count"),
        ({"steps": flat(0)}, r"steps is float32 of shape \(1,\)"),
    ],
)
def test_a_state_that_is_not_its_own_is_refused_whole(change: Mapping[str, Flat | None], reason: str) -> None:
    adam = Adam(2, 0.1)
    state = {name: part for name, part in {**GOOD, **change}.items() if part is not None}
    with pytest.raises(ValueError, match=reason):
        adam.restore(state)
    for name, part in Adam(2, 0.1).state().items():
        np.testing.assert_array_equal(adam.state()[name], part)
    adam.restore(GOOD)
    np.testing.assert_array_equal(adam.state()["mean"], GOOD["mean"])


def test_sgd_restores_the_velocity_of_momentum_that_was_set_between_steps() -> None:
    plain, heavy = Sgd(2, 0.1), Sgd(2, 0.1, momentum=0.5)
    plain.restore({})
    heavy.restore({"velocity": flat(1, 2)})
    np.testing.assert_array_equal(heavy.state()["velocity"], [1, 2])
    plain.restore({"velocity": flat(1, 2)})
    np.testing.assert_array_equal(plain.state()["velocity"], [1, 2])
    with pytest.raises(ValueError, match="shape"):
        Sgd(2, 0.1).restore({"velocity": flat(1, 2, 3)})
    with pytest.raises(ValueError, match="holds nothing where velocity belongs"):
        heavy.restore({})


def test_velocity_that_points_against_the_direction_is_dropped_where_it_may_be() -> None:
    for restarts, moved in ((True, -1.0), (False, 3.0)):
        sgd, parameters = Sgd(2, 1.0, momentum=0.5), flat(0, 0)
        sgd.restarts = restarts
        sgd.step(parameters, flat(8, 0))
        np.testing.assert_array_equal(parameters, [8, 0])
        sgd.step(parameters, flat(-1, 0))
        np.testing.assert_array_equal(parameters, [8 + moved, 0])
        sgd.step(parameters, flat(-1, 0) if restarts else flat(1, 0))
        np.testing.assert_array_equal(parameters, [8 - 1 - 1.5, 0] if restarts else [8 + 3 + 2.5, 0])


@pytest.mark.parametrize(
    ("values", "reason"),
    [(flat(1, 2), "2 parameters where 3 belong"), (flat(1, 2, np.nan), "not all finite")],
)
def test_a_model_takes_only_finite_values_of_its_size(values: Flat, reason: str) -> None:
    model = GlobalModel(Manifest((TensorSpec("w", (3,)),)), flat(0, 0, 0), 3, TrainingConfig())
    with pytest.raises(ValueError, match=reason):
        model.restore(values, None)
    model.restore(flat(1, 2, 3), None)
    np.testing.assert_array_equal(model.values, [1, 2, 3])


@pytest.mark.parametrize(
    ("settings", "moved"),
    [
        ({"local_steps": 1, "server_optimizer": "adam", "learning_rate": 0.2}, 0.2),
        ({"local_steps": 1, "server_optimizer": "sgd", "learning_rate": 0.2}, 0.0002),
        # Changes are of the size of a step, so the term against a division by nothing is a thousandth.
        ({"local_steps": 10, "server_optimizer": "adam"}, 0.005),
        ({"local_steps": 10, "server_optimizer": "adam", "server_learning_rate": 0.5}, 0.25),
        ({"local_steps": 10, "server_optimizer": "sgd", "learning_rate": 0.2}, 0.001),
        ({"local_steps": 10, "server_optimizer": "sgd", "server_learning_rate": 0.5}, 0.0005),
    ],
)
def test_a_first_step_is_as_long_as_configured(settings: dict[str, object], moved: float) -> None:
    parameters, direction = np.zeros(3, np.float32), np.full(3, 1e-3, np.float32)
    make_optimizer(TrainingConfig.model_validate(settings), 3).step(parameters, direction)
    assert parameters == pytest.approx(np.full(3, moved), rel=1e-4)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_that_of_torch(nesterov: bool) -> None:
    size = BLOCK + 5  # more than one block
    draws = np.random.default_rng(0)
    ours = draws.standard_normal(size).astype(np.float32)
    theirs = torch.from_numpy(ours.copy())
    optimizer, peer = Sgd(size, 0.7, 0.9, nesterov=nesterov), torch.optim.SGD([theirs], 0.7, 0.9, nesterov=nesterov)
    for _ in range(4):
        direction = draws.standard_normal(size).astype(np.float32)
        theirs.grad = torch.from_numpy(-direction)
        optimizer.step(ours, direction)
        peer.step()
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-6)


def test_the_configured_optimiser_is_made() -> None:
    nesterov = TrainingConfig(server_momentum=0.5, server_nesterov=True)
    parameters = np.zeros(1, np.float32)
    make_optimizer(nesterov, 1).step(parameters, np.ones(1, np.float32))
    assert parameters[0] == 1.5  # the first step looks ahead by half of itself
