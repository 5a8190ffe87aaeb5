"""Encoding of a node's updates: what is lost of one enters the next, and only of those that were accepted."""

import numpy as np
import pytest

from hypergpu.common.codecs import ErrorFeedback
from hypergpu.common.errors import NonFiniteUpdate, UnknownName
from hypergpu.common.tensors import Flat
from hypergpu.node.core.update_encoder import EncodedUpdate, UpdateEncoder

SIZE, STATE = 5000, 3


def update(seed: int) -> Flat:
    return np.random.default_rng(seed).standard_normal(SIZE + STATE).astype(np.float32)


def decoded(encoded: EncodedUpdate) -> Flat:
    out = np.empty(SIZE + STATE, np.float32)
    encoded.form.decode(encoded.payload, out)
    return out


def sent(encoder: UpdateEncoder, values: Flat, round_number: int, accepted_round: int, codec: str = "topk") -> Flat:
    """What arrives of an update; `values` themselves are left alone."""
    encoded = encoder.encode(values.copy(), codec, round_number=round_number, accepted_round=accepted_round)
    return decoded(encoded)


def in_one_go(*updates: Flat, first_round: int = 1) -> list[Flat]:
    """What arrives where every update is accepted at once."""
    encoder, arrived, accepted = UpdateEncoder(SIZE, STATE), [], 0
    for number, values in enumerate(updates, first_round):
        arrived.append(sent(encoder, values, number, accepted))
        accepted = number
    return arrived


def test_what_was_lost_of_an_accepted_update_is_added_to_the_next() -> None:
    first, second = update(1), update(2)
    encoder, feedback = UpdateEncoder(SIZE, STATE), ErrorFeedback(SIZE)
    arrived = sent(encoder, first, 1, 0)
    feedback.stage(1)[:] = (first - arrived)[:SIZE]
    feedback.commit()
    expected = second.copy()
    feedback.add_to(expected, 2)
    encoded = encoder.encode(second, "topk", round_number=2, accepted_round=1)
    np.testing.assert_array_equal(second, expected)
    np.testing.assert_array_equal(decoded(encoded)[SIZE:], expected[SIZE:])
    assert 0.5 < encoded.noise < 1.0


def test_an_update_that_was_not_accepted_leaves_no_residual() -> None:
    encoder = UpdateEncoder(SIZE, STATE)
    sent(encoder, update(1), 1, 0)
    (alone,) = in_one_go(update(2), first_round=2)
    np.testing.assert_array_equal(sent(encoder, update(2), 2, 0), alone)


def test_a_lost_acknowledgement_is_settled_by_the_next_order() -> None:
    """The coordinator accepted round 1, its reply was lost, and the node never heard of it but by the next order."""
    encoder = UpdateEncoder(SIZE, STATE)
    first, second = in_one_go(update(1), update(2))
    np.testing.assert_array_equal(sent(encoder, update(1), 1, 0), first)
    np.testing.assert_array_equal(sent(encoder, update(2), 2, 1), second)


def test_a_second_attempt_at_a_round_starts_from_the_residual_before_it() -> None:
    encoder = UpdateEncoder(SIZE, STATE)
    first, second, third = in_one_go(update(1), update(2), update(3))
    sent(encoder, update(1), 1, 0)
    sent(encoder, update(9), 2, 1)  # returned before it was sent
    np.testing.assert_array_equal(sent(encoder, update(2), 2, 1), second)
    np.testing.assert_array_equal(sent(encoder, update(3), 3, 2), third)
    assert not np.array_equal(first, second)


def test_a_trial_neither_uses_nor_changes_the_residual() -> None:
    encoder = UpdateEncoder(SIZE, STATE)
    sent(encoder, update(1), 1, 0)
    values = update(2)
    encoder.encode(values, "topk", round_number=2, accepted_round=1, trial=True)
    np.testing.assert_array_equal(values, update(2))
    after = update(3)
    encoder.encode(after, "topk", round_number=3, accepted_round=2)
    lost = (update(1) - in_one_go(update(1))[0])[:SIZE]
    np.testing.assert_allclose(after[:SIZE], update(3)[:SIZE] + np.float32(0.95**2) * lost, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("codec", ["none", "bf16", "int8"])
def test_codecs_without_feedback_keep_no_residual(codec: str) -> None:
    encoder = UpdateEncoder(SIZE, STATE)
    sent(encoder, update(1), 1, 0, codec)
    values = update(2)
    encoder.encode(values, codec, round_number=2, accepted_round=1)
    np.testing.assert_array_equal(values, update(2))


def test_a_residual_goes_out_whole_with_the_next_exact_update() -> None:
    encoder = UpdateEncoder(SIZE, STATE)
    first = sent(encoder, update(1), 1, 0, "topk")
    second = sent(encoder, update(2), 2, 1, "none")
    lost = (update(1) - first)[:SIZE]
    np.testing.assert_allclose(second[:SIZE], update(2)[:SIZE] + np.float32(0.95) * lost, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(sent(encoder, update(3), 3, 2, "none"), update(3))


def test_an_update_that_cannot_be_encoded_is_refused() -> None:
    encoder, values = UpdateEncoder(SIZE, STATE), update(1)
    with pytest.raises(UnknownName, match="codec 'zip'"):
        encoder.encode(values, "zip", round_number=1)
    values[7] = np.nan
    with pytest.raises(NonFiniteUpdate):
        encoder.encode(values, "int8", round_number=1)


@pytest.mark.parametrize("codecs", [("topk", "int8", "int4", "none"), ("int4", "topk", "bf16", "none")])
def test_a_change_of_the_codec_neither_loses_the_residual_nor_adds_it_twice(codecs: tuple[str, ...]) -> None:
    """Without decay, everything that was computed has arrived after an exact update."""
    encoder, arrived, exact = UpdateEncoder(SIZE, STATE), np.zeros(SIZE), np.zeros(SIZE)
    accepted = 0
    for number, codec in enumerate(codecs, 1):
        if encoder._feedback is not None:
            encoder._feedback._decay = 1.0
        values = update(number)
        exact += values[:SIZE]
        arrived += sent(encoder, values, number, accepted, codec)[:SIZE]
        accepted = number
    np.testing.assert_allclose(arrived, exact, rtol=1e-5, atol=1e-5)


def test_a_residual_survives_an_update_in_another_codec_that_was_not_accepted() -> None:
    encoder = UpdateEncoder(SIZE, STATE)
    first = sent(encoder, update(1), 1, 0, "topk")
    sent(encoder, update(2), 2, 1, "int8")  # late: round 2 closed without it
    third = sent(encoder, update(3), 3, 1, "none")
    lost = (update(1) - first)[:SIZE]
    np.testing.assert_allclose(third[:SIZE], update(3)[:SIZE] + np.float32(0.95**2) * lost, rtol=1e-5, atol=1e-5)
