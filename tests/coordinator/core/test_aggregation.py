"""Streaming mean, server optimisers and the step, against their definitions in float64."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.codecs import CODECS
from hypergpu.common.config.training import TrainingConfig
from hypergpu.common.errors import ProtocolError
from hypergpu.common.tensors import Flat, Manifest, TensorSpec
from hypergpu.coordinator.core.model.aggregation import BLOCK, StreamingMean, is_finite, norm, pieces, staleness_weight
from hypergpu.coordinator.core.model.global_model import GlobalModel
from hypergpu.coordinator.core.model.optimizer import Adam, Sgd, Yogi
from tests.examples import examples

SIZES = st.sampled_from([1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3])


@examples(30)
@given(SIZES, st.lists(st.integers(1, 10_000), min_size=1, max_size=6), st.integers(0, 2**32))
def test_the_streaming_mean_is_the_weighted_mean(size: int, weights: list[int], seed: int) -> None:
    updates = np.random.default_rng(seed).standard_normal((len(weights), size)).astype(np.float32)
    before = updates.copy()
    mean = StreamingMean(size)
    for _ in range(2):  # the second time after a reset
        for update, weight in zip(updates, weights, strict=True):
            mean.add(update, weight)
        expected = np.average(updates.astype(np.float64), axis=0, weights=weights)
        taken = mean.take()
        np.testing.assert_allclose(taken, expected, rtol=1e-5, atol=1e-6)
        mean_square, square_mean = mean.norms(taken)
        np.testing.assert_allclose(mean_square, (updates.astype(np.float64) ** 2).sum(1).mean(), rtol=1e-4)
        np.testing.assert_allclose(square_mean, (expected**2).sum(), rtol=1e-3, atol=1e-9)
        mean.reset()
    np.testing.assert_array_equal(updates, before)


def test_the_mean_takes_no_update_of_another_size_or_weight() -> None:
    mean = StreamingMean(3)
    with pytest.raises(ValueError, match="shape"):
        mean.add(np.zeros(4, np.float32), 1)
    with pytest.raises(ValueError, match="weight"):
        mean.add(np.zeros(3, np.float32), 0)
    with pytest.raises(ValueError, match="no updates"):
        mean.take()


@examples(60)
@given(SIZES, st.sampled_from([None, np.nan, np.inf, -np.inf]), st.floats(0, 1, exclude_max=True), st.booleans())
def test_one_bad_number_anywhere_is_found(size: int, bad: float | None, where: float, huge: bool) -> None:
    flat = np.full(size, 3e38 if huge else 1.0, np.float32)  # finite numbers whose sum is not
    if bad is not None:
        flat[int(where * size)] = bad
    assert is_finite(flat) is (bad is None)


@given(st.floats(0.001, 1), st.floats(0, 0.99), st.integers(1, 5), SIZES)
@examples(20)
def test_sgd_with_momentum_follows_its_definition(rate: float, momentum: float, steps: int, size: int) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal(size).astype(np.float32)
    expected, velocity = x.astype(np.float64), np.zeros(size)
    sgd = Sgd(size, rate, momentum)
    for _ in range(steps):
        d = rng.standard_normal(size).astype(np.float32)
        velocity = momentum * velocity + d
        expected = expected + rate * velocity
        sgd.step(x, d)
    np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("nesterov", [False, True])
@given(st.floats(0.1, 0.99), st.integers(2, 4), st.integers(1, 9), SIZES)
@examples(20)
def test_delayed_momentum_follows_its_definition(
    nesterov: bool, momentum: float, every: int, steps: int, size: int
) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal(size).astype(np.float32)
    expected, velocity, waiting = x.astype(np.float64), np.zeros(size), []
    sgd = Sgd(size, 0.7, momentum, nesterov=nesterov)
    sgd.momentum_every = every
    for _ in range(steps):
        d = rng.standard_normal(size).astype(np.float32)
        expected = expected + 0.7 * d
        waiting.append(d.astype(np.float64))
        if len(waiting) == every:
            before, velocity = velocity, momentum * velocity + sum(waiting) / every
            expected = expected + 0.7 * momentum * (velocity if nesterov else before)
            waiting = []
        sgd.step(x, d)
    np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_that_is_delayed_by_nothing_is_the_usual_one(nesterov: bool) -> None:
    results = []
    for delayed in (False, True):
        x, sgd = np.ones(7, np.float32), Sgd(7, 0.5, 0.9, nesterov=nesterov)
        for number in range(4):
            direction = np.full(7, 1.0 + number, np.float32)
            if delayed:
                assert sgd._velocity is not None
                sgd._step_delayed(x, direction, sgd._velocity)
            else:
                sgd.step(x, direction)
        results.append(x)
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6)


def test_the_weight_of_a_late_update_is_not_divided_out() -> None:
    mean = StreamingMean(1)
    for staleness in (1, 3):
        mean.add_parts([(0, np.ones(1, np.float32))], 16, staleness_weight(staleness))
    assert mean.take().tolist() == pytest.approx([(2**-0.5 + 0.5) / 2])


def test_adam_agrees_with_torch() -> None:
    torch = pytest.importorskip("torch")
    size = BLOCK + 5
    rng = np.random.default_rng(2)
    x = rng.standard_normal(size).astype(np.float32)
    theirs = torch.nn.Parameter(torch.tensor(x))
    reference = torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.999), eps=1e-8)
    adam = Adam(size, 0.01)
    for _ in range(10):
        gradient = rng.standard_normal(size).astype(np.float32)
        theirs.grad = torch.tensor(gradient)
        reference.step()
        adam.step(x, -gradient)
    np.testing.assert_allclose(x, theirs.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_yogi_follows_its_definition() -> None:
    """Algorithm 2 of Zaheer et al., 2018, with Adam's bias correction."""
    size, rate = BLOCK + 5, 0.01
    rng = np.random.default_rng(3)
    x = rng.standard_normal(size).astype(np.float32)
    expected, mean, square = x.astype(np.float64), np.zeros(size), np.zeros(size)
    yogi = Yogi(size, rate)
    for step in range(1, 8):
        d = (rng.standard_normal(size) * (10.0 if step == 1 else 0.1)).astype(np.float32)
        mean = 0.9 * mean + 0.1 * d
        square -= 0.001 * np.sign(square - d.astype(np.float64) ** 2) * d.astype(np.float64) ** 2
        expected += rate * mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        yogi.step(x, d)
    np.testing.assert_allclose(x, expected, rtol=1e-3, atol=1e-4)


MANIFEST = Manifest((TensorSpec("weight", (2, 2)), TensorSpec("running_mean", (2,))))


def add(model: GlobalModel, update: Flat, weight: float) -> None:
    model.add(update.view(np.uint8), "none", weight)


def model(**training: object) -> GlobalModel:
    config = TrainingConfig.model_validate({"local_steps": 5, **training})
    return GlobalModel(MANIFEST, np.arange(6, dtype=np.float32), 4, config)


def test_changes_are_added_and_gradients_are_descended_while_state_is_always_added() -> None:
    update = np.full(6, 0.5, np.float32)
    changed = model()
    add(changed, update, 10)
    assert changed.step()
    np.testing.assert_allclose(changed.values, np.arange(6) + 0.5)
    descended = model(local_steps=1, learning_rate=0.1)
    add(descended, update, 10)
    assert descended.step()
    np.testing.assert_allclose(descended.values, [-0.05, 0.95, 1.95, 2.95, 4.5, 5.5], rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_gradients_are_applied_at_the_rate_of_the_step_and_changes_at_that_of_the_server(optimizer: str) -> None:
    def moves(rates: list[float | None], **training: object) -> list[float]:
        m = model(server_optimizer=optimizer, **training)
        found = []
        for rate in rates:
            before = m.values.copy()
            add(m, np.ones(6, np.float32), 1)
            assert m.step(learning_rate=rate)
            found.append(float((m.values - before)[0]))
        return found

    gradients = moves([None, 0.05, None, 0.2], local_steps=1, learning_rate=0.1)
    assert gradients == pytest.approx([-0.1, -0.05, -0.05, -0.2], rel=1e-4)
    changes = moves([None, 0.05], server_learning_rate=0.5)
    assert changes == pytest.approx([0.5, 0.5], rel=2e-3)


def test_a_step_that_overflows_is_left_out_and_does_not_poison_the_next() -> None:
    m = model(server_momentum=0.9)
    huge = np.full(6, 3e38, np.float32)
    add(m, huge, 1000)
    assert not m.step()
    assert m.update_norms is None  # they would be those of the step that was left out
    np.testing.assert_array_equal(m.values, np.arange(6))
    add(m, np.ones(6, np.float32), 1)
    assert m.step()
    np.testing.assert_allclose(m.values, np.arange(6) + 1.0)
    assert m.update_norms == pytest.approx((6.0, 6.0))


OPTIMIZERS: list[dict[str, object]] = [
    {"server_momentum": 0.9},
    {"server_momentum": 0.9, "server_nesterov": True},
    {"server_optimizer": "adam"},
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_restored_model_goes_on_as_if_nothing_had_happened(optimizer: dict[str, object]) -> None:
    def train(m: GlobalModel, seeds: range) -> None:
        for seed in seeds:
            add(m, np.random.default_rng(seed).standard_normal(6).astype(np.float32), 3)
            m.step()

    through, first, second = (model(**optimizer) for _ in range(3))
    train(through, range(6))
    train(first, range(3))
    second.restore(first.values.copy(), {name: state.copy() for name, state in first.optimizer_state().items()})
    train(second, range(3, 6))
    np.testing.assert_array_equal(second.values, through.values)


@pytest.mark.parametrize(
    ("flat", "expected"),
    [
        ([], 0.0),
        ([3.0, 4.0], 5.0),
        ([1e30] * 4, 2e30),
        ([-3e38, 3e38], math.sqrt(2) * 3e38),
        ([1e-30, 1e-30], 0.0),  # below what the square of a float32 can say
    ],
)
def test_the_norm_is_right_also_where_squares_overflow(flat: list[float], expected: float) -> None:
    assert norm(pieces(np.array(flat, np.float32))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("at", [0, BLOCK - 1, BLOCK, 2 * BLOCK])
def test_the_norm_counts_every_block(at: int) -> None:
    flat = np.zeros(2 * BLOCK + 1, np.float32)
    flat[at] = 7.0
    assert norm(pieces(flat)) == 7.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, BLOCK, 2 * BLOCK])
def test_the_norm_of_what_is_not_finite_is_not_finite(bad: float, at: int) -> None:
    flat = np.ones(2 * BLOCK + 1, np.float32)
    flat[at] = bad
    assert not math.isfinite(norm(pieces(flat)))


def test_a_model_returns_to_what_was_kept_last_or_to_its_first_values() -> None:
    manifest = Manifest((TensorSpec("x", (2,)),))
    model = GlobalModel(manifest, np.array([1.0, 2.0], np.float32), 2, TrainingConfig(server_momentum=0.9))

    def step(change: float) -> None:
        add(model, np.full(2, change, np.float32), 1.0)
        assert model.step()

    step(10.0)
    model.revert()
    assert model.values.tolist() == [1.0, 2.0]
    step(1.0)
    assert model.values.tolist() == [2.0, 3.0], "the momentum of what was left is forgotten"
    model.keep()
    step(10.0)
    step(10.0)
    model.revert()
    assert model.values.tolist() == [2.0, 3.0]


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_encoded_updates_enter_the_mean_as_decoded(codec: str) -> None:
    parameters, state = 2 * BLOCK + 4099, BLOCK + 3
    size = parameters + state
    manifest = Manifest((TensorSpec("weight", (parameters,)), TensorSpec("mean", (state,))))
    m = GlobalModel(manifest, np.zeros(size, np.float32), parameters, TrainingConfig(local_steps=5))
    form, weights = m.payload_format(codec), (1.0, 3.0)
    assert form.size == size
    exact, decoded = np.random.default_rng(0).standard_normal((2, size)).astype(np.float32), np.empty((2, size))
    for index, weight in enumerate(weights):
        payload, noise = form.encode(exact[index])
        part = np.empty(size, np.float32)
        form.decode(payload, part)
        decoded[index] = part
        assert m.norm(payload, codec) == pytest.approx(np.linalg.norm(part.astype(np.float64)), rel=1e-5)
        m.add(payload, codec, weight)
        lost = np.linalg.norm(decoded[index] - exact[index]) / np.linalg.norm(exact[index])
        assert lost**2 == pytest.approx(noise, rel=1e-3, abs=1e-12)
    assert m.step()
    np.testing.assert_allclose(m.values, np.average(decoded, axis=0, weights=weights), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        m.values[parameters:], np.average(exact[:, parameters:], axis=0, weights=weights), rtol=1e-5, atol=1e-6
    )


def test_a_payload_that_its_codec_does_not_write_has_no_norm() -> None:
    m = model()
    hostile = np.full(m.payload_format("int8").payload_bytes, 0xFF, np.uint8)
    with pytest.raises(ProtocolError, match="codec int8"):
        m.norm(hostile, "int8")
    with pytest.raises(ProtocolError, match="a payload of 3 bytes"):
        m.norm(hostile[:3], "int8")
