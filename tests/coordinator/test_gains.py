"""Gains of updates on held-out data: what is measured, how often, and at what cost."""

import numpy as np
import pytest

from hypergpu.common.config import SystemConfig, TrainingConfig
from hypergpu.common.errors import ConfigError
from hypergpu.common.tensors import Flat, Manifest, Payload, TensorSpec
from hypergpu.coordinator.core.model.global_model import GlobalModel
from hypergpu.coordinator.core.rounds.events import UpdateArrived
from hypergpu.coordinator.core.rounds.membership import Member
from hypergpu.coordinator.core.rounds.usefulness import MOST_MEASURED, Usefulness
from hypergpu.coordinator.gains import LARGEST_SHARE, Gains

SIZE, STATE = 6, 2
NODES = [f"n{number}" for number in range(20)]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def model_of(**training: object) -> GlobalModel:
    manifest = Manifest((TensorSpec("a", (3,)), TensorSpec("b", (3,)), TensorSpec("state", (STATE,))))
    config = TrainingConfig.model_validate({"server_momentum": 0.0, **training})
    model = GlobalModel(manifest, np.arange(SIZE + STATE, dtype=np.float32), SIZE, config)
    model.begin_round(1, ["n"])
    return model


def payload(values: Flat) -> Payload:
    return np.ascontiguousarray(values, np.float32).view(np.uint8)


@pytest.mark.parametrize("steps", [1, 4])
def test_an_update_alone_does_what_a_step_of_it_alone_would_do(steps: int) -> None:
    model = model_of(local_steps=steps, learning_rate=0.1)
    change = payload(np.linspace(-1, 1, SIZE + STATE, dtype=np.float32))
    found, before = model.with_update(change, "none", 1), model.values.copy()
    assert np.array_equal(model.values, before)
    model.add(change, "none", 32.0, node="n")
    assert model.step()
    np.testing.assert_allclose(found, model.values, rtol=1e-6)


def test_an_update_of_a_fragment_changes_that_fragment() -> None:
    model = model_of(local_steps=4, fragments=2)
    both = []
    for number in (1, 2):
        fragment = TrainingConfig(local_steps=4, fragments=2).fragment_of(number)
        sent = np.ones(3 + STATE, np.float32)
        sent[3:] = model.values[SIZE:]  # the state comes as values, not as a change
        both.append(model.with_update(payload(sent), "none", number) - model.values)
        expected = np.zeros(SIZE + STATE, np.float32)
        model.fragments.put(np.r_[np.ones(3), np.zeros(STATE)].astype(np.float32), expected, (fragment,))
        assert both[-1].tolist() == expected.tolist()
    assert (both[0] + both[1])[:SIZE].tolist() == [1.0] * SIZE


def test_gains_are_measured_within_their_share_of_the_time() -> None:
    clock, evaluated = Clock(), [0]

    def loss_of(values: Flat) -> float:
        evaluated[0] += 1
        clock.now += 1.0
        return float(values[0])

    gains = Gains(model_of(local_steps=4), loss_of, clock)
    change = payload(np.full(SIZE + STATE, -0.5, np.float32))

    def measure(number: int) -> tuple[float | None, int]:
        found = gains.measure(UpdateArrived("n", number, 1, 32, 0.0, 0.0), change)
        return None if found is None else found.loss_before - found.loss_after, evaluated[0]

    assert measure(1) == (0.5, 2)
    assert measure(1) == (None, 2), "two seconds were spent: nothing more for a while"
    clock.now += 2.0 / LARGEST_SHARE
    assert measure(1) == (0.5, 3), "the loss before is that of the round"
    clock.now += 100.0
    assert measure(2) == (0.5, 5)


def test_about_so_many_updates_are_drawn_and_few_of_a_round() -> None:
    judge = Usefulness(measured_share=0.1, secret=5)
    counts = dict.fromkeys(NODES[:6], 0)
    for number in range(1, 1001):
        judge.begin_round(number, NODES[:6])
        for node in counts:
            counts[node] += judge.measures(node)
    assert all(70 < count < 130 for count in counts.values()), counts
    for number in range(1, 101):
        judge.begin_round(number, NODES)
        assert sum(judge.measures(node) for node in NODES) <= MOST_MEASURED
    another = Usefulness(measured_share=0.1, secret=6)
    another.begin_round(7, NODES)
    judge.begin_round(7, NODES)
    drawn = [[node for node in NODES if each.measures(node)] for each in (judge, another)]
    assert drawn[0] != drawn[1], "who does not know the key cannot know who is drawn"
    none = Usefulness()
    none.begin_round(1, NODES)
    assert not any(none.measures(node) for node in NODES)


def test_the_mean_gain_has_an_interval() -> None:
    member = Member("a")
    assert member.gain is None
    for gain in (0.1, 0.3, 0.2):
        member.add_gain(gain)
    assert member.gain == (pytest.approx(0.2), pytest.approx(1.96 * 0.1 / 3**0.5))


def test_the_share_is_a_setting() -> None:
    assert SystemConfig().contribution.measured_share == 0.1
    with pytest.raises((ConfigError, ValueError)):
        SystemConfig.model_validate({"contribution": {"measured_share": 1.5}})
