"""Conversion between messages and our own types, and a fast path for chunks.

Protobuf copies a `bytes` field twice, which halves the speed of a stream of 1 MiB chunks. The functions here write and
read exactly the same bytes around a memoryview; every other message goes through protobuf.
"""

from base64 import b64encode
from typing import TypeVar

from google.protobuf.message import DecodeError

from hypergpu.common.codecs import CODECS, Codec, PayloadFormat
from hypergpu.common.data_report import MAX_CLASSES, DataReport
from hypergpu.common.errors import ConfigError, InvalidInput, ProtocolError, suggest
from hypergpu.common.identity import Numbers, TaskIdentity
from hypergpu.common.local_optimizer import LocalSettings
from hypergpu.common.node_terms import MAX_PRICE_PER_HOUR, PRIORITY_CLASSES, NodeTerms
from hypergpu.common.receipt import Receipt
from hypergpu.common.rpc import MAX_MESSAGE_BYTES
from hypergpu.common.step_times import StepTimes
from hypergpu.common.tensors import Chunk, Manifest, TensorSpec
from hypergpu.protos.coordinator_pb2 import ClassCount, Encoding, IdentityNumbers, UpdateHeader, UpdatePart, WorkPart
from hypergpu.protos.coordinator_pb2 import DataReport as DataReportMessage
from hypergpu.protos.coordinator_pb2 import LocalSettings as LocalSettingsMessage
from hypergpu.protos.coordinator_pb2 import Manifest as ManifestMessage
from hypergpu.protos.coordinator_pb2 import NodeTerms as NodeTermsMessage
from hypergpu.protos.coordinator_pb2 import StepTimes as StepTimesMessage
from hypergpu.protos.coordinator_pb2 import TaskIdentity as TaskIdentityMessage
from hypergpu.protos.coordinator_pb2 import TensorSpec as TensorSpecMessage

PartT = TypeVar("PartT", WorkPart, UpdatePart)
_MAX_TENSORS = 100_000
_MAX_RANK = 16
_MAX_SAMPLES = 1 << 40
_MAX_NUMBERS, _MAX_VALUES, _MAX_NAME = 1_000, 1_024, 1_000
_MESSAGE_SLACK_BYTES = 64 << 10
"""Room in a message for the fields besides the manifest."""
# Field tags: (number << 3) | wire type. `chunk` is field 2 of both WorkPart and UpdatePart.
_PART_CHUNK, _OFFSET, _DATA, _CRC32C = 0x12, 0x08, 0x12, 0x1D


def receipt_of(header: UpdateHeader, digest: str, ledger_size: int, ledger_root: bytes) -> Receipt:
    """Return the receipt of an update: what its header says, the SHA-256 of its payload, and the ledger as seen."""
    return Receipt(
        header.work.run_id,
        header.work.round,
        header.work.node_id,
        header.work.attempt,
        digest,
        header.samples,
        header.loss,
        header.loss_before,
        header.loss_after if header.HasField("loss_after") else None,
        ledger_size,
        b64encode(ledger_root).decode(),
    )


def manifest_to_proto(manifest: Manifest) -> ManifestMessage:
    """Return the message for a manifest."""
    tensors = [TensorSpecMessage(name=t.name, shape=t.shape) for t in manifest.tensors]
    return ManifestMessage(tensors=tensors, dtype="float32", total_bytes=manifest.total_bytes)


def manifest_from_proto(message: ManifestMessage, max_bytes: int = 1 << 40) -> Manifest:
    """Return the manifest of a message, checked.

    Raises:
        ProtocolError: an unknown dtype, too many tensors, or a size that does not add up or is over `max_bytes`.
    """
    if message.dtype != "float32":
        raise ProtocolError(f"dtype {message.dtype!r} is not supported; send float32")
    if len(message.tensors) > _MAX_TENSORS or any(len(t.shape) > _MAX_RANK for t in message.tensors):
        raise ProtocolError(f"a manifest has at most {_MAX_TENSORS} tensors of rank {_MAX_RANK}")
    manifest = Manifest(tuple(TensorSpec(t.name, tuple(t.shape)) for t in message.tensors))
    if manifest.total_bytes != message.total_bytes:
        raise ProtocolError(f"a manifest of {message.total_bytes} bytes whose tensors take {manifest.total_bytes}")
    if manifest.total_bytes > max_bytes:
        raise ProtocolError(f"a model of {manifest.total_bytes} bytes; at most {max_bytes} are accepted")
    return manifest


def encoding_to_proto(form: PayloadFormat) -> Encoding:
    """Return the message for the format of a payload."""
    return Encoding(codec=form.codec.name, version=form.codec.version, payload_bytes=form.payload_bytes)


def local_settings_to_proto(settings: LocalSettings) -> LocalSettingsMessage:
    """Return the message of the settings of local steps."""
    return LocalSettingsMessage(
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        proximal=settings.proximal,
        keeps_state=settings.keeps_state,
    )


def local_settings_from_proto(message: LocalSettingsMessage) -> LocalSettings:
    """Return the settings of local steps that a message holds.

    Raises:
        ProtocolError: a value is out of range.
    """
    try:
        return LocalSettings(
            momentum=message.momentum,
            nesterov=message.nesterov,
            weight_decay=message.weight_decay if message.HasField("weight_decay") else None,
            clip_norm=message.clip_norm if message.HasField("clip_norm") else None,
            proximal=message.proximal,
            keeps_state=message.keeps_state,
        )
    except InvalidInput as error:
        raise ProtocolError(f"the settings of an order's local steps: {error}") from error


def codec_from_proto(message: Encoding) -> Codec:
    """Return the codec that a message names.

    Raises:
        ProtocolError: an unknown codec, or another version of one.
    """
    name = message.codec
    codec = CODECS.get(name)
    if codec is None:
        raise ProtocolError(f"unknown codec {name[:40]!r}{suggest(name, CODECS)}")
    if message.version != codec.version:
        raise ProtocolError(
            f"version {message.version} of codec {name}; this side knows version {codec.version}: use the same release "
            "of hypergpu on both sides"
        )
    return codec


def require_payload_bytes(message: Encoding, form: PayloadFormat) -> None:
    """Check that a message announces a payload of the right size.

    Raises:
        ProtocolError: it does not.
    """
    if message.payload_bytes != form.payload_bytes:
        raise ProtocolError(
            f"a payload of {message.payload_bytes} bytes; codec {form.codec.name} has {form.payload_bytes} bytes for "
            "this model"
        )


def require_sendable(manifest: Manifest, max_model_bytes: int) -> None:
    """Check that every node can send and receive the model, before a run begins.

    Raises:
        ConfigError: the model exceeds `server.max_model_bytes`, or its manifest exceeds a message.
    """
    if manifest.total_bytes > max_model_bytes:
        raise ConfigError(
            f"the model takes {manifest.total_bytes:,} bytes and server.max_model_bytes is {max_model_bytes:,}: "
            "raise that setting, or train a smaller model"
        )
    if len(manifest.tensors) > _MAX_TENSORS or any(len(tensor.shape) > _MAX_RANK for tensor in manifest.tensors):
        raise ConfigError(
            f"the model has {len(manifest.tensors):,} tensors; at most {_MAX_TENSORS:,} of rank {_MAX_RANK} can be sent"
        )
    size, room = manifest_to_proto(manifest).ByteSize(), MAX_MESSAGE_BYTES - _MESSAGE_SLACK_BYTES
    if size > room:
        raise ConfigError(
            f"the names and shapes of the model's {len(manifest.tensors):,} tensors take {size:,} bytes; "
            f"at most {room:,} fit a message"
        )


def identity_to_proto(identity: TaskIdentity) -> TaskIdentityMessage:
    """Return the message for a task's identity."""
    return TaskIdentityMessage(
        train_samples=identity.train_samples,
        test_samples=identity.test_samples,
        train_digest=identity.train_digest,
        test_digest=identity.test_digest,
        model_digest=identity.model_digest,
        numbers=[IdentityNumbers(name=each.name, values=each.values) for each in identity.numbers],
    )


def data_report_to_proto(report: DataReport) -> DataReportMessage:
    """Return the message for what a node reports of its samples."""
    classes = [ClassCount(label=label, samples=samples) for label, samples in report.classes.items()]
    return DataReportMessage(samples=report.samples, classes=classes)


def data_report_from_proto(message: DataReportMessage) -> DataReport:
    """Return what a node reports of its samples, checked.

    Raises:
        ProtocolError: no samples, too many classes, or classes that do not add up to the samples.
    """
    if not 0 < message.samples <= _MAX_SAMPLES:
        raise ProtocolError(f"a node that holds {message.samples} samples; expected 1 to {_MAX_SAMPLES}")
    if len(message.classes) > MAX_CLASSES:
        raise ProtocolError(f"a report of {len(message.classes)} classes; {MAX_CLASSES} are allowed")
    classes = {each.label: each.samples for each in message.classes}
    if message.classes and (len(classes) < len(message.classes) or sum(classes.values()) != message.samples):
        raise ProtocolError(f"the classes of a report do not add up to its {message.samples} samples")
    return DataReport(message.samples, classes)


def terms_to_proto(terms: NodeTerms) -> NodeTermsMessage:
    """Return the message for the terms of a node."""
    return NodeTermsMessage(price_per_hour=terms.price_per_hour, priority=terms.priority)


def terms_from_proto(message: NodeTermsMessage) -> NodeTerms:
    """Return the terms of a node, checked.

    Raises:
        ProtocolError: the price is out of range, or there is no such priority class.
    """
    if not 0 <= message.price_per_hour <= MAX_PRICE_PER_HOUR:
        raise ProtocolError(f"a price of {message.price_per_hour} per hour; expected 0 to {MAX_PRICE_PER_HOUR:g}")
    for priority in PRIORITY_CLASSES:
        if priority == message.priority:
            return NodeTerms(message.price_per_hour, priority)
    raise ProtocolError(f"priority {message.priority[:40]!r}; expected {', '.join(PRIORITY_CLASSES)}")


def step_times_to_proto(times: StepTimes) -> StepTimesMessage:
    """Return the message for the step times of a node."""
    return StepTimesMessage(seconds_per_step=times.seconds_per_step, seconds_per_sample=times.seconds_per_sample)


def step_times_from_proto(message: StepTimesMessage) -> StepTimes:
    """Return the step times of a node, checked.

    Raises:
        ProtocolError: a time is out of range.
    """
    try:
        return StepTimes(message.seconds_per_step, message.seconds_per_sample)
    except InvalidInput as error:
        raise ProtocolError(str(error)) from error


def identity_from_proto(message: TaskIdentityMessage) -> TaskIdentity:
    """Return the task identity of a message, checked.

    Raises:
        ProtocolError: too many names or numbers, or a text that is too long.
    """
    texts = [message.train_digest, message.test_digest, message.model_digest, *(each.name for each in message.numbers)]
    too_many = len(message.numbers) > _MAX_NUMBERS or any(len(each.values) > _MAX_VALUES for each in message.numbers)
    if too_many or any(len(text) > _MAX_NAME for text in texts):
        raise ProtocolError(
            f"a task identity has at most {_MAX_NUMBERS} names of {_MAX_NAME} characters with {_MAX_VALUES} numbers"
        )
    return TaskIdentity(
        message.train_samples,
        message.test_samples,
        message.train_digest,
        message.test_digest,
        message.model_digest,
        tuple(Numbers(each.name, tuple(each.values)) for each in message.numbers),
    )


def encode_part(part: WorkPart | UpdatePart | Chunk) -> bytes:
    """Serialise a reply of PullWork or a request of PushUpdate."""
    if not isinstance(part, Chunk):
        return part.SerializeToString()
    offset = _varint(part.offset)
    length = _varint(len(part.data))
    inner = 1 + len(offset) + 1 + len(length) + len(part.data) + 5
    return b"".join(
        (
            bytes((_PART_CHUNK,)),
            _varint(inner),
            bytes((_OFFSET,)),
            offset,
            bytes((_DATA,)),
            length,
            part.data,
            bytes((_CRC32C,)),
            part.crc32c.to_bytes(4, "little"),
        )
    )


def decode_work_part(data: bytes) -> WorkPart | Chunk:
    """Deserialise a reply of PullWork.

    Raises:
        ProtocolError: not a WorkPart.
    """
    return _decode_chunk(data) or _decode_message(data, WorkPart())


def decode_update_part(data: bytes) -> UpdatePart | Chunk:
    """Deserialise a request of PushUpdate.

    Raises:
        ProtocolError: not an UpdatePart.
    """
    return _decode_chunk(data) or _decode_message(data, UpdatePart())


def _decode_message(data: bytes, part: PartT) -> PartT | Chunk:
    try:
        part.ParseFromString(data)
    except DecodeError as error:
        raise ProtocolError("the message is malformed or of another call") from error
    if part.WhichOneof("part") == "chunk":  # from a sender that orders its fields differently
        return Chunk(part.chunk.offset, memoryview(part.chunk.data), part.chunk.crc32c)
    return part


def _decode_chunk(data: bytes) -> Chunk | None:
    """Parse the layout that `encode_part` writes; None for any other, which protobuf parses."""
    try:
        if data[0] != _PART_CHUNK:
            return None
        inner, at = _read_varint(data, 1)
        if at + inner != len(data):
            return None
        offset = 0
        if data[at] == _OFFSET:  # protobuf's own writers omit a zero
            offset, at = _read_varint(data, at + 1)
        if data[at] != _DATA:
            return None
        length, at = _read_varint(data, at + 1)
        end = at + length
        if end + 5 != len(data) or data[end] != _CRC32C:
            return None
        return Chunk(offset, memoryview(data)[at:end], int.from_bytes(data[end + 1 :], "little"))
    except IndexError:
        return None


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError("a varint of more than 64 bits")
