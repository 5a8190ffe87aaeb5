"""Byte layout of each codec, its error, and what its decoder refuses."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.codecs import BLOCK_VALUES, CODECS, Codec, PayloadFormat, find_codec
from hypergpu.common.errors import NonFiniteUpdate, ProtocolError, UnknownName
from hypergpu.common.tensors import Flat
from tests.examples import examples

NAMES = st.sampled_from(sorted(CODECS))
LOSSY = sorted(set(CODECS) - {"none"})
SIZES = st.sampled_from(
    [1, 2, 3, 5, 63, 64, 65, 129, BLOCK_VALUES - 1, BLOCK_VALUES, BLOCK_VALUES + 1, 18 * BLOCK_VALUES + 7]
)
LARGEST = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).tiny)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def coded(name: str, values: Flat) -> Flat:
    """Values after a way through a codec."""
    form = PayloadFormat(find_codec(name), len(values))
    payload, _ = form.encode(values)
    assert len(payload) == form.payload_bytes
    out = np.full(len(values), np.nan, np.float32)
    form.decode(payload, out)
    return out


def drawn(size: int, seed: int, exponents: float = 3.0) -> Flat:
    """Values of many magnitudes, some of them 0."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(size) * np.exp(exponents * rng.standard_normal(size))
    return np.where(rng.random(size) < 0.05, 0.0, values).astype(np.float32)


def blocks_of(values: Flat) -> list[Flat]:
    return [values[start : start + BLOCK_VALUES] for start in range(0, len(values), BLOCK_VALUES)]


def bytes_of(name: str, *values: float) -> bytes:
    payload, _ = PayloadFormat(find_codec(name), len(values)).encode(np.array(values, np.float32))
    return payload.tobytes()


# ---------------------------------------------------------------- layout


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("none", (4, 8, 16384, 16388)),
        ("bf16", (2, 4, 8192, 8194)),
        ("int8", (5, 6, 4100, 4105)),
        ("int4", (5, 5, 2052, 2057)),
        ("topk", (8 + 2 + 1, 8 + 2 + 1, 8 + 96 + 16, 8 + 96 + 16 + 11)),
    ],
)
def test_the_size_of_a_payload_follows_from_the_number_of_values(name: str, sizes: tuple[int, ...]) -> None:
    codec = find_codec(name)
    assert codec.encoded_bytes(0) == 0
    assert tuple(codec.encoded_bytes(count) for count in (1, 2, BLOCK_VALUES, BLOCK_VALUES + 1)) == sizes


def test_the_bytes_of_float32_are_those_of_the_buffer() -> None:
    assert bytes_of("none", 1.0, -2.0) == bytes.fromhex("0000803f 000000c0")


def test_the_bytes_of_bf16_are_the_upper_halves_rounded_to_even() -> None:
    # 1 + 2⁻⁸ lies between 1 and 1 + 2⁻⁷, 1 + 3·2⁻⁸ between 1 + 2⁻⁷ and 1 + 2⁻⁶.
    assert bytes_of("bf16", 1.0, 1 + 2**-8, 1 + 3 * 2**-8, -1.75) == bytes.fromhex("803f 803f 823f e0bf")


def test_the_bytes_of_int8_are_a_scale_and_multiples_of_it() -> None:
    assert bytes_of("int8", 254.0, -254.0, 1.0, 3.0, 0.0) == bytes.fromhex("00000040 7f 81 00 02 00")


def test_the_bytes_of_int4_are_a_scale_and_two_multiples_in_a_byte() -> None:
    # The low halves are the first ⌈n/2⌉ values.
    assert bytes_of("int4", 7.0, -7.0, 1.0, -1.0, 3.0) == bytes.fromhex("0000803f f7 39 01")


def test_the_bytes_of_topk_are_two_levels_then_indices_then_codes() -> None:
    values = np.zeros(130, np.float32)  # of which 3 are kept
    values[[0x05, 0x42, 0x81]] = 2.0, -8.0, 4.0
    low, high = "00004040", "00000041"  # 3 and 8
    assert bytes_of("topk", *values) == bytes.fromhex(f"{low} {high} 0520 04 8100 0c")


def test_indices_have_12_bits_each() -> None:
    values = np.zeros(BLOCK_VALUES, np.float32)
    values[-64:] = 1.0
    stored = bytes_of("topk", *values)
    assert stored[8:11] == bytes.fromhex("c01ffc")  # 0xfc0 and 0xfc1
    assert stored[101:104] == bytes.fromhex("feffff")  # 0xffe and 0xfff


def test_an_unknown_codec_is_named_with_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="unknown codec 'int9'; did you mean 'int8'"):
        find_codec("int9")


def test_versions_of_layouts() -> None:
    assert {name: codec.version for name, codec in CODECS.items()} == dict.fromkeys(CODECS, 1)
    assert {name for name, codec in CODECS.items() if codec.needs_feedback} == {"int4", "topk"}
    assert {name for name, codec in CODECS.items() if codec.is_exact} == {"none"}


# ---------------------------------------------------------------- errors


@examples(40)
@given(SIZES, st.integers(0, 2**32))
def test_float32_is_exact(size: int, seed: int) -> None:
    values = drawn(size, seed)
    np.testing.assert_array_equal(coded("none", values), values)


@examples(60)
@given(SIZES, st.integers(0, 2**32))
def test_the_relative_error_of_bf16_is_at_most_a_256th(size: int, seed: int) -> None:
    values = drawn(size, seed, exponents=20.0)
    normal = np.abs(values) >= TINY
    error = np.abs(coded("bf16", values).astype(np.float64) - values)
    assert (error[normal] <= np.abs(values[normal].astype(np.float64)) * 2**-8).all()
    assert (error[~normal] <= 2.0**-134).all()


def test_bf16_agrees_with_torch() -> None:
    torch = pytest.importorskip("torch")
    values = drawn(100_000, 3, exponents=10.0)
    expected = torch.tensor(values).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(coded("bf16", values), expected)


@examples(60)
@given(st.sampled_from([("int8", 127), ("int4", 7)]), SIZES, st.integers(0, 2**32), st.floats(-38, 38))
def test_the_error_of_integers_is_at_most_half_their_scale(
    kind: tuple[str, int], size: int, seed: int, power: float
) -> None:
    name, limit = kind
    with np.errstate(over="ignore", under="ignore"):
        values = np.clip(drawn(size, seed) * np.float32(10.0**power), -LARGEST, LARGEST).astype(np.float32)
    for block, back in zip(blocks_of(values), blocks_of(coded(name, values)), strict=True):
        largest = float(np.abs(block).max())
        bound = max(largest / (2 * limit) * (1 + 2**-12), TINY / 2)
        assert np.abs(back.astype(np.float64) - block).max() <= bound


@examples(60)
@given(SIZES, st.integers(0, 2**32))
def test_topk_keeps_the_largest_values_of_each_block(size: int, seed: int) -> None:
    values = drawn(size, seed)
    for block, back in zip(blocks_of(values), blocks_of(coded("topk", values)), strict=True):
        kept, count = np.flatnonzero(back), -(-len(block) // 64)
        magnitudes = np.abs(block)
        largest = np.sort(magnitudes)[-count:]
        np.testing.assert_array_equal(np.sort(magnitudes[kept]), largest[largest > 0][-len(kept) :])
        assert len(kept) == np.count_nonzero(largest)
        np.testing.assert_array_equal(np.sign(back[kept]), np.sign(block[kept]))
        levels = np.unique(np.abs(back[kept]))
        assert len(levels) <= 2
        assert np.abs(back[kept]).sum() == pytest.approx(magnitudes[kept].sum(), rel=1e-4)


def test_the_levels_of_topk_have_the_least_squared_error() -> None:
    values = np.zeros(4 * 64, np.float32)
    values[:4] = 1.0, 2.0, -9.0, 10.0
    np.testing.assert_array_equal(coded("topk", values)[:5], [1.5, 1.5, -9.5, 9.5, 0.0])


def test_the_first_of_equal_magnitudes_are_kept() -> None:
    values = np.full(2 * 64, 3.0, np.float32)
    values[100] = -5.0
    np.testing.assert_array_equal(np.flatnonzero(coded("topk", values)), [0, 100])


@examples(80)
@given(st.lists(FINITE, min_size=1, max_size=200), NAMES)
def test_any_finite_values_survive(numbers: list[float], name: str) -> None:
    values = np.array(numbers, np.float32)
    back = coded(name, values)
    assert np.isfinite(back).all()
    largest = float(np.abs(values).max())
    assert float(np.abs(back).max()) <= largest * (1 + 2**-7) + TINY


@pytest.mark.parametrize("name", ["bf16", "int8", "int4", "topk"])
def test_the_largest_numbers_stay_finite(name: str) -> None:
    back = coded(name, np.full(BLOCK_VALUES + 100, LARGEST, np.float32))
    kept = back[back != 0]
    assert (kept >= LARGEST * (1 - 2**-7)).all()
    assert np.isfinite(kept).all()


@examples(80)
@given(st.sampled_from(["none", "bf16", "int8", "int4"]), SIZES, st.integers(0, 2**32))
def test_coding_again_gives_the_same_bytes(name: str, size: int, seed: int) -> None:
    form = PayloadFormat(find_codec(name), size)
    once = coded(name, drawn(size, seed))
    payload, noise = form.encode(once)
    twice = coded(name, once)
    np.testing.assert_array_equal(twice, once)
    assert noise == 0.0
    np.testing.assert_array_equal(form.encode(twice)[0], payload)


@examples(40)
@given(SIZES, st.integers(0, 2**32))
def test_coding_again_by_topk_gives_the_same_values(size: int, seed: int) -> None:
    once = coded("topk", drawn(size, seed))
    np.testing.assert_allclose(coded("topk", once), once, rtol=2**-22)


@examples(20)
@given(NAMES, SIZES, st.sampled_from([np.nan, np.inf, -np.inf]), st.floats(0, 1, exclude_max=True))
def test_values_that_are_not_finite_are_refused(name: str, size: int, bad: float, where: float) -> None:
    values = drawn(size, 1)
    values[int(where * size)] = bad
    with pytest.raises(NonFiniteUpdate, match="NaN or infinity"):
        PayloadFormat(find_codec(name), size).encode(values)


# ---------------------------------------------------------------- hostile payloads


@examples(150)
@given(st.sampled_from(LOSSY), st.sampled_from([1, 2, 64, 65, 200]), st.randoms(use_true_random=False))
def test_arbitrary_bytes_are_refused_or_decoded_within_bounds(name: str, size: int, random: object) -> None:
    form = PayloadFormat(find_codec(name), size)
    payload = np.frombuffer(random.randbytes(form.payload_bytes), np.uint8)  # type: ignore[attr-defined]
    surroundings = np.full(size + 2, 7.0, np.float32)
    try:
        form.decode(payload, surroundings[1:-1])
    except ProtocolError as error:
        assert name in str(error)
    else:
        assert name == "bf16" or np.isfinite(surroundings).all()
    assert surroundings[0] == surroundings[-1] == 7.0


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -1.0, 0.0, TINY / 2, LARGEST])
def test_a_scale_out_of_range_is_refused(name: str, scale: float) -> None:
    form = PayloadFormat(find_codec(name), BLOCK_VALUES + 1)
    payload, _ = form.encode(drawn(form.size, 1))
    at = find_codec(name).block_bytes(BLOCK_VALUES)
    payload[at : at + 4] = np.frombuffer(np.float32(scale).tobytes(), np.uint8)
    with pytest.raises(ProtocolError, match=f"codec {name} has a block with a scale that is out of range"):
        form.decode(payload, np.empty(form.size, np.float32))


@pytest.mark.parametrize(("name", "limit"), [("int8", 127), ("int4", 7)])
def test_the_largest_scale_times_the_largest_integer_is_finite(name: str, limit: int) -> None:
    form = PayloadFormat(find_codec(name), 1)
    payload, _ = form.encode(np.array([LARGEST], np.float32))
    scale = payload[:4].view(np.float32)[0]
    out = np.empty(1, np.float32)
    form.decode(payload, out)
    assert np.isfinite(out[0])
    assert out[0] == np.float64(scale) * limit


@pytest.mark.parametrize(("name", "at", "byte"), [("int8", 5, 0x80), ("int4", 4, 0x08), ("int4", 4, 0x80)])
def test_an_integer_out_of_range_is_refused(name: str, at: int, byte: int) -> None:
    form = PayloadFormat(find_codec(name), 3)
    payload, _ = form.encode(np.array([1.0, 2.0, 3.0], np.float32))
    payload[at] = byte
    with pytest.raises(ProtocolError, match="an integer that is out of range"):
        form.decode(payload, np.empty(3, np.float32))


def topk_payload(low: float, high: float, first: int, second: int) -> npt.NDArray[np.uint8]:
    """Two kept values of 100."""
    indices = (first | second << 12).to_bytes(3, "little")
    return np.frombuffer(np.array([low, high], np.float32).tobytes() + indices + b"\0", np.uint8)


@pytest.mark.parametrize(
    ("low", "high", "first", "second", "fault"),
    [
        (np.nan, 1.0, 0, 1, "a level"),
        (0.0, np.nan, 0, 1, "a level"),
        (0.0, np.inf, 0, 1, "a level"),
        (-1.0, 1.0, 0, 1, "a level"),
        (2.0, 1.0, 0, 1, "a level"),
        (1.0, 1.0, 0, 100, "an index that is out of range"),
        (1.0, 1.0, 4095, 99, "indices that do not increase"),
        (1.0, 1.0, 5, 5, "indices that do not increase"),
        (1.0, 1.0, 6, 5, "indices that do not increase"),
    ],
)
def test_what_topk_refuses(low: float, high: float, first: int, second: int, fault: str) -> None:
    form = PayloadFormat(find_codec("topk"), 100)
    out = np.full(100, 7.0, np.float32)
    with pytest.raises(ProtocolError, match=fault):
        form.decode(topk_payload(low, high, first, second), out)
    form.decode(topk_payload(0.0, 3.0, 98, 99), out)
    assert not out.any()


def test_every_codec_says_what_it_is() -> None:
    for name, codec in CODECS.items():
        assert isinstance(codec, Codec)
        assert codec.name == name
