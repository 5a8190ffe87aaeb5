"""The fast chunk codec against protobuf, byte for byte, and against garbage."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.errors import ConfigError, CorruptData, ProtocolError
from hypergpu.common.local_optimizer import PLAIN, LocalSettings
from hypergpu.common.step_times import StepTimes
from hypergpu.common.tensors import MAX_GAPS, Assembler, Chunk, Manifest, TensorSpec, checksum, chunks
from hypergpu.common.wire import (
    decode_update_part,
    decode_work_part,
    encode_part,
    local_settings_from_proto,
    local_settings_to_proto,
    manifest_from_proto,
    manifest_to_proto,
    require_sendable,
    step_times_from_proto,
    step_times_to_proto,
)
from hypergpu.protos import coordinator_pb2 as pb

MANIFEST = Manifest((TensorSpec("weight", (3, 4)), TensorSpec("bias", (4,)), TensorSpec("scale", ())))


def chunk_of(data: bytes, offset: int = 0) -> Chunk:
    return Chunk(offset, memoryview(data), checksum(data))


@given(data=st.binary(min_size=1, max_size=500), offset=st.integers(1, 2**62))
def test_writes_what_protobuf_writes(data: bytes, offset: int) -> None:
    chunk = chunk_of(data, offset)
    message = pb.WorkPart(chunk=pb.Chunk(offset=offset, data=data, crc32c=chunk.crc32c))
    expected = message.SerializeToString()
    if chunk.crc32c:
        assert encode_part(chunk) == expected
    assert decode_work_part(expected) == chunk


@given(data=st.binary(max_size=500), offset=st.integers(0, 2**62))
def test_protobuf_reads_what_is_written(data: bytes, offset: int) -> None:
    chunk = chunk_of(data, offset)
    message = pb.UpdatePart.FromString(encode_part(chunk))
    assert (message.chunk.offset, message.chunk.data, message.chunk.crc32c) == (offset, data, chunk.crc32c)
    assert decode_update_part(encode_part(chunk)) == chunk


@given(st.binary(max_size=60))
def test_garbage_is_a_typed_error_or_a_message(data: bytes) -> None:
    try:
        part = decode_update_part(data)
    except ProtocolError:
        return
    assert isinstance(part, pb.UpdatePart | Chunk)


def test_other_messages_go_through_protobuf() -> None:
    order = pb.WorkPart(order=pb.WorkOrder(batch_size=64, work=pb.WorkId(round=3)))
    assert decode_work_part(encode_part(order)) == order


def test_a_manifest_survives_the_wire() -> None:
    assert manifest_from_proto(manifest_to_proto(MANIFEST)) == MANIFEST
    assert MANIFEST.size == 17
    views = MANIFEST.views(np.arange(17, dtype=np.float32))
    assert views["weight"].shape == (3, 4)
    assert views["scale"] == 16


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("dtype", "float16", "float32"), ("total_bytes", 3, "take 68"), ("total_bytes", 1 << 60, "take 68")],
)
def test_a_manifest_that_does_not_hold_is_refused(field: str, value: object, message: str) -> None:
    broken = manifest_to_proto(MANIFEST)
    setattr(broken, field, value)
    with pytest.raises(ProtocolError, match=message):
        manifest_from_proto(broken)


def test_a_manifest_that_differs_names_the_tensors() -> None:
    other = Manifest((TensorSpec("weight", (4, 3)), TensorSpec("extra", (1,)), TensorSpec("scale", ())))
    with pytest.raises(
        ProtocolError, match=r"missing 'bias'; unexpected 'extra'; 'weight' has shape \(4, 3\), expected \(3, 4\)"
    ):
        MANIFEST.require_same(other)


@given(
    size=st.integers(0, 5000), chunk_bytes=st.integers(1, 300).map(lambda n: 4 * n), broken_at=st.integers(0, 20_000)
)
def test_a_broken_transfer_goes_on_where_it_stopped(size: int, chunk_bytes: int, broken_at: int) -> None:
    flat = np.random.default_rng(0).random(size, np.float32)
    assembler = Assembler(np.zeros(flat.nbytes, np.uint8))
    for chunk in chunks(flat, chunk_bytes=chunk_bytes):
        if chunk.offset > broken_at:
            break
        assembler.add(chunk)
    for chunk in chunks(flat, start=assembler.next_offset, chunk_bytes=chunk_bytes):
        assembler.add(chunk)
    assert assembler.complete
    assert np.array_equal(assembler.payload.view(np.float32), flat)


def test_the_assembler_refuses_what_does_not_fit() -> None:
    flat = np.ones(100, np.float32)
    first, second = chunks(flat, chunk_bytes=200)
    assembler = Assembler(np.zeros(400, np.uint8))
    assert assembler.add(second) == 200
    with pytest.raises(CorruptData, match="checksum"):
        assembler.add(Chunk(0, first.data, first.crc32c ^ 1))
    assert (assembler.next_offset, assembler.received, assembler.complete) == (0, 200, False)
    assert assembler.add(first) == 200
    assert assembler.add(first) == 0  # a replay changes nothing
    assert (assembler.next_offset, assembler.received, assembler.complete) == (400, 400, True)
    with pytest.raises(ProtocolError, match="ends at byte 600"):
        assembler.add(Chunk(400, first.data, first.crc32c))


@given(order=st.permutations(range(7)), overlap=st.integers(0, 30))
def test_chunks_arrive_in_any_order_and_may_overlap(order: list[int], overlap: int) -> None:
    payload = np.random.default_rng(0).integers(0, 256, 200, np.uint8)
    assembler, counted = Assembler(np.zeros(200, np.uint8)), 0
    for index in order:
        start, end = max(0, 30 * index - overlap), min(200, 30 * index + 30)
        data = payload[start:end].data
        counted += assembler.add(Chunk(start, data, checksum(data)))
        assert assembler.received == counted
    assert assembler.complete
    assert counted == 200
    assert np.array_equal(assembler.payload, payload)


def test_the_gaps_of_a_payload_are_bounded() -> None:
    assembler = Assembler(np.zeros(2 * MAX_GAPS + 10, np.uint8))
    byte = memoryview(b"x")
    for offset in range(1, 2 * MAX_GAPS - 1, 2):
        assembler.add(Chunk(offset, byte, checksum(byte)))
    missing = list(assembler.missing)
    assert len(missing) == MAX_GAPS
    with pytest.raises(ProtocolError, match="more than 1024 gaps"):
        assembler.add(Chunk(2 * MAX_GAPS + 3, byte, checksum(byte)))
    assert list(assembler.missing) == missing
    assert assembler.add(Chunk(2, byte, checksum(byte))) == 1


def test_a_model_that_cannot_be_sent_is_refused_before_the_run() -> None:
    manifest = Manifest((TensorSpec("weight", (10, 100)),))
    require_sendable(manifest, 4000)
    with pytest.raises(
        ConfigError, match=r"takes 4,000 bytes and server\.max_model_bytes is 3,999: raise that setting"
    ):
        require_sendable(manifest, 3999)
    with pytest.raises(ConfigError, match=r"has 100,001 tensors; at most 100,000 of rank 16"):
        require_sendable(Manifest((TensorSpec("x", ()),) * 100_001), 1 << 40)
    with pytest.raises(ConfigError, match="1 tensors; at most 100,000 of rank 16"):
        require_sendable(Manifest((TensorSpec("x", (1,) * 17),)), 1 << 40)
    with pytest.raises(
        ConfigError, match=r"the names and shapes of the model's 90,000 tensors take 9,\d{3},\d{3} bytes"
    ):
        require_sendable(Manifest((TensorSpec("x" * 100, ()),) * 90_000), 1 << 40)


def test_the_two_faults_of_a_size_are_told_apart() -> None:
    message = manifest_to_proto(Manifest((TensorSpec("weight", (10, 100)),)))
    assert manifest_from_proto(message, 4000).total_bytes == 4000
    with pytest.raises(ProtocolError, match="a model of 4000 bytes; at most 3999 are accepted"):
        manifest_from_proto(message, 3999)
    message.total_bytes = 4004
    with pytest.raises(ProtocolError, match="a manifest of 4004 bytes whose tensors take 4000"):
        manifest_from_proto(message)


@pytest.mark.parametrize(
    "settings",
    [PLAIN, LocalSettings(0.9, nesterov=True, weight_decay=0.0, clip_norm=1.5, proximal=0.1, keeps_state=True)],
)
def test_settings_of_local_steps_travel_unchanged(settings: LocalSettings) -> None:
    message = local_settings_to_proto(settings)
    assert local_settings_from_proto(pb.LocalSettings.FromString(message.SerializeToString())) == settings


@pytest.mark.parametrize(
    "fault", [{"momentum": 1.0}, {"momentum": float("nan")}, {"clip_norm": 0.0}, {"proximal": float("inf")}]
)
def test_settings_of_local_steps_that_cannot_be_are_refused(fault: dict[str, float]) -> None:
    with pytest.raises(ProtocolError, match="the settings of an order's local steps: a "):
        local_settings_from_proto(pb.LocalSettings(**fault))  # type: ignore[arg-type]


def test_step_times_travel_unchanged() -> None:
    times = StepTimes(0.01, 0.0001)
    assert step_times_from_proto(step_times_to_proto(times)) == times


@pytest.mark.parametrize("times", [(-1.0, 1.0), (0.0, 0.0), (math.nan, 1.0), (1.0, math.inf), (1e7, 1.0)])
def test_step_times_that_cannot_be_are_refused(times: tuple[float, float]) -> None:
    with pytest.raises(ProtocolError, match="step times must be"):
        step_times_from_proto(pb.StepTimes(seconds_per_step=times[0], seconds_per_sample=times[1]))
