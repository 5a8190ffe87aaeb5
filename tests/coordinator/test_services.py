"""The services over real gRPC on a free port, with a node that does what the test says."""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from torch import nn

from hypergpu.common.codecs import PayloadFormat
from hypergpu.common.config import SystemConfig
from hypergpu.common.roles import Role
from hypergpu.common.rpc import LEASE, NODE_ID, open_channel
from hypergpu.common.tensors import Assembler, Chunk, Flat, checksum, chunks
from hypergpu.common.tls import Tls
from hypergpu.common.token import TokenSource
from hypergpu.common.wire import codec_from_proto, decode_work_part, encode_part, manifest_from_proto
from hypergpu.coordinator.app import Coordinator, Options
from hypergpu.coordinator.run_dir import RunDir
from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.protos import coordinator_pb2_grpc
from hypergpu.tasks import Metric, Task
from tests.patience import patience

stubs: Any = coordinator_pb2_grpc
SERVICE = "/hypergpu.coordinator.v1.Training/"
Kept = dict[str, str]
"""Secrets of leases that nodes keep, by name."""
KEPT: dict[Path, Kept] = {}
"""What the nodes of each run directory keep beside their state, for processes that take their place."""


def toy_task(features: int = 3) -> Task:
    torch.manual_seed(0)
    inputs = torch.randn(60, features)
    targets = (inputs[:, 0] > 0).long()
    return Task(
        model=lambda: nn.Linear(features, 2), train=(inputs[:40], targets[:40]), test=(inputs[40:], targets[40:])
    )


@dataclass
class Order:
    order: pb.WorkOrder
    parameters: Flat


class FakeNode:
    def __init__(self, channel: grpc.aio.Channel, name: str, token: str = "", kept: Kept | None = None) -> None:
        self.name = name
        self.metadata = [(NODE_ID, name)] + ([("authorization", f"Bearer {token}")] if token else [])
        self.kept = {} if kept is None else kept
        if name in self.kept:
            self.metadata.append((LEASE, self.kept[name]))
        self.stub = stubs.TrainingStub(channel)
        self._pull = channel.unary_stream(SERVICE + "PullWork", pb.PullWorkRequest.SerializeToString, bytes)
        self._push = channel.stream_unary(SERVICE + "PushUpdate", encode_part, pb.PushUpdateReply.FromString)
        self.run_id = ""

    async def register(self, **fields: Any) -> pb.RegisterReply:
        request = pb.RegisterRequest(**{"node_id": self.name, "incarnation": "1", **fields})
        reply: pb.RegisterReply = await self.stub.Register(request, metadata=self.metadata)
        self.run_id = reply.run_id
        self.show(reply.lease)
        if reply.HasField("identity") and not request.HasField("identity"):
            request.node_id = reply.node_id
            request.identity.CopyFrom(reply.identity)  # as a node does once it knows the task
            reply = await self.stub.Register(request, metadata=self.metadata)
        return reply

    def show(self, lease: str) -> None:
        """Keep the secret of a lease, and show it from now on."""
        self.kept[self.name] = lease
        self.metadata = [pair for pair in self.metadata if pair[0] != LEASE] + [(LEASE, lease)]

    async def heartbeat(self, state: str = "idle", report: bytes = b"") -> pb.HeartbeatReply.Directive:
        request = pb.HeartbeatRequest(node_id=self.name, run_id=self.run_id, state=state, rtt_ms=12.5, report=report)
        reply: pb.HeartbeatReply = await self.stub.Heartbeat(request, metadata=self.metadata)
        return reply.directive

    async def pull(self, wait: float = 5.0, held: int = 0) -> Order | str | None:
        """Pull work; the parameters are those of the payload, without a difference added."""
        request = pb.PullWorkRequest(node_id=self.name, run_id=self.run_id, wait_seconds=wait, parameters_version=held)
        order: pb.WorkOrder | None = None
        assembler: Assembler | None = None
        async for data in self._pull(request, metadata=self.metadata):
            part = decode_work_part(data)
            if isinstance(part, Chunk):
                assert assembler is not None
                assembler.add(part)
            elif part.WhichOneof("part") == "run_over":
                return str(part.run_over.reason)
            else:
                order = part.order
                assembler = Assembler(np.empty(order.parameters.payload_bytes, np.uint8))
        if order is None or assembler is None:
            return None
        assert assembler.complete
        form = PayloadFormat(codec_from_proto(order.parameters), manifest_from_proto(order.manifest).size)
        parameters = np.empty(form.size, np.float32)
        form.decode(assembler.payload, parameters)
        return Order(order, parameters)

    async def work(self, wait: float = 30.0) -> Order:
        order = await self.pull(wait)
        assert isinstance(order, Order)
        return order

    def header(self, order: pb.WorkOrder, **fields: Any) -> pb.UpdatePart:
        values = {"work": order.work, "manifest": order.manifest, "samples": 4, "loss": 0.5, "compute_seconds": 0.1}
        values["encoding"] = order.update
        return pb.UpdatePart(header=pb.UpdateHeader(**{**values, **fields}))

    async def push_parts(self, parts: Iterable[Any]) -> pb.PushUpdateReply:
        async def stream() -> AsyncIterator[Any]:
            for part in parts:
                yield part

        reply: pb.PushUpdateReply = await self._push(stream(), metadata=self.metadata)
        return reply

    async def push(self, order: Order, update: Flat, **fields: Any) -> pb.PushUpdateReply.Outcome:
        reply = await self.push_parts([self.header(order.order, **fields), *chunks(update)])
        return reply.outcome


@dataclass
class Running:
    address: str
    coordinator: Coordinator
    channel: grpc.aio.Channel
    control: Any
    http: str
    done: "asyncio.Task[int]"
    interrupted: asyncio.Event
    kept: Kept

    def node(self, name: str, token: str = "") -> FakeNode:
        return FakeNode(self.channel, name, token, self.kept)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.http}{path}", timeout=5) as answer:
            return str(answer.read().decode())


def tokens_of(token: str) -> dict[Role, TokenSource]:
    """One token for nodes and for the operator; none if it is empty."""
    return {Role.NODE: TokenSource([token]), Role.OPERATOR: TokenSource([token])} if token else {}


@asynccontextmanager
async def running(
    out: Path,
    *,
    token: str = "",
    tls: Tls | None = None,
    client_tls: Tls | None = None,
    resume: bool = False,
    policy: str = "none",
    task: Task | None = None,
    **sections: Any,
) -> AsyncIterator[Running]:
    tree = {
        "training": {"local_steps": 2, "batch_size": 2, "rounds": 2, **sections.pop("training", {})},
        "server": {
            "listen": "127.0.0.1:0",
            "http_listen": "127.0.0.1:0",
            "linger_seconds": 0.0,
            **sections.pop("server", {}),
        },
        "orchestrator": {"policy": "none", **sections.pop("orchestrator", {})},
        # Which updates are measured is drawn with a secret key: a test would see another run each time.
        "contribution": {"measured_share": 0, **sections.pop("contribution", {})},
        **sections,
    }
    coordinator = Coordinator(
        SystemConfig.model_validate(tree), task or toy_task(), Options(out, tokens_of(token), tls, resume)
    )
    addresses: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()
    interrupted = asyncio.Event()
    done = asyncio.create_task(coordinator.run(lambda *both: addresses.set_result(both), interrupted))
    both: list[asyncio.Future[Any]] = [addresses, done]
    first, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if done in first:
        done.result()
    address, http = addresses.result()
    async with open_channel(address, client_tls) as channel:
        kept = KEPT.setdefault(out, {})
        yield Running(address, coordinator, channel, stubs.ControlStub(channel), http, done, interrupted, kept)
        if not done.done():
            metadata = [("authorization", f"Bearer {token}")]
            with suppress(grpc.aio.AioRpcError):  # it may be ending by itself just now
                await stubs.ControlStub(channel).Stop(pb.StopRequest(reason="test over"), metadata=metadata)
    await asyncio.wait_for(done, patience(30))


async def code_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    error: Any = caught.value
    return error.code(), error.details()


async def test_a_whole_run(tmp_path: Path) -> None:
    async with running(tmp_path, training={"min_nodes": 2}, server={"linger_seconds": 1.0}) as run:
        a, b = run.node("a"), run.node("b")
        reply = await a.register(metrics_address="127.0.0.1:1", gpu=pb.GpuSpecs(name="T4"))
        assert (reply.node_id, reply.task, reply.manifest.total_bytes) == ("a", "digits", 32)
        waiting = asyncio.create_task(a.work())
        await b.register()
        first_b, first_a = await b.work(), await waiting
        assert first_a.order.work == pb.WorkId(run_id=a.run_id, round=1, node_id="a", attempt=1)
        assert {o.order.shard.index for o in (first_a, first_b)} == {0, 1}
        np.testing.assert_array_equal(first_a.parameters, first_b.parameters)
        start = first_a.parameters
        assert await a.push(first_a, np.full(8, 1.0, np.float32), samples=1) == pb.PushUpdateReply.ACCEPTED
        assert await b.push(first_b, np.full(8, 4.0, np.float32), samples=3) == pb.PushUpdateReply.ACCEPTED
        assert await a.push(first_a, np.full(8, 9.0, np.float32)) == pb.PushUpdateReply.DUPLICATE
        second = await a.work()
        np.testing.assert_allclose(second.parameters, start + 3.25, rtol=1e-6)
        progress = await a.stub.GetUploadProgress(first_a.order.work, metadata=a.metadata)
        assert progress.accepted
        await b.work()
        assert await a.push(second, np.zeros(8, np.float32)) == pb.PushUpdateReply.ACCEPTED
        again = pb.LeaveRequest(node_id="b", run_id=b.run_id, reason="enough")
        await b.stub.Leave(again, metadata=b.metadata)
        assert await a.pull() == "completed"
        assert await a.heartbeat() == pb.HeartbeatReply.SHUT_DOWN
        assert await asyncio.wait_for(run.done, patience(30)) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["state"] == "completed"
    assert summary["rounds"] == 2
    assert summary["nodes"]["a"]["rounds_contributed"] == 2
    rows = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [(r["round"], r["reason"], r["samples"]) for r in rows] == [
        (1, "all_contributed", 4),
        (2, "survivors_contributed", 4),
    ]
    assert list((tmp_path / "checkpoints").iterdir())


async def test_what_is_not_known_yet_is_unset_and_a_run_that_is_over_stands_still(tmp_path: Path) -> None:
    async with running(tmp_path, training={"rounds": 1}, server={"linger_seconds": 5.0}) as run:
        status = await run.control.GetStatus(pb.GetStatusRequest())
        unset = ("loss", "round_seconds", "deadline_seconds")
        assert [status.HasField(name) for name in unset] == [False, False, False]
        assert (status.metric.name, status.metric.better, status.metric.format) == ("accuracy", "higher", "percent")
        assert not status.metric.HasField("value")
        series = run.get("/metrics")
        for name in ("hypergpu_loss", "hypergpu_metric", "hypergpu_train_loss", "hypergpu_adaptation_overhead_ratio"):
            assert f"\n{name} " not in series, name
            assert f"\n{name}{{" not in series, name
        a, b = run.node("a"), run.node("b")
        await a.register()
        (info,) = (await run.control.ListNodes(pb.ListNodesRequest())).nodes
        measured = ("latency_ms", "loss_rate", "score", "batch_size", "compute_seconds")
        assert (info.quality, [info.HasField(name) for name in measured]) == ("unknown", [False] * 5)
        row = run.coordinator.engine.node_rows()[0]
        assert (row["batch_size"], row["compute_seconds"]) == (None, None)
        await b.register()
        await b.stub.Leave(pb.LeaveRequest(node_id="b", run_id=b.run_id), metadata=b.metadata)
        order = await a.work()
        (info, _) = (await run.control.ListNodes(pb.ListNodesRequest())).nodes
        assert (info.batch_size, info.HasField("compute_seconds")) == (2, False)
        assert (await run.control.GetStatus(pb.GetStatusRequest())).deadline_seconds > 0
        await a.heartbeat()
        await a.push(order, np.zeros(8, np.float32))
        assert await a.pull() == "completed"
        (info, _) = (await run.control.ListNodes(pb.ListNodesRequest())).nodes
        assert info.compute_seconds > 0
        status = await run.control.GetStatus(pb.GetStatusRequest())
        assert (status.HasField("loss"), status.metric.HasField("value"), status.HasField("round_seconds")) == (
            True,
        ) * 3
        assert 'hypergpu_metric{metric="accuracy"} ' in run.get("/metrics")
        nodes = {node.node_id: node for node in (await run.control.ListNodes(pb.ListNodesRequest())).nodes}
        assert (nodes["a"].state, nodes["b"].state) == ("done", "left")
        seen = nodes["a"].quality, nodes["a"].score
        assert seen[0] not in ("unknown", "offline")
        run.coordinator.engine._clock = run.coordinator.orchestrator.monitor._clock = lambda: 1e9  # much later
        assert (await run.control.GetStatus(pb.GetStatusRequest())).elapsed_seconds == status.elapsed_seconds < 60
        nodes = {node.node_id: node for node in (await run.control.ListNodes(pb.ListNodesRequest())).nodes}
        assert (nodes["a"].quality, nodes["a"].score) == seen
        await a.stub.Leave(pb.LeaveRequest(node_id="a", run_id=a.run_id), metadata=a.metadata)
        (left,) = [n for n in (await run.control.ListNodes(pb.ListNodesRequest())).nodes if n.node_id == "a"]
        assert (left.state, left.quality, left.score) == ("done", *seen)
    rows = {row["node_id"]: row for row in json.loads((tmp_path / "nodes.json").read_text())}
    assert (rows["a"]["state"], rows["b"]["state"]) == ("done", "left")


async def test_a_metric_that_raises_is_told_by_its_name_and_the_run_goes_on(tmp_path: Path) -> None:
    def broken(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        raise ValueError("only one class")

    task = replace(toy_task(), metric=Metric("auc", broken))
    async with running(tmp_path, task=task, training={"rounds": 2}) as run:
        a = run.node("a")
        await a.register()
        for _ in range(2):
            await a.push(await a.work(), np.zeros(8, np.float32))
        assert await a.pull() == "completed"
        assert await asyncio.wait_for(run.done, patience(30)) == 0
    rows = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [(row["auc"], row["loss"] > 0) for row in rows] == [(None, True)] * 2
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    (told,) = [event["text"] for event in events if event["kind"] == "metric_failed"]
    assert told.startswith("metric 'auc' raised ValueError: only one class")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["metric"]["name"], summary["final_auc"], summary["rounds"]) == ("auc", None, 2)


async def test_an_update_has_the_checksum_that_its_header_announces(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        a = run.node("a")
        await a.register()
        order = await a.work()
        first, second = np.full(8, 2.0, np.float32), np.full(8, 3.0, np.float32)
        announced = checksum(first.view(np.uint8).data)
        await a.push_parts([a.header(order.order, payload_crc32c=announced), *list(chunks(first, chunk_bytes=8))[:2]])
        progress = await a.stub.GetUploadProgress(order.order.work, metadata=a.metadata)
        assert (progress.next_offset, progress.payload_crc32c) == (16, announced)
        other = checksum(second.view(np.uint8).data)
        rest = list(chunks(second, chunk_bytes=8))[2:]  # after what is held of another payload
        reply = await a.push_parts([a.header(order.order, payload_crc32c=other), *rest])
        assert (reply.outcome, reply.next_offset) == (pb.PushUpdateReply.INCOMPLETE, 0)
        code, text = await code_of(a.push_parts([a.header(order.order, payload_crc32c=announced), *chunks(second)]))
        assert (code, "does not match its checksum" in text) == (grpc.StatusCode.DATA_LOSS, True)
        assert await a.push(order, second, payload_crc32c=other) == pb.PushUpdateReply.ACCEPTED


async def test_a_broken_upload_goes_on_where_it_stopped_and_leaves_no_trace_in_the_mean(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        a = run.node("a")
        await a.register()
        order = await a.work()
        pieces = list(chunks(np.full(8, 2.0, np.float32), chunk_bytes=8))
        reply = await a.push_parts([a.header(order.order), *pieces[:2]])
        assert (reply.outcome, reply.next_offset) == (pb.PushUpdateReply.INCOMPLETE, 16)
        progress = await a.stub.GetUploadProgress(order.order.work, metadata=a.metadata)
        assert (progress.next_offset, progress.accepted) == (16, False)
        corrupt = Chunk(16, pieces[2].data, pieces[2].crc32c ^ 1)
        code, _ = await code_of(a.push_parts([a.header(order.order), corrupt]))
        assert code is grpc.StatusCode.DATA_LOSS
        reply = await a.push_parts([a.header(order.order), *pieces[2:]])
        assert reply.outcome == pb.PushUpdateReply.ACCEPTED
        following = await a.work()
        np.testing.assert_allclose(following.parameters, order.parameters + 2.0, rtol=1e-6)


async def test_each_part_of_an_upload_is_a_sign_of_life(tmp_path: Path) -> None:
    """On a slow link heartbeats wait behind the update itself: nobody who sends one is lost."""
    async with running(tmp_path) as run:
        a = run.node("a")
        await a.register()
        order = await a.work()
        member = run.coordinator.engine.machine.members.require("a")
        member.last_seen = long_ago = member.last_seen - 5.0
        await a.push_parts([a.header(order.order), *chunks(np.ones(8, np.float32), chunk_bytes=8)][:3])
        assert member.last_seen > long_ago


async def test_what_cannot_be_used_is_answered_counted_and_hurts_nobody(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        a = run.node("a")
        await a.register()
        order = await a.work()
        bad = np.zeros(8, np.float32)
        bad[5] = np.nan
        code, text = await code_of(a.push(order, bad))
        assert code is grpc.StatusCode.OUT_OF_RANGE
        assert "NaN" in text
        order = await a.work()
        assert order.order.work.attempt == 2
        other = pb.Manifest(dtype="float32", total_bytes=4, tensors=[pb.TensorSpec(name="bias", shape=[1])])
        parts = [a.header(order.order, manifest=other), *chunks(np.zeros(1, np.float32))]
        code, text = await code_of(a.push_parts(parts))
        assert code is grpc.StatusCode.ABORTED
        assert "weight" in text
        beyond = [a.header(order.order), *chunks(np.zeros(9, np.float32))]
        assert (await code_of(a.push_parts(beyond)))[0] is grpc.StatusCode.ABORTED
        order = await a.work()
        for fields in ({"samples": 0}, {"compute_seconds": -1.0}, {"compute_seconds": float("nan")}):
            code, _ = await code_of(a.push(order, np.zeros(8, np.float32), **fields))
            assert code is grpc.StatusCode.ABORTED
        assert (await code_of(a.push_parts([])))[0] is grpc.StatusCode.ABORTED
        assert await a.push(order, np.ones(8, np.float32), samples=1 << 39) == pb.PushUpdateReply.ACCEPTED
        series = run.get("/metrics")
        assert 'hypergpu_updates_rejected_total{error="NonFiniteUpdate"} 1.0' in series
        assert "hypergpu_samples_total 4.0" in series
        assert await a.heartbeat() == pb.HeartbeatReply.CONTINUE


async def test_checks_of_names_sizes_and_membership(tmp_path: Path) -> None:
    async with running(tmp_path, server={"max_nodes": 2}, training={"min_nodes": 3}) as run:
        for name in ("", "../etc", "a" * 65, "a b"):
            node = run.node("x")
            node.metadata = []
            if name:
                code, _ = await code_of(node.register(node_id=name))
                assert code is grpc.StatusCode.INVALID_ARGUMENT
            else:
                assert (await node.register(node_id="")).node_id == "node_1"
        a, stranger = run.node("a"), run.node("stranger")
        code, text = await code_of(a.register(node_id="b"))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "'b'" in text
        for node in (a, stranger):  # node_1, which never asks for work, makes room
            await node.register()
            assert await node.pull(0.01) is None
        assert (await code_of(run.node("another").register()))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        code, _ = await code_of(a.heartbeat(report=b"x" * 1025))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert await a.heartbeat(report=b'{"network": {"attempts": 10, "failures": 1}}') == pb.HeartbeatReply.CONTINUE
        a.run_id = "another"
        assert await a.heartbeat() == pb.HeartbeatReply.REGISTER_AGAIN
        assert (await code_of(a.pull()))[0] is grpc.StatusCode.FAILED_PRECONDITION


async def test_an_update_after_the_deadline_is_late_and_the_node_is_told_to_stop(tmp_path: Path) -> None:
    training = {"min_nodes": 2, "rounds": 50, "quorum": 0.5}
    async with running(tmp_path, training=training, orchestrator={"policy": "conservative"}) as run:
        a, b = run.node("a"), run.node("b")
        await a.register()
        await b.register()
        for _ in range(2):
            orders = await asyncio.gather(a.work(), b.work())
            for node, order in zip((a, b), orders, strict=True):
                await node.push(order, np.zeros(8, np.float32))
        late = await b.work()
        order = await a.work()
        await a.push(order, np.zeros(8, np.float32))
        ahead = await a.work()  # once the deadline of about a second has passed
        assert ahead.order.work.round == late.order.work.round + 1
        assert await b.heartbeat("training") == pb.HeartbeatReply.ABANDON_WORK
        assert await b.push(late, np.zeros(8, np.float32)) == pb.PushUpdateReply.LATE
        nodes = {n.node_id: n for n in (await run.control.ListNodes(pb.ListNodesRequest())).nodes}
        assert nodes["b"].late == 1


async def test_the_join_token_is_asked_of_everybody_but_health_and_reflection(tmp_path: Path) -> None:
    async with running(tmp_path, token="secret") as run:
        assert (await code_of(run.node("a").register()))[0] is grpc.StatusCode.UNAUTHENTICATED
        wrong = run.node("a", "wrong")
        wrong.run_id = "x"
        assert (await code_of(wrong.pull()))[0] is grpc.StatusCode.UNAUTHENTICATED
        assert (await code_of(wrong.push_parts([])))[0] is grpc.StatusCode.UNAUTHENTICATED
        assert (await code_of(run.control.GetStatus(pb.GetStatusRequest())))[0] is grpc.StatusCode.UNAUTHENTICATED
        await run.node("a", "secret").register()
        checks: Any = health_pb2_grpc.HealthStub(run.channel)
        health = await checks.Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING


async def test_control_and_http(tmp_path: Path) -> None:
    async with running(tmp_path, training={"rounds": 9}) as run:
        watch = run.control.WatchEvents(pb.WatchEventsRequest(replay=10))
        assert "waiting" in (await run.control.GetStatus(pb.GetStatusRequest())).state
        a = run.node("a")
        await a.register(metrics_address="127.0.0.1:9000", gpu=pb.GpuSpecs(name="T4"))
        event = await asyncio.wait_for(watch.read(), patience(30))
        assert event.kind == "node_joined"
        assert json.loads(event.json)["node"] == "a"
        order = await a.work()
        status = await run.control.Pause(pb.PauseRequest())
        assert status.state == "paused"
        await a.push(order, np.zeros(8, np.float32))
        assert await a.pull(wait=0.2) is None
        status = await run.control.Resume(pb.ResumeRequest())
        assert (await a.work()).order.work.round == 2
        info = await run.control.SetNodeRule(pb.SetNodeRuleRequest(node_id="a", rule=pb.SetNodeRuleRequest.EXCLUDE))
        assert (info.node_id, info.rule, info.gpu, info.rounds_contributed) == ("a", "exclude", "T4", 1)
        code, text = await code_of(
            run.control.SetNodeRule(pb.SetNodeRuleRequest(node_id="aa", rule=pb.SetNodeRuleRequest.INCLUDE))
        )
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "did you mean 'a'" in text
        code, text = await code_of(run.control.SetPolicy(pb.SetPolicyRequest(policy="reactiv")))
        assert "'reactive'" in text
        assert (await run.control.SetPolicy(pb.SetPolicyRequest(policy="proactive"))).policy == "proactive"
        await run.node("forger").register(metrics_address="169.254.169.254:80")  # not where it calls from
        assert json.loads(run.get("/sd")) == [{"targets": ["127.0.0.1:9000"], "labels": {"node_id": "a"}}]
        assert run.get("/healthz").startswith("training, round 2 of 9")
        assert "hypergpu_nodes_connected 2.0" in run.get("/metrics")
        status = await run.control.Stop(pb.StopRequest(reason="enough"))
        assert status.state == "stopped"


async def test_resuming_goes_on_after_the_last_checkpoint(tmp_path: Path) -> None:
    async with running(tmp_path, training={"rounds": 9}, checkpoint={"every": 1}) as run:
        a = run.node("a")
        await a.register()
        for _ in range(3):
            await a.push(await a.work(), np.ones(8, np.float32))
        before = await a.work()
    sent = json.loads((tmp_path / "summary.json").read_text())["bytes_sent"]
    assert sent > 0
    async with running(tmp_path, resume=True, training={"rounds": 9}) as run:
        again = run.node("a")
        again.run_id = a.run_id
        assert await again.heartbeat() == pb.HeartbeatReply.REGISTER_AGAIN
        await again.register()
        assert again.run_id != a.run_id
        order = await again.work()
        assert order.order.work.round == 4
        np.testing.assert_array_equal(order.parameters, before.parameters)
        assert order.order.shard.cursor == before.order.shard.cursor
        nodes = (await run.control.ListNodes(pb.ListNodesRequest())).nodes
        assert [(n.node_id, n.rounds_contributed) for n in nodes] == [("a", 3)]
    assert json.loads((tmp_path / "summary.json").read_text())["bytes_sent"] > sent, "bytes of both processes"
    rows = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows), "its clock goes on"
    assert "resumed from the checkpoint of round 3" in [row["text"] for row in rows]


async def test_a_complete_run_stays_as_it_is_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = {"rounds": 1}
    async with running(tmp_path, training=training, server={"linger_seconds": 1.0}) as run:
        a = run.node("a")
        await a.register()
        await a.push(await a.work(), np.ones(8, np.float32))
        await run.coordinator.engine.finished.wait()
    before = _contents(tmp_path)
    config = SystemConfig.model_validate({"training": {"rounds": 1, "local_steps": 2, "batch_size": 2}})
    complete = Coordinator(config, toy_task(), Options(tmp_path, resume=True))
    capsys.readouterr()
    assert await complete.run(lambda *_: pytest.fail("it listens"), asyncio.Event()) == 0
    said = capsys.readouterr().out
    assert "the run is complete: 1 of 1 rounds are done" in said
    assert "more training.rounds" in said
    assert "leave --resume out" in said
    assert _contents(tmp_path) == before
    async with running(tmp_path, resume=True, training={"rounds": 2}) as run:
        again = run.node("a")
        await again.register()
        assert (await again.work()).order.work.round == 2


async def test_a_complete_run_that_stays_answers_and_touches_nothing(tmp_path: Path) -> None:
    training = {"rounds": 1}
    async with running(tmp_path, training=training, server={"linger_seconds": 1.0}) as run:
        a = run.node("a")
        await a.register()
        await a.push(await a.work(), np.ones(8, np.float32))
        await run.coordinator.engine.finished.wait()
        accuracy = run.coordinator.engine.machine.metric_value
    before = _contents(tmp_path, but=".lock")
    async with running(tmp_path, resume=True, training=training, server={"stay": True}) as run:
        again = run.node("a")
        await again.register()
        assert await again.pull() == "completed"
        status = await run.control.GetStatus(pb.GetStatusRequest())
        assert (status.state, status.metric.value) == ("completed", pytest.approx(accuracy))
        assert run.get("/healthz").startswith("completed")
        assert not run.done.done()
        run.interrupted.set()
        assert await asyncio.wait_for(run.done, patience(30)) == 0
    assert _contents(tmp_path, but=".lock") == before


def _contents(path: Path, but: str = "") -> dict[str, bytes]:
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != but)
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


async def test_the_records_of_closed_rounds_are_synced_one_sync_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    running_now = 0

    def sync(run_dir: RunDir) -> None:
        nonlocal running_now
        running_now += 1
        assert running_now == 1
        synced.append((run_dir.path / "rounds.jsonl").read_text().count("\n"))
        running_now -= 1

    monkeypatch.setattr(RunDir, "sync", sync)
    async with running(tmp_path, training={"rounds": 9}, checkpoint={"every": 1000}) as run:
        a = run.node("a")
        await a.register()
        for number in range(1, 4):
            await a.push(await a.work(), np.ones(8, np.float32))
            order = await a.work()
            assert order.order.work.round == number + 1
            await run.coordinator.engine._background.settle()
            assert synced[number - 1] == number
    assert synced[-1] == 3
    assert len(synced) == 5, "and at the end, once for the checkpoint and once for what came after it"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device")])
async def test_records_that_cannot_be_synced_are_told_and_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError
) -> None:
    def sync(_: RunDir) -> None:
        raise error

    monkeypatch.setattr(RunDir, "sync", sync)
    async with running(tmp_path) as run:
        a = run.node("a")
        await a.register()
        for _ in range(2):
            await a.push(await a.work(), np.ones(8, np.float32))
        await asyncio.wait_for(run.coordinator.engine.finished.wait(), 30)
    assert "degraded: sync: " in capsys.readouterr().out


async def test_a_node_that_stops_listening_costs_the_others_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, training={"min_nodes": 2}) as run:
        a, b = run.node("a"), run.node("b")
        await a.register()
        await b.register()
        call = a._pull(pb.PullWorkRequest(node_id="a", run_id=a.run_id, wait_seconds=5), metadata=a.metadata)
        order = await b.work()
        await call.read()
        call.cancel()
        assert await b.push(order, np.zeros(8, np.float32)) == pb.PushUpdateReply.ACCEPTED
        assert (await a.work()).order.work.attempt == 2


async def test_a_node_gets_no_work_before_it_has_shown_that_its_task_is_the_same(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        a = run.node("a")
        run_id = run.coordinator.engine.run_id

        async def pull() -> tuple[grpc.StatusCode, str]:
            request = pb.PullWorkRequest(node_id="a", run_id=run_id, wait_seconds=5)
            return await code_of(a._pull(request, metadata=a.metadata).read())

        code, text = await pull()
        assert (code, "register again" in text) == (grpc.StatusCode.NOT_FOUND, True), "it never registered"
        bare = pb.RegisterRequest(node_id="a", incarnation="1")
        reply = await a.stub.Register(bare, metadata=a.metadata)
        a.metadata.append((LEASE, reply.lease))
        told = "node 'a' registered without the identity of its task: register again, with it"
        code, text = await pull()
        assert (code, told in text) == (grpc.StatusCode.FAILED_PRECONDITION, True)
        other = pb.RegisterRequest(node_id="a", incarnation="1", identity=reply.identity)
        other.identity.train_samples += 1
        assert (await code_of(a.stub.Register(other, metadata=a.metadata)))[0] is grpc.StatusCode.INVALID_ARGUMENT
        assert told in (await pull())[1], "it was refused"
        assert not run.coordinator.engine.machine.members.require("a").ready
        await a.register()
        assert (await a.work()).order.work.node_id == "a"
        await a.stub.Register(bare, metadata=a.metadata)
        assert told in (await pull())[1], "a new registration says nothing of the one before"


async def test_a_node_with_other_data_is_refused_with_both_figures(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        a = run.node("a")
        own = (await a.register()).identity
        assert (own.train_samples, own.test_samples) == (40, 20)
        assert {each.name for each in own.numbers} >= {"train inputs", "test inputs", "outputs of the untrained model"}
        assert (await a.register(identity=own)).run_id == a.run_id
        other = pb.TaskIdentity()
        other.CopyFrom(own)
        other.train_samples = 20
        code, text = await code_of(run.node("b").register(identity=other))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "the task of b is another one than the coordinator's: 40 train samples here, 20 there" in text
        assert run.coordinator.engine.machine.members.get("b") is None
        other.numbers.extend([pb.IdentityNumbers()] * 2_000)
        code, text = await code_of(run.node("b").register(identity=other))
        assert code is grpc.StatusCode.ABORTED
