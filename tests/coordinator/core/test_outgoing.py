"""Parameters as they are sent, and as nodes then hold them: the same on both sides, to the bit."""

import numpy as np
import pytest

from hypergpu.common.codecs import find_codec
from hypergpu.common.config.training import TrainingConfig
from hypergpu.common.errors import ProtocolError
from hypergpu.common.tensors import Flat, Manifest, TensorSpec
from hypergpu.coordinator.core.model.global_model import GlobalModel
from hypergpu.coordinator.core.model.outgoing import OutgoingParameters, Sending, SendingPlanner
from hypergpu.node.core.held_parameters import HeldParameters

PARAMETERS, STATE = 9000, 5
MANIFEST = Manifest((TensorSpec("weight", (PARAMETERS,)), TensorSpec("mean", (STATE,))))


def model() -> GlobalModel:
    initial = np.random.default_rng(0).standard_normal(PARAMETERS + STATE).astype(np.float32)
    return GlobalModel(MANIFEST, initial, PARAMETERS, TrainingConfig(local_steps=5))


def move(m: GlobalModel, seed: int, scale: float = 0.01) -> None:
    change = scale * np.random.default_rng(seed).standard_normal(PARAMETERS + STATE)
    m.add(change.astype(np.float32).view(np.uint8), "none", 1)
    m.step()


class Sender:
    """Sender of a model's parameters, as the drivers combine planner and encoder."""

    def __init__(self, m: GlobalModel) -> None:
        self.outgoing, self.planner = OutgoingParameters(m), SendingPlanner()

    def begin_round(self) -> None:
        self.planner.begin_round()
        self.outgoing.begin_round()

    def pull(self, held: HeldParameters, codec: str) -> tuple[Sending, int]:
        """Send the parameters of a round to a node; return what was sent, and its bytes."""
        sending = self.planner.plan(codec, held.version)
        form = held.payload_format(find_codec(sending.codec))
        payload = self.outgoing.payload(sending)
        np.copyto(held.begin(form, sending.base), payload)
        held.finish(form, sending.version, sending.base)
        return sending, len(payload)


def planner(version: int) -> SendingPlanner:
    """A planner of this version, with nodes that have held every version from 2 on."""
    tested = SendingPlanner()
    tested.begin_round()
    for number in range(2, version + 1):
        tested.begin_round()
        if number < version:
            tested.plan("int8", number - 1)
    return tested


@pytest.mark.parametrize(
    ("codec", "held", "version", "expected"),
    [
        ("none", 0, 1, Sending("none")),
        ("none", 4, 5, Sending("none")),
        ("bf16", 0, 2, Sending("bf16", 2)),
        ("int8", 0, 2, Sending("bf16", 2)),
        ("int8", 1, 2, Sending("bf16", 2)),
        ("bf16", 4, 5, Sending("bf16")),
        ("int8", 0, 5, Sending("none", 5)),
        ("int8", 4, 5, Sending("int8", 5, 4)),
        ("int8", 2, 3, Sending("int8", 3, 2)),
        ("int8", 3, 5, Sending("none", 5)),
        ("int8", 5, 5, Sending("none", 5)),
        ("int8", 6, 5, Sending("none", 5)),
        ("int8", 1 << 63, 5, Sending("none", 5)),
    ],
)
def test_a_difference_goes_only_to_a_node_that_holds_the_version_before(
    codec: str, held: int, version: int, expected: Sending
) -> None:
    assert planner(version).plan(codec, held) == expected


def test_after_a_round_that_nobody_holds_it_begins_anew() -> None:
    tested = planner(5)
    tested.plan("none", 0)
    tested.plan("bf16", 0)
    tested.begin_round()
    assert tested.plan("int8", 5) == Sending("bf16", 6)


def test_exact_parameters() -> None:
    m = model()
    sender, held = Sender(m), HeldParameters(MANIFEST, PARAMETERS)
    for number in range(3):
        sender.begin_round()
        _, nbytes = sender.pull(held, "none")
        assert nbytes == 4 * PARAMETERS + 4 * STATE
        np.testing.assert_array_equal(held.flat, sender.outgoing.received("none"))
        np.testing.assert_array_equal(held.flat, m.values)
        assert held.version == 0
        move(m, number)


@pytest.mark.parametrize("other", ["none", "int8"])
def test_parameters_in_bf16_whether_or_not_others_hold_them(other: str) -> None:
    m = model()
    sender, held, beside = Sender(m), *(HeldParameters(MANIFEST, PARAMETERS) for _ in range(2))
    for number in range(4):
        sender.begin_round()
        sender.pull(beside, other)
        _, nbytes = sender.pull(held, "bf16")
        assert nbytes == 2 * PARAMETERS + 4 * STATE
        np.testing.assert_array_equal(held.flat, sender.outgoing.received("bf16"))
        np.testing.assert_array_equal(beside.flat, sender.outgoing.received(other))
        np.testing.assert_allclose(held.flat, m.values, rtol=2**-8)
        np.testing.assert_array_equal(held.flat[PARAMETERS:], m.values[PARAMETERS:])
        move(m, number)


def test_a_node_in_bf16_may_go_on_with_differences() -> None:
    m = model()
    sender, held, other = Sender(m), *(HeldParameters(MANIFEST, PARAMETERS) for _ in range(2))
    sender.begin_round()
    sender.pull(held, "bf16")
    sender.pull(other, "int8")
    np.testing.assert_array_equal(held.flat, other.flat)
    move(m, 1)
    sender.begin_round()
    assert sender.pull(held, "int8")[0] == Sending("int8", 2, 1)
    assert sender.pull(other, "int8")[0] == Sending("int8", 2, 1)
    np.testing.assert_array_equal(held.flat, other.flat)
    np.testing.assert_array_equal(held.flat, sender.outgoing.received("int8"))
    assert np.abs(held.flat - m.values).max() <= 0.07 / 254


def test_differences_lead_to_the_model_without_adding_up_errors() -> None:
    m = model()
    sender, held = Sender(m), HeldParameters(MANIFEST, PARAMETERS)
    sizes = []
    for number in range(1, 31):
        sender.begin_round()
        sending, nbytes = sender.pull(held, "int8")
        sizes.append(nbytes)
        assert held.version == sending.version == number
        np.testing.assert_array_equal(held.flat, sender.outgoing.received("int8"))
        np.testing.assert_array_equal(held.flat[PARAMETERS:], m.values[PARAMETERS:])
        assert np.abs(held.flat - m.values).max() <= (5 * 2**-8 if number == 1 else 0.07 / 254)
        move(m, number)
    assert sizes == [2 * PARAMETERS + 4 * STATE] + 29 * [PARAMETERS + 3 * 4 + 4 * STATE]


def test_a_node_that_missed_a_round_or_comes_later_holds_what_the_others_hold() -> None:
    m = model()
    sender, always, sometimes = (
        Sender(m),
        *(HeldParameters(MANIFEST, PARAMETERS) for _ in range(2)),
    )
    bases = []
    for number in range(1, 7):
        sender.begin_round()
        sender.pull(always, "int8")
        if number not in {1, 4}:
            bases.append(sender.pull(sometimes, "int8")[0].base)
            np.testing.assert_array_equal(sometimes.flat, always.flat)
        move(m, number)
    assert bases == [0, 2, 0, 5]


def test_the_parameters_of_a_round_that_is_opened_again_are_another_version() -> None:
    m = model()
    sender, held = Sender(m), HeldParameters(MANIFEST, PARAMETERS)
    sender.begin_round()
    sender.pull(held, "int8")
    move(m, 1)
    m.revert()
    sender.begin_round()
    assert sender.outgoing.version == 2
    assert sender.pull(held, "int8")[0].base == 1
    np.testing.assert_allclose(held.flat, m.values, atol=2**-8 * 5 / 254)


def test_a_difference_that_does_not_exist_is_not_sent() -> None:
    outgoing = OutgoingParameters(model())
    outgoing.begin_round()
    with pytest.raises(ValueError, match="no difference leads from version 1 to 2"):
        outgoing.payload(Sending("int8", 2, 1))


def received(codec: str, values: Flat) -> tuple[HeldParameters, int]:
    held = HeldParameters(MANIFEST, PARAMETERS)
    form = held.payload_format(find_codec(codec))
    np.copyto(held.begin(form, 0), form.encode(values)[0])
    held.finish(form, 7, 0)
    return held, form.payload_bytes


def test_a_difference_to_another_version_is_refused() -> None:
    held, _ = received("none", model().values)
    form = held.payload_format(find_codec("int8"))
    with pytest.raises(ProtocolError, match="a difference to version 6 of the parameters; this node holds 7"):
        held.begin(form, 6)
    assert held.version == 7


def test_parameters_that_broke_off_are_not_held() -> None:
    held, _ = received("none", model().values)
    held.begin(held.payload_format(find_codec("none")), 0)
    assert held.version == 0


def test_a_difference_that_broke_off_leaves_what_is_held() -> None:
    held, _ = received("none", model().values)
    held.begin(held.payload_format(find_codec("int8")), 7)[:] = 0xFF
    assert held.version == 7
    np.testing.assert_array_equal(held.flat, model().values)


def test_after_a_hostile_payload_nothing_is_held() -> None:
    held, _ = received("none", model().values)
    form = held.payload_format(find_codec("int8"))
    held.begin(form, 7)[:] = 0xFF
    with pytest.raises(ProtocolError, match="codec int8"):
        held.finish(form, 8, 7)
    assert held.version == 0
