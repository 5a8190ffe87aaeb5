"""Receipts over the wire: a node signs each update, and the coordinator holds the signature against what arrived."""

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from hypergpu.common.receipt import is_leaf_signed
from hypergpu.common.tensors import chunks
from hypergpu.ledger.verifying import verify
from hypergpu.node.countersigning import Countersigning
from hypergpu.protos import coordinator_pb2 as pb
from tests.coordinator.test_services import FakeNode, Order, code_of, running

ONES = np.full(8, 0.125, np.float32)


def leaves_of(out: Path, kind: str) -> list[dict[str, Any]]:
    leaves = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    return [leaf for leaf in leaves if leaf["kind"] == kind]


async def see(node: FakeNode, signing: Countersigning) -> pb.HeartbeatReply:
    request = pb.HeartbeatRequest(node_id=node.name, run_id=node.run_id, state="idle", ledger_size=signing.ledger_size)
    reply: pb.HeartbeatReply = await node.stub.Heartbeat(request, metadata=node.metadata)
    signing.see(reply.ledger)
    return reply


def signed(node: FakeNode, order: Order, signing: Countersigning, update: Any = ONES, **fields: Any) -> pb.UpdatePart:
    part = node.header(order.order, **fields)
    part.header.receipt.CopyFrom(signing.sign(part.header, update.view(np.uint8)))
    return part


async def test_each_round_brings_a_signed_receipt_and_a_checkpoint_that_goes_on(tmp_path: Path) -> None:
    signing = Countersigning()
    async with running(tmp_path, training={"rounds": 3}) as run:
        node = run.node("a")
        reply = await node.register(key=signing.public_key)
        signing.begin(reply.ledger_key)
        assert not (await see(node, signing)).HasField("ledger"), "no round has closed"
        sizes = []
        for _ in range(3):
            order = await node.work()
            await see(node, signing)
            sizes.append(signing.ledger_size)
            pushed = await node.push_parts([signed(node, order, signing), *chunks(ONES)])
            assert pushed.outcome == pb.PushUpdateReply.ACCEPTED
        assert 0 == sizes[0] < sizes[1] < sizes[2]
    receipts = leaves_of(tmp_path, "receipt")
    assert [(leaf["node"], leaf["round"], leaf["outcome"]) for leaf in receipts] == [
        ("a", number, "accepted") for number in (1, 2, 3)
    ]
    assert all(is_leaf_signed(leaf) for leaf in receipts)
    assert [leaf["ledger_size"] for leaf in receipts] == sizes
    (announced,) = leaves_of(tmp_path, "node")
    assert announced["key"] == b64encode(signing.public_key).decode()
    verdict = verify(tmp_path)
    assert (verdict.faults, verdict.receipts, verdict.unsigned) == ([], 3, 0)


WRONG = {
    "another update": lambda node, order, signing: signed(node, order, signing, 2 * ONES),
    "another loss": lambda node, order, signing: _with_loss(signed(node, order, signing)),
    "no signature": lambda node, order, signing: node.header(order.order),
    "another key": lambda node, order, signing: signed(node, order, Countersigning()),
    "a root of another length": lambda node, order, signing: _with_root(signed(node, order, signing)),
}


def _with_loss(part: pb.UpdatePart) -> pb.UpdatePart:
    part.header.loss = 0.25
    return part


def _with_root(part: pb.UpdatePart) -> pb.UpdatePart:
    part.header.receipt.ledger_root = b"short"
    return part


@pytest.mark.parametrize("wrong", WRONG)
async def test_an_update_that_its_node_has_not_signed_is_refused(tmp_path: Path, wrong: str) -> None:
    signing = Countersigning()
    async with running(tmp_path, training={"min_nodes": 1}) as run:
        node = run.node("a")
        await node.register(key=signing.public_key)
        order = await node.work()
        code, text = await code_of(node.push_parts([WRONG[wrong](node, order, signing), *chunks(ONES)]))
        expected = "a root of 5 bytes" if "root" in wrong else "the receipt of a for round 1 is not signed with the key"
        assert expected in text, code
    assert leaves_of(tmp_path, "receipt") == []


async def test_a_node_without_a_key_leaves_receipts_that_count_as_unsigned(tmp_path: Path) -> None:
    async with running(tmp_path, training={"rounds": 1}) as run:
        node = run.node("a")
        await node.register()
        order = await node.work()
        assert await node.push(order, ONES) == pb.PushUpdateReply.ACCEPTED
        await run.done
    verdict = verify(tmp_path)
    assert (verdict.faults, verdict.receipts, verdict.unsigned) == ([], 0, 1)


async def test_a_node_without_a_key_is_refused_where_receipts_are_required(tmp_path: Path) -> None:
    async with running(tmp_path, server={"require_receipts": True}) as run:
        node, signing = run.node("a"), Countersigning()
        code, text = await code_of(node.register())
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "a announces no key" in text
        assert "server.require_receipts" in text
        await node.register(key=signing.public_key)
        code, _ = await code_of(node.register())
        assert code is grpc.StatusCode.INVALID_ARGUMENT, "nor may it take its key back"
        assert run.coordinator.engine.machine.members.require("a").info["key"] == signing.public_key.hex()


async def test_a_key_of_another_length_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        code, text = await code_of(run.node("a").register(key=b"short"))
        assert "a key of 5 bytes; an Ed25519 key has 32" in text, code


async def test_a_coordinator_that_starts_again_shows_the_same_ledger(tmp_path: Path) -> None:
    signing = Countersigning()
    async with running(tmp_path, training={"rounds": 4}) as run:
        node = run.node("a")
        signing.begin((await node.register(key=signing.public_key)).ledger_key)
        order = await node.work()
        await node.push_parts([signed(node, order, signing), *chunks(ONES)])
        await node.work()
        await see(node, signing)
        seen = signing.ledger_size
        run.coordinator.engine.suspend()
        run.interrupted.set()
    assert seen > 0
    async with running(tmp_path, training={"rounds": 4}, resume=True) as run:
        node = run.node("a")
        signing.begin((await node.register(key=signing.public_key)).ledger_key)
        await see(node, signing)
        assert signing.ledger_size >= seen
