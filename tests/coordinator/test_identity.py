"""A coordinator before callers that speak for another node: every method of nodes, over real gRPC."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from hypergpu.common.rpc import LEASE, NODE_ID
from hypergpu.common.tensors import chunks
from hypergpu.common.wire import encode_part
from hypergpu.coordinator.callers import TRAINING
from hypergpu.coordinator.run_keys import LEASE_KEY, lease_key
from hypergpu.protos import coordinator_pb2 as pb
from tests.coordinator.test_services import FakeNode, Running, code_of, running

METHODS: list[Any] = list(pb.DESCRIPTOR.services_by_name["Training"].methods)
NOT_FOUND, DENIED = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED


def requests_for(node: str, run_id: str) -> dict[str, Any]:
    """A message of each method that names a node."""
    work = pb.WorkId(run_id=run_id, round=1, node_id=node, attempt=1)
    header = pb.UpdatePart(header=pb.UpdateHeader(work=work, samples=1, loss=0.5))
    return {
        "Register": pb.RegisterRequest(node_id=node, incarnation="another"),
        "Heartbeat": pb.HeartbeatRequest(node_id=node, run_id=run_id, state="idle"),
        "PullWork": pb.PullWorkRequest(node_id=node, run_id=run_id, wait_seconds=0.1),
        "PullParameters": pb.PullParametersRequest(work=work),
        "PushUpdate": header,
        "GetUploadProgress": work,
        "ReturnWork": pb.ReturnWorkRequest(work=work, reason="shutting_down"),
        "Leave": pb.LeaveRequest(node_id=node, run_id=run_id, reason="enough"),
    }


async def ends(run: Running, method: Any, request: Any, metadata: Any) -> tuple[grpc.StatusCode, str]:
    """Status of a call."""
    into = "stream" if method.client_streaming else "unary"
    out = "stream" if method.server_streaming else "unary"
    encode = encode_part if method.client_streaming else lambda message: message.SerializeToString()
    make: Any = getattr(run.channel, f"{into}_{out}")
    call = make(f"/{TRAINING}/{method.name}", encode, bytes)
    made = call(iter([request]) if method.client_streaming else request, metadata=metadata, timeout=20)
    try:
        await (made.read() if method.server_streaming else made)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


def forged(name: str, own: str, others: str) -> Iterator[tuple[str, list[tuple[str, str]], grpc.StatusCode]]:
    """Metadata with which "attacker", who has a lease of its own, could try to speak for another node."""
    yield "no secret", [(NODE_ID, name)], NOT_FOUND
    yield "no name and no secret", [], NOT_FOUND
    yield "its own secret", [(NODE_ID, name), (LEASE, own)], NOT_FOUND
    yield "its own secret, no name", [(LEASE, own)], NOT_FOUND
    yield "a part of the secret", [(NODE_ID, name), (LEASE, others[:-1])], NOT_FOUND
    yield "the incarnation", [(NODE_ID, name), (LEASE, others.partition(".")[0])], NOT_FOUND
    yield "its own name and secret", [(NODE_ID, "attacker"), (LEASE, own)], DENIED
    yield "both names", [(NODE_ID, "attacker"), (NODE_ID, name), (LEASE, own)], DENIED
    yield "both secrets", [(NODE_ID, name), (LEASE, own), (LEASE, own)], NOT_FOUND


def test_every_method_is_tried() -> None:
    assert {method.name for method in METHODS} == requests_for("a", "").keys()


@pytest.mark.parametrize("method", [m for m in METHODS if m.name != "Register"], ids=lambda method: method.name)
async def test_no_method_lets_a_node_speak_for_another(tmp_path: Path, method: Any) -> None:
    async with running(tmp_path) as run:
        victim, attacker = run.node("victim"), run.node("attacker")
        await victim.register()
        await attacker.register()
        request = requests_for("victim", victim.run_id)[method.name]
        for how, metadata, expected in forged("victim", attacker.kept["attacker"], victim.kept["victim"]):
            code, text = await ends(run, method, request, metadata)
            assert code is expected, (how, text)
            assert "register again" in text or "on behalf of" in text
        assert await victim.heartbeat() == pb.HeartbeatReply.CONTINUE
        code, text = await ends(run, method, request, victim.metadata)
        assert code not in (NOT_FOUND, DENIED, grpc.StatusCode.UNAUTHENTICATED), text


async def test_a_second_process_is_refused_and_both_are_told(tmp_path: Path) -> None:
    async with running(tmp_path, server={"heartbeat_seconds": 0.1, "heartbeat_misses": 5}) as run:
        first = run.node("a")
        await first.register()
        second = FakeNode(run.channel, "a")
        for _ in range(3):
            code, text = await code_of(second.register(incarnation="2"))
            assert (code, "another process is registered as 'a'" in text) == (grpc.StatusCode.ALREADY_EXISTS, True)
        reply = await first.stub.Heartbeat(
            pb.HeartbeatRequest(node_id="a", run_id=first.run_id, state="idle"), metadata=first.metadata
        )
        assert reply.contested_by == "127.0.0.1"
        assert await first.heartbeat() == pb.HeartbeatReply.CONTINUE
        assert 'hypergpu_calls_refused_total{error="NameInUse"} 3.0' in run.get("/metrics")
        while True:  # the first dies without a word
            try:
                await second.register(incarnation="2")
                break
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.ALREADY_EXISTS
            await asyncio.sleep(0.05)
        assert await second.heartbeat() == pb.HeartbeatReply.CONTINUE
        assert (await code_of(first.heartbeat()))[0] is NOT_FOUND, "the lease is another's"
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert kinds.count("name_contested") == 1


async def test_a_restarted_process_with_the_kept_secret_joins_at_once_and_replays_of_the_former_are_refused(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as run:
        before = run.node("a")
        await before.register()
        replayed = list(before.metadata)
        after = run.node("a")
        await after.register(incarnation="2")
        for method in METHODS:
            if method.name != "Register":
                request = requests_for("a", after.run_id)[method.name]
                assert (await ends(run, method, request, replayed))[0] is NOT_FOUND, method.name
        code, _ = await ends(run, METHODS[0], requests_for("a", "")["Register"], replayed)
        assert code is grpc.StatusCode.ALREADY_EXISTS
        assert await after.heartbeat() == pb.HeartbeatReply.CONTINUE


async def test_secrets_survive_a_restart_of_the_coordinator(tmp_path: Path) -> None:
    training = {"rounds": 9}
    async with running(tmp_path, training=training) as run:
        a = run.node("a")
        await a.register()
        await a.push(await a.work(), np.ones(8, np.float32))
        await a.work()
    assert (tmp_path / LEASE_KEY).stat().st_mode & 0o777 == 0o600
    async with running(tmp_path, resume=True, training=training) as run:
        thief = FakeNode(run.channel, "a")
        code, text = await code_of(thief.register(incarnation="2"))
        assert (code, "before the coordinator restarted" in text) == (grpc.StatusCode.ALREADY_EXISTS, True)
        again = run.node("a")
        again.run_id = a.run_id
        assert await again.heartbeat() == pb.HeartbeatReply.REGISTER_AGAIN
        await again.register()
        assert again.kept["a"] == dict(a.metadata)[LEASE]


async def test_names_that_the_coordinator_chooses_have_leases_too(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        unnamed = [pb.RegisterRequest(incarnation=f"process-{number}") for number in range(2)]
        stub = run.node("unused").stub
        replies = [await stub.Register(request) for request in unnamed]
        assert [reply.node_id for reply in replies] == ["node_1", "node_2"]
        for reply in replies:
            request = pb.HeartbeatRequest(node_id=reply.node_id, run_id=reply.run_id, state="idle")
            metadata = [(NODE_ID, reply.node_id), (LEASE, reply.lease)]
            assert (await stub.Heartbeat(request, metadata=metadata)).directive == pb.HeartbeatReply.CONTINUE


async def test_metadata_that_is_too_large_or_no_text_is_refused_and_others_go_on(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        a = run.node("a")
        await a.register()
        request = requests_for("a", a.run_id)["Heartbeat"]
        heartbeat = next(method for method in METHODS if method.name == "Heartbeat")
        huge = [(NODE_ID, "a"), (LEASE, "x" * 40_000)]
        assert (await ends(run, heartbeat, request, huge))[0] is not grpc.StatusCode.OK
        long = [(NODE_ID, "a" * 4000), (LEASE, "x" * 4000)]
        code, text = await ends(run, heartbeat, request, long)
        assert (code, len(text) < 300) == (NOT_FOUND, True)
        assert await a.heartbeat() == pb.HeartbeatReply.CONTINUE


async def test_an_upload_that_began_is_not_continued_by_another(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        victim, attacker = run.node("victim"), run.node("attacker")
        await victim.register()
        order = await victim.work()
        await attacker.register()
        parts = [attacker.header(order.order), *chunks(np.full(8, 9.0, np.float32))]
        assert (await code_of(attacker.push_parts(parts)))[0] is DENIED
        assert await victim.push(order, np.ones(8, np.float32)) == pb.PushUpdateReply.ACCEPTED


def test_a_damaged_key_is_replaced(tmp_path: Path) -> None:
    first = lease_key(tmp_path)
    assert lease_key(tmp_path) == first
    (tmp_path / LEASE_KEY).write_bytes(b"short")
    assert lease_key(tmp_path) not in (first, b"short")
