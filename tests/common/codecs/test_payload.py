"""Payloads of whole models: exact state, noise, and decoding while the bytes arrive."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.codecs import BLOCK_VALUES, CODECS, PayloadFormat, PayloadReader, find_codec
from hypergpu.common.errors import ProtocolError
from hypergpu.common.tensors import Flat
from tests.examples import examples

NAMES = st.sampled_from(sorted(CODECS))
LOSSY = sorted(set(CODECS) - {"none"})


def drawn(size: int, seed: int = 0) -> Flat:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def decoded(form: PayloadFormat, values: Flat) -> Flat:
    out = np.empty(form.size, np.float32)
    form.decode(form.encode(values)[0].copy(), out)
    return out


@pytest.mark.parametrize("name", sorted(CODECS))
@pytest.mark.parametrize("parameters", [0, 1, 3, BLOCK_VALUES, 20 * BLOCK_VALUES + 5])
@pytest.mark.parametrize("state", [0, 1, 2 * BLOCK_VALUES + 9])
def test_state_is_exact(name: str, parameters: int, state: int) -> None:
    form = PayloadFormat(find_codec(name), parameters, state)
    values = drawn(form.size)
    assert form.payload_bytes == find_codec(name).encoded_bytes(parameters) + 4 * state
    back = decoded(form, values)
    np.testing.assert_array_equal(back[parameters:], values[parameters:])
    alone = decoded(PayloadFormat(find_codec(name), parameters), values[:parameters])
    np.testing.assert_array_equal(back[:parameters], alone)


@pytest.mark.parametrize("name", LOSSY)
def test_the_noise_is_what_the_definition_says(name: str) -> None:
    form = PayloadFormat(find_codec(name), 40 * BLOCK_VALUES + 77, 100)
    values, error = drawn(form.size), np.full(form.parameters, np.nan, np.float32)
    payload, noise = form.encode(values, error=error)
    out = np.empty(form.size, np.float32)
    form.decode(payload, out)
    lost = values.astype(np.float64) - out
    assert noise == pytest.approx((lost**2).sum() / (values.astype(np.float64) ** 2).sum(), rel=1e-4)
    np.testing.assert_array_equal(error, (values - out)[: form.parameters])


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("bf16", 2e-6, 4e-6), ("int8", 6e-5, 9e-5), ("int4", 0.02, 0.03), ("topk", 0.86, 0.9)],
)
def test_the_noise_of_gaussian_values(name: str, least: float, most: float) -> None:
    values = drawn(100 * BLOCK_VALUES)
    assert least < PayloadFormat(find_codec(name), len(values)).encode(values)[1] < most


@examples(40)
@given(NAMES, st.integers(0, 2**32), st.floats(0, 20))
def test_noise_is_a_share(name: str, seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(3000) * np.exp(spread * rng.standard_normal(3000))).astype(np.float32)
    assert 0.0 <= PayloadFormat(find_codec(name), 3000).encode(values)[1] <= 1.0


@pytest.mark.parametrize("name", sorted(CODECS))
def test_zeros_have_no_noise(name: str) -> None:
    form = PayloadFormat(find_codec(name), BLOCK_VALUES + 3)
    values = np.zeros(form.size, np.float32)
    assert form.encode(values)[1] == 0.0
    assert not decoded(form, values).any()


@examples(60)
@given(NAMES, st.integers(1, 40 * BLOCK_VALUES), st.integers(0, 5000), st.lists(st.floats(0, 1), max_size=8))
def test_any_chunking_gives_the_same_values(name: str, parameters: int, state: int, cuts: list[float]) -> None:
    form = PayloadFormat(find_codec(name), parameters, state)
    payload = form.encode(drawn(form.size))[0]
    whole, parts = np.empty(form.size, np.float32), np.full(form.size, np.nan, np.float32)
    form.decode(payload, whole)
    arriving = np.full(form.payload_bytes, 0xFF, np.uint8)  # which no codec but bf16 and none decodes
    reader, next_value = PayloadReader(form, arriving), 0
    for received in [*sorted(int(cut * form.payload_bytes) for cut in cuts), form.payload_bytes]:
        arriving[:received] = payload[:received]
        for start, part in reader.read(received):
            assert start == next_value
            parts[start : start + len(part)] = part
            next_value += len(part)
    np.testing.assert_array_equal(parts, whole)
    assert next_value == form.size
    assert list(reader.read()) == []


def test_decoding_takes_a_constant_amount_of_memory() -> None:
    form = PayloadFormat(find_codec("int8"), 100 * BLOCK_VALUES)
    pieces = list(PayloadReader(form, form.encode(drawn(form.size))[0]).read())
    assert max(len(part) for _, part in pieces) == 16 * BLOCK_VALUES
    assert len({part.__array_interface__["data"][0] for _, part in pieces}) == 1


@pytest.mark.parametrize("name", sorted(CODECS))
@pytest.mark.parametrize("difference", [-1, 1])
def test_a_payload_of_another_length_is_refused(name: str, difference: int) -> None:
    form = PayloadFormat(find_codec(name), 5000)
    with pytest.raises(ProtocolError, match=f"codec {name} has {form.payload_bytes} for this model"):
        PayloadReader(form, np.zeros(form.payload_bytes + difference, np.uint8))


def test_an_exact_payload_is_the_buffer_itself() -> None:
    values, error = drawn(5000), np.full(4000, np.nan, np.float32)
    payload, noise = PayloadFormat(find_codec("none"), 4000, 1000).encode(values, error=error)
    assert np.shares_memory(payload, values)
    assert noise == 0.0
    assert not error.any()


def test_a_payload_is_written_to_the_buffer_that_is_given() -> None:
    form = PayloadFormat(find_codec("int8"), 5000)
    out = np.empty(form.payload_bytes, np.uint8)
    payload, _ = form.encode(drawn(5000), out)
    assert payload is out


def test_buffers_of_another_shape_are_refused() -> None:
    form = PayloadFormat(find_codec("int8"), 10)
    values, payload = drawn(10), np.empty(form.payload_bytes, np.uint8)
    with pytest.raises(ValueError, match="was given"):
        form.encode(drawn(11))
    with pytest.raises(ValueError, match="was given"):
        form.encode(values, error=drawn(11))
    with pytest.raises(ValueError, match="for a buffer of"):
        form.encode(values, payload[:-1])
    with pytest.raises(ValueError, match="for a buffer of"):
        form.encode(values, np.empty(2 * form.payload_bytes, np.uint8)[::2])
    with pytest.raises(ValueError, match="for a buffer of"):
        form.decode(payload, drawn(11))
