"""Rounds that synchronise one fragment each: what is sent, what is merged, and the state of the optimizer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.config.training import TrainingConfig
from hypergpu.common.tensors import Flat, Manifest, TensorSpec
from hypergpu.coordinator.core.model.fragment_sendings import NOTHING, Held, ModelSendings, OutgoingModel, after
from hypergpu.coordinator.core.model.global_model import GlobalModel
from hypergpu.coordinator.core.model.outgoing import Sending
from hypergpu.node.core.local_model import LocalModel

LAYERS, WIDTH, STATE = 6, 40, 2
SIZE = LAYERS * WIDTH + STATE


def made(count: int, initial: Flat | None = None, **settings: object) -> GlobalModel:
    specs = [TensorSpec(f"layer{index}.weight", (WIDTH,)) for index in range(LAYERS)]
    manifest = Manifest((*specs, TensorSpec("norm.mean", (STATE,))))
    config = TrainingConfig.model_validate({"fragments": count, "local_steps": 10, **settings})
    return GlobalModel(manifest, np.zeros(SIZE, np.float32) if initial is None else initial, LAYERS * WIDTH, config)


def update_of(model: GlobalModel, fragment: int, value: float) -> Flat:
    return np.full(model.payload_format("none", (fragment,)).size, value, np.float32)


def merge(model: GlobalModel, number: int, value: float) -> None:
    """Close a round with one update, which changes its fragment by `value`, and brings a state of this value."""
    model.begin_round(number)
    model.add(update_of(model, number % model.fragments.count, value).view(np.uint8), "none", 1.0)
    assert model.step()


@given(st.integers(2, 5), st.integers(1, 4))
def test_each_fragment_is_merged_once_in_as_many_rounds_as_there_are_fragments(count: int, cycles: int) -> None:
    model = made(count)
    for number in range(1, count * cycles + 1):
        merge(model, number, 1.0)
    assert (model.values[:-STATE] == cycles).all()


def test_the_state_is_the_mean_of_that_of_the_nodes() -> None:
    model = made(2)
    for number, values in ((1, (1.0, 3.0)), (2, (5.0, 6.0))):
        model.begin_round(number)
        for value in values:
            model.add(update_of(model, number % 2, value).view(np.uint8), "none", 1.0)
        assert model.step()
        assert (model.values[-STATE:] == sum(values) / 2).all()
    assert model.norm(update_of(model, 1, 0.0).view(np.uint8), "none", 1) == pytest.approx(5.5 * STATE**0.5)


def test_the_momentum_of_a_fragment_moves_only_when_it_is_merged() -> None:
    model = made(2, server_momentum=0.5)
    steps = []
    for number in range(1, 7):
        before = model.values.copy()
        merge(model, number, 1.0)
        steps.append([float(part[0]) for part in (model.fragments.take(model.values - before, (f,)) for f in (0, 1))])
    assert steps == [[0, 1], [1, 0], [0, 1.5], [1.5, 0], [0, 1.75], [1.75, 0]]


def test_the_momentum_of_each_fragment_is_in_a_checkpoint() -> None:
    model, again = made(2, server_momentum=0.5), made(2, server_momentum=0.5)
    for number in (1, 2, 3):
        merge(model, number, 1.0)
    assert sorted(model.optimizer_state()) == ["fragment_0.velocity", "fragment_1.velocity"]
    again.restore(model.values, model.optimizer_state())
    for each in (model, again):
        merge(each, 4, 0.0)
        merge(each, 5, 0.0)
    np.testing.assert_array_equal(again.values, model.values)


def test_a_step_that_is_not_finite_restarts_the_optimizer_of_its_fragment_alone() -> None:
    model = made(2, server_momentum=0.5)
    merge(model, 1, 1.0)
    merge(model, 2, 1.0)
    model.begin_round(3)
    model.add(update_of(model, 1, 3e38).view(np.uint8), "none", 1.0)
    model.add(update_of(model, 1, 3e38).view(np.uint8), "none", 1e38)
    before = model.values.copy()
    assert not model.step()
    np.testing.assert_array_equal(model.values, before)
    state = model.optimizer_state()
    assert not state["fragment_1.velocity"].any()
    assert state["fragment_0.velocity"].all()


def test_an_update_of_another_fragments_size_is_refused() -> None:
    specs = (TensorSpec("a.weight", (8,)), TensorSpec("b.weight", (4,)))
    config = TrainingConfig(fragments=2)
    model = GlobalModel(Manifest(specs), np.zeros(12, np.float32), 12, config)
    assert [model.update_format("none", number).size for number in (1, 2)] == [4, 8]
    assert model.payload_format("none", model.largest_update).size == 8


# ---------------------------------------------------------------- what is sent


def test_a_node_is_sent_what_was_merged_since_it_was_sent_something() -> None:
    sendings = ModelSendings(4)
    sendings.begin_round(1)
    first = sendings.plan("none", NOTHING)
    assert first.fragments == (0, 1, 2, 3)
    held = after(NOTHING, first)
    for number in (2, 3, 4):
        sendings.begin_round(number)
    assert sendings.plan("none", held).fragments == (1, 2, 3), "merged in rounds 1, 2 and 3"
    assert sendings.plan("none", Held(sendings.version - 1)).fragments == (3,)
    assert sendings.plan("none", NOTHING).fragments == (0, 1, 2, 3)
    assert sendings.plan("none", Held(sendings.version + 7)).fragments == (0, 1, 2, 3), "a version that was never sent"


def test_a_round_that_is_opened_again_has_merged_nothing() -> None:
    sendings = ModelSendings(3)
    for number in (1, 2):
        sendings.begin_round(number)
    held = after(NOTHING, sendings.plan("none", NOTHING))
    assert sendings.begin_round(2) == ()
    assert sendings.plan("none", held).fragments == (1,), "the last one again: a payload is never empty"
    sendings.begin_round(3)
    assert sendings.plan("none", held).fragments == (2,)


def test_after_a_return_to_an_earlier_model_everything_is_sent() -> None:
    sendings = ModelSendings(3)
    for number in (1, 2):
        sendings.begin_round(number)
    held = after(NOTHING, sendings.plan("none", NOTHING))
    sendings.revert()
    sendings.begin_round(3)
    assert sendings.plan("none", held).fragments == (0, 1, 2)


def test_a_difference_leads_from_the_fragment_as_it_was_sent_before() -> None:
    sendings = ModelSendings(2)
    sendings.begin_round(1)
    held = after(NOTHING, sendings.plan("int8", NOTHING))
    found = []
    for number in range(2, 8):
        sendings.begin_round(number)
        sending = sendings.plan("int8", held)
        held = after(held, sending)
        found.append((sending.codec, sending.fragments, sending.base))
    assert found == [
        ("bf16", (1,), 0),
        ("bf16", (0,), 0),
        ("int8", (1,), 2),
        ("int8", (0,), 2),
        ("int8", (1,), 3),
        ("int8", (0,), 3),
    ]


def test_with_one_fragment_the_sendings_are_those_of_a_whole_model() -> None:
    sendings = ModelSendings(1)
    for number in (1, 2, 2):
        assert list(sendings.begin_round(number)) == [0]
    assert sendings.plan("none", Held(1)) == Sending("none")


@pytest.mark.parametrize("codec", ["none", "bf16", "int8"])
@given(data=st.data())
def test_nodes_hold_the_model_whatever_rounds_they_take_part_in(codec: str, data: st.DataObject) -> None:
    count, nodes = 3, 3
    draw = np.random.default_rng(data.draw(st.integers(0, 99)))
    model = made(count, draw.normal(size=SIZE).astype(np.float32))
    model.keep()
    sendings, outgoing = ModelSendings(count), OutgoingModel(model)
    locals_ = [LocalModel(model.fragments, SIZE) for _ in range(nodes)]
    held = [NOTHING] * nodes
    number, tolerance = 1, {"none": 0.0, "bf16": 0.02, "int8": 0.04}[codec]
    for _ in range(data.draw(st.integers(3, 9))):
        outgoing.begin_round(sendings.begin_round(number))
        there = data.draw(st.lists(st.sampled_from(range(nodes)), unique=True))
        for node in there:
            sending = sendings.plan(codec, held[node])
            payload = outgoing.payload(sending)
            form = model.payload_format(sending.codec, sending.fragments)
            values = locals_[node].base(sending.fragments[0]) if sending.base else np.empty(form.size, np.float32)
            form.add_to(payload, values) if sending.base else form.decode(payload, values)
            locals_[node].receive(values, sending.fragments, sending.fragment_version)
            held[node] = after(held[node], sending)
            np.testing.assert_allclose(locals_[node].begin(number, 0), model.values, atol=tolerance)
        happens = data.draw(st.sampled_from(["closes", "closes", "is abandoned", "reverts"]))
        if happens == "is abandoned":
            continue
        merge(model, number, float(draw.normal()))
        number += 1
        if happens == "reverts":
            model.revert()
            sendings.revert()
