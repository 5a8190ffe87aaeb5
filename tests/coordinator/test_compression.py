"""Updates in the ordered codec over real gRPC: decoded into the mean, or refused with a reason."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from hypergpu.common.codecs import PayloadFormat, find_codec
from hypergpu.common.config import TrainingConfig
from hypergpu.common.tensors import Chunk, Flat, Manifest, Payload, TensorSpec, chunks
from hypergpu.common.wire import decode_work_part
from hypergpu.coordinator.broadcast import Broadcast
from hypergpu.coordinator.core.adaptation.codecs import control as codec_control
from hypergpu.coordinator.core.model.fragment_sendings import Held, OutgoingModel
from hypergpu.coordinator.core.model.global_model import GlobalModel
from hypergpu.coordinator.core.model.outgoing import Sending
from hypergpu.protos import coordinator_pb2 as pb
from tests.coordinator.test_services import FakeNode, Order, Running, code_of, running

VALUES = np.array([1.0, -2.0, 3.0, 0.5, -0.25, 0.125, 4.0, -8.0], np.float32)


def form(codec: str) -> PayloadFormat:
    return PayloadFormat(find_codec(codec), len(VALUES))


def decoded(codec: str, payload: Payload) -> Flat:
    out = np.empty(len(VALUES), np.float32)
    form(codec).decode(payload, out)
    return out


@asynccontextmanager
async def a_node(out: Path, codec: str, rounds: int = 2) -> AsyncIterator[tuple[Running, FakeNode, Order]]:
    compression = {"strategy": "fixed", "update_codec": codec}
    async with running(out, training={"rounds": rounds}, compression=compression) as run:
        node = run.node("a")
        await node.register()
        yield run, node, await node.work()


async def push(node: FakeNode, order: Order, payload: Payload, **fields: Any) -> pb.PushUpdateReply.Outcome:
    reply = await node.push_parts([node.header(order.order, **fields), *chunks(payload)])
    return reply.outcome


@pytest.mark.parametrize("codec", ["none", "bf16", "int8", "int4", "topk"])
async def test_an_update_enters_the_mean_as_decoded(tmp_path: Path, codec: str) -> None:
    async with a_node(tmp_path, codec) as (run, node, order):
        assert order.order.update == pb.Encoding(codec=codec, version=1, payload_bytes=form(codec).payload_bytes)
        assert order.order.accepted_round == 0
        payload, noise = form(codec).encode(VALUES)
        assert await push(node, order, payload, noise=noise) == pb.PushUpdateReply.ACCEPTED
        second = await node.work()
        np.testing.assert_allclose(second.parameters, order.parameters + decoded(codec, payload), rtol=1e-6)
        assert second.order.accepted_round == 1
        received = f"hypergpu_update_received_bytes_total {float(form(codec).payload_bytes)}"
        assert received in run.get("/metrics")


async def test_a_broken_upload_of_a_payload_goes_on_where_it_stopped(tmp_path: Path) -> None:
    async with a_node(tmp_path, "int8") as (_, node, order):
        payload, _ = form("int8").encode(VALUES)
        parts = list(chunks(payload, chunk_bytes=5))
        reply = await node.push_parts([node.header(order.order), *parts[:1]])
        assert (reply.outcome, reply.next_offset) == (pb.PushUpdateReply.INCOMPLETE, 5)
        assert reply.detail == "5 of 12 bytes are here"
        progress = await node.stub.GetUploadProgress(order.order.work, metadata=node.metadata)
        assert (progress.next_offset, progress.accepted) == (5, False)
        reply = await node.push_parts([node.header(order.order), *parts[1:]])
        assert reply.outcome == pb.PushUpdateReply.ACCEPTED


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"encoding": pb.Encoding(codec="int9", version=1, payload_bytes=12)}, "unknown codec 'int9'; did you mean"),
        ({"encoding": pb.Encoding()}, "unknown codec ''"),
        ({"encoding": pb.Encoding(codec="int8", version=2, payload_bytes=12)}, "version 2 of codec int8; this side"),
        ({"encoding": pb.Encoding(codec="bf16", version=1, payload_bytes=16)}, "in codec bf16; the order says int8"),
        ({"encoding": pb.Encoding(codec="int8", version=1, payload_bytes=13)}, "13 bytes; codec int8 has 12"),
        ({"noise": float("nan")}, "the noise of a codec is nan"),
        ({"noise": -0.1}, "the noise of a codec is -0.1"),
        ({"noise": 1.01}, "the noise of a codec is 1.01"),
        ({"optimizer_share": float("nan")}, "the share of the optimizer is nan"),
        ({"optimizer_share": -0.1}, "the share of the optimizer is -0.1"),
        ({"optimizer_share": 1.01}, "the share of the optimizer is 1.01"),
    ],
)
async def test_a_header_that_is_not_as_ordered_is_refused(tmp_path: Path, fields: Any, reason: str) -> None:
    async with a_node(tmp_path, "int8") as (_, node, order):
        payload, _ = form("int8").encode(VALUES)
        code, detail = await code_of(push(node, order, payload, **fields))
        assert code is grpc.StatusCode.ABORTED
        assert reason in detail
        assert await push(node, order, payload) == pb.PushUpdateReply.ACCEPTED


async def test_a_hostile_payload_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    async with a_node(tmp_path, "int8") as (run, node, order):
        payload, _ = form("int8").encode(VALUES)
        hostile = payload.copy()
        hostile[:4] = np.frombuffer(np.float32("nan").tobytes(), np.uint8)
        _, detail = await code_of(push(node, order, hostile))
        assert "codec int8 has a block with a scale that is out of range" in detail
        uploads = run.coordinator.engine.uploads
        assert len(uploads._free) == 1
        again = await node.work()
        assert again.order.work.attempt == 2
        assert await push(node, again, payload) == pb.PushUpdateReply.ACCEPTED
        second = await node.work()
        np.testing.assert_allclose(second.parameters, order.parameters + decoded("int8", payload), rtol=1e-6)


# ---------------------------------------------------------------- parameters


async def test_parameters_are_sent_in_their_codec_and_encoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    real = PayloadFormat.encode

    def encode(self: PayloadFormat, *arguments: Any) -> Any:
        encoded.append(self.codec.name)
        return real(self, *arguments)

    monkeypatch.setattr(PayloadFormat, "encode", encode)
    compression = {"strategy": "fixed", "parameters_codec": "bf16"}
    async with running(tmp_path, training={"min_nodes": 3}, compression=compression) as run:
        nodes = [run.node(name) for name in "abc"]
        for node in nodes:
            await node.register()
        orders = await asyncio.gather(*(node.work() for node in nodes))
        values = run.coordinator.engine.model.values
        for order in orders:
            assert (order.order.parameters.codec, order.order.parameters.payload_bytes) == ("bf16", 16)
            np.testing.assert_allclose(order.parameters, values, rtol=2**-8)
        assert encoded == ["bf16"]
        assert metric(run, "hypergpu_parameters_sent_bytes_total") == f"{3.0 * (16 + 11)}"  # with the fields of a chunk


def metric(run: Running, name: str) -> str:
    return next(line.split()[1] for line in run.get("/metrics").splitlines() if line.startswith(f"{name} "))


def sent(order: Order) -> tuple[str, int, int]:
    message = order.order
    return message.parameters.codec, message.parameters_version, message.base_version


async def test_a_node_that_names_its_version_receives_the_difference(tmp_path: Path) -> None:
    compression = {"strategy": "fixed", "parameters_codec": "int8"}
    async with running(tmp_path, training={"rounds": 4}, compression=compression) as run:
        node = run.node("a")
        await node.register()
        first = await node.work()
        assert sent(first) == ("bf16", 1, 0)
        assert await node.push(first, VALUES) == pb.PushUpdateReply.ACCEPTED
        second = await node.pull(held=1)
        assert isinstance(second, Order)
        assert sent(second) == ("int8", 2, 1)
        np.testing.assert_allclose(second.parameters, VALUES, atol=8 / 254)
        assert await node.push(second, np.zeros(8, np.float32)) == pb.PushUpdateReply.ACCEPTED
        third = await node.pull(held=1)
        assert isinstance(third, Order)
        assert sent(third) == (
            "none",
            3,
            0,
        )
        np.testing.assert_allclose(third.parameters, first.parameters + VALUES, atol=8 / 254)


def test_a_node_that_claims_parameters_that_were_never_sent_receives_them_whole() -> None:
    manifest = Manifest((TensorSpec("weight", (len(VALUES),)),))
    model = GlobalModel(manifest, VALUES, len(VALUES), TrainingConfig())
    broadcast = Broadcast(OutgoingModel(model), lambda _, function, *arguments: function(*arguments))
    for number in (1, 2):
        broadcast.begin_round(number)
    assert broadcast.plan("none", Held(1)) == Sending("none")
    assert broadcast.plan("int8", Held(1)) == Sending("bf16", 2), "no node was sent parameters that it can hold before"
    broadcast.begin_round(3)
    assert broadcast.plan("int8", Held(2)) == Sending("int8", 3, 2)
    assert broadcast.plan("int8", Held(1)) == Sending("none", 3)


@pytest.mark.parametrize("codec", ["none", "int8"])
async def test_kept_parameters_are_those_that_the_nodes_of_their_round_received(codec: str) -> None:
    def now(_: str, function: Callable[..., Any], *arguments: object) -> "asyncio.Future[Any]":
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        done.set_result(function(*arguments))
        return done

    manifest = Manifest((TensorSpec("weight", (len(VALUES),)),))
    model = GlobalModel(manifest, VALUES.copy(), len(VALUES), TrainingConfig())
    broadcast = Broadcast(OutgoingModel(model), now)
    sent: dict[int, Flat] = {}
    for number in (1, 2, 3):
        broadcast.begin_round(number)
        sending = broadcast.plan(codec, Held(number - 1))
        parts = await broadcast.parts(number, sending)
        if not sending.base:
            sent[number] = np.empty_like(VALUES)
            form(sending.codec).decode(payload_of(parts), sent[number])
        else:
            sent[number] = sent[number - 1].copy()
            form(sending.codec).add_to(payload_of(parts), sent[number])
        broadcast.end_round()
        broadcast.keep({(each, codec) for each in (1, number)})
        model.values[:] += np.float32(0.01) * (number + VALUES)
    broadcast.begin_round(4)
    for number in (1, 3):
        kept = broadcast.plan("int8", Held(3), (number, codec))
        assert (kept.codec, kept.version, kept.base) == ("none", 0, 0), "nothing leads on from it"
        values = payload_of(await broadcast.parts(4, kept)).view(np.float32)
        np.testing.assert_array_equal(values, sent[number])
    gone = broadcast.plan("int8", Held(3), (2, codec))
    assert await broadcast.parts(4, gone) is None


def payload_of(parts: Sequence[bytes] | None) -> Payload:
    """Return the payload of encoded chunks."""
    assert parts is not None
    found = [decode_work_part(each) for each in parts]
    return np.frombuffer(b"".join(bytes(each.data) for each in found if isinstance(each, Chunk)), np.uint8)


async def test_codecs_by_link_are_ordered_over_the_wire_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec_control, "_LARGE_BYTES", 1)
    sections: dict[str, Any] = {"compression": {"strategy": "adaptive"}, "orchestrator": {"policy": "reactive"}}
    async with running(tmp_path, training={"rounds": 1}, **sections) as run:
        node = run.node("a")
        await node.register()
        order = await node.work()
        assert (order.order.update.codec, order.order.parameters.codec) == ("int4", "bf16")
        payload, noise = form("int4").encode(VALUES)
        assert await push(node, order, payload, noise=noise) == pb.PushUpdateReply.ACCEPTED
        await run.coordinator.engine.finished.wait()
        row = run.coordinator.engine.node_rows()[0]
        assert (row["codec"], row["parameters_codec"], row["noise"]) == ("int4", "bf16", noise)
        decided = [each for each in run.coordinator.engine.machine.decisions if each.kind == "compression"]
        assert [(each.subject, str(each.reason)) for each in decided] == [("a", "rate_not_measured")]
