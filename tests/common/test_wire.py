"""The fast chunk codec against protobuf, byte for byte, and against garbage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import CorruptData, ProtocolError
from common.tensors import Assembler, Chunk, Manifest, TensorSpec, checksum, chunks
from common.wire import (
    decode_update_part,
    decode_work_part,
    encode_part,
    manifest_from_proto,
    manifest_to_proto,
)
from protos import coordinator_pb2 as pb

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
    with pytest.raises(ProtocolError, match=r"missing 'bias'; unexpected 'extra'; 'weight' is \(4, 3\)"):
        MANIFEST.require_same(other)


@given(
    size=st.integers(0, 5000), chunk_bytes=st.integers(1, 300).map(lambda n: 4 * n), broken_at=st.integers(0, 20_000)
)
def test_a_broken_transfer_goes_on_where_it_stopped(size: int, chunk_bytes: int, broken_at: int) -> None:
    flat = np.random.default_rng(0).random(size, np.float32)
    assembler = Assembler(flat.nbytes)
    for chunk in chunks(flat, chunk_bytes=chunk_bytes):
        if chunk.offset > broken_at:
            break
        assembler.add(chunk)
    for chunk in chunks(flat, start=assembler.next_offset, chunk_bytes=chunk_bytes):
        assembler.add(chunk)
    assert assembler.complete
    assert np.array_equal(assembler.flat, flat)


def test_the_assembler_refuses_what_does_not_fit() -> None:
    flat = np.ones(100, np.float32)
    first, second = chunks(flat, chunk_bytes=200)
    assembler = Assembler(400)
    with pytest.raises(ProtocolError, match="byte 0 comes next"):
        assembler.add(second)
    with pytest.raises(CorruptData, match="checksum"):
        assembler.add(Chunk(0, first.data, first.crc32c ^ 1))
    assert assembler.next_offset == 0
    assembler.add(first)
    assembler.add(first)  # a replay changes nothing
    assert assembler.next_offset == 200
    with pytest.raises(ProtocolError, match="ends at byte 600"):
        assembler.add(Chunk(400, first.data, first.crc32c))
    with pytest.raises(ProtocolError, match="whole float32"):
        Assembler(3)
