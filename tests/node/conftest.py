"""A coordinator in memory, on a real server, that is as unhelpful as a test wants it, and one agent before it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn

from hypergpu.common.codecs import PayloadFormat, find_codec
from hypergpu.common.config import NodeConfig, SystemConfig
from hypergpu.common.rpc import SERVER_OPTIONS, bind
from hypergpu.common.signed_note import Signer
from hypergpu.common.tensors import Assembler, Chunk, chunks
from hypergpu.common.wire import decode_update_part, encode_part, encoding_to_proto, manifest_to_proto
from hypergpu.node.agent import Agent
from hypergpu.node.client import CoordinatorClient
from hypergpu.node.credentials import Credentials
from hypergpu.node.worker import Worker
from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.tasks import FlatModel, Task, build

LEDGER = Signer("hypergpu/0123456789ab", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass
class FakeCoordinator:
    """Hands out `orders` one after the other, takes updates in, and says that the run is over."""

    model: FlatModel
    orders: list[pb.WorkOrder]
    task: str = "digits"
    seed: int = 0
    directives: list[int] = field(default_factory=list)
    corrupt_pulls: int = 0
    break_push_after: list[int] = field(default_factory=list)
    """Chunks after which each push, in turn, breaks."""
    reply_lost: int = 0
    """Pushes whose update is taken and whose answer is lost."""
    run_id: str = "run-1"
    calls: list[str] = field(default_factory=list)
    node_ids: set[str] = field(default_factory=set)
    received: list[tuple[int, int, int]] = field(default_factory=list)
    """Round, first byte and number of bytes of each push."""
    applied: dict[tuple[int, int], np.ndarray[tuple[int], np.dtype[np.float32]]] = field(default_factory=dict)
    returned: list[tuple[str, str]] = field(default_factory=list)
    largest_batches: list[int] = field(default_factory=list)
    step_times: list[pb.StepTimes | None] = field(default_factory=list)
    numerics: list[str] = field(default_factory=list)
    identities: list[pb.TaskIdentity | None] = field(default_factory=list)
    identity: pb.TaskIdentity | None = None
    left: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    fail: list[tuple[str, grpc.StatusCode]] = field(default_factory=list)
    """Calls that fail, once each, by name."""
    ledger: Signer = LEDGER
    """Key of its ledger."""
    checkpoints: list[pb.LedgerCheckpoint] = field(default_factory=list)
    """What the next heartbeats are shown of the ledger; nothing after the last."""
    ledger_sizes: list[int] = field(default_factory=list)
    """What heartbeats said that the node has seen of the ledger."""
    headers: list[pb.UpdateHeader] = field(default_factory=list)
    stays: bool = False
    """Whether the node is to wait for another run when this one is over."""
    keep_open: bool = False
    """Whether there is nothing more to do, rather than the run being over, after the last order."""

    async def start(self, listen: str = "127.0.0.1:0") -> str:
        """Serve; returns the address."""
        self._uploads: dict[tuple[int, int], Assembler] = {}
        self._server = grpc.aio.server(options=SERVER_OPTIONS)

        def plain(method: Any, request: Any, reply: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(
                method,
                request_deserializer=request.FromString,
                response_serializer=reply.SerializeToString,
            )

        handlers = {
            "Register": plain(self.register, pb.RegisterRequest, pb.RegisterReply),
            "Heartbeat": plain(self.heartbeat, pb.HeartbeatRequest, pb.HeartbeatReply),
            "GetUploadProgress": plain(self.progress, pb.WorkId, pb.UploadProgress),
            "ReturnWork": plain(self.return_work, pb.ReturnWorkRequest, pb.ReturnWorkReply),
            "Leave": plain(self.leave, pb.LeaveRequest, pb.LeaveReply),
            "PullWork": grpc.unary_stream_rpc_method_handler(
                self.pull, request_deserializer=pb.PullWorkRequest.FromString, response_serializer=encode_part
            ),
            "PushUpdate": grpc.stream_unary_rpc_method_handler(
                self.push,
                request_deserializer=decode_update_part,
                response_serializer=pb.PushUpdateReply.SerializeToString,
            ),
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("hypergpu.coordinator.v1.Training", handlers),)
        )
        address = bind(self._server, listen, None)
        await self._server.start()
        return address

    async def stop(self) -> None:
        await self._server.stop(None)

    def form(self, codec: str) -> PayloadFormat:
        """Format of the model's payloads."""
        parameters = self.model.parameter_count
        return PayloadFormat(find_codec(codec), parameters, self.model.manifest.size - parameters)

    async def _begin(self, name: str, context: Context) -> None:
        self.calls.append(name)
        self.node_ids.add(str(dict(context.invocation_metadata() or ()).get("x-node-id")))
        for trouble in self.fail:
            if trouble[0] == name:
                self.fail.remove(trouble)
                await context.abort(trouble[1], "as the test wants it")

    async def register(self, request: pb.RegisterRequest, context: Context) -> pb.RegisterReply:
        await self._begin("Register", context)
        self.largest_batches.append(request.largest_batch)
        self.numerics.append(request.numerics)
        self.step_times.append(request.step_times if request.HasField("step_times") else None)
        self.identities.append(request.identity if request.HasField("identity") else None)
        return pb.RegisterReply(
            node_id=request.node_id,
            run_id=self.run_id,
            task=self.task,
            seed=self.seed,
            heartbeat_seconds=0.05,
            manifest=manifest_to_proto(self.model.manifest),
            identity=self.identity,
            ledger_key=str(self.ledger.verifier),
        )

    async def heartbeat(self, request: pb.HeartbeatRequest, context: Context) -> pb.HeartbeatReply:
        await self._begin("Heartbeat", context)
        assert len(request.report) <= 1024
        self.states.append(request.state)
        directive = self.directives.pop(0) if self.directives else pb.HeartbeatReply.CONTINUE
        self.ledger_sizes.append(request.ledger_size)
        shown = self.checkpoints.pop(0) if self.checkpoints else pb.LedgerCheckpoint()
        return pb.HeartbeatReply(directive=directive, ledger=shown)  # type: ignore[arg-type]  # an int is what it is

    async def pull(self, request: pb.PullWorkRequest, context: Context) -> AsyncIterator[pb.WorkPart | Chunk]:
        await self._begin("PullWork", context)
        order = next((o for o in self.orders if (o.work.round, o.work.attempt) not in self.applied), None)
        if order is None:
            if self.keep_open:
                await asyncio.sleep(request.wait_seconds)
            else:
                yield pb.WorkPart(run_over=pb.RunOver(reason="done", stays=self.stays))
            return
        if not order.HasField("manifest"):
            order.manifest.CopyFrom(manifest_to_proto(self.model.manifest))
        for encoding in (order.update, order.parameters):
            if not encoding.payload_bytes:
                encoding.CopyFrom(encoding_to_proto(self.form(encoding.codec or "none")))
        yield pb.WorkPart(order=order)
        wrong = self.corrupt_pulls > 0
        self.corrupt_pulls -= wrong
        payload, _ = self.form(order.parameters.codec).encode(self.model.flat())
        for chunk in chunks(payload):
            yield Chunk(chunk.offset, chunk.data, chunk.crc32c ^ wrong)

    async def push(self, request: AsyncIterator[pb.UpdatePart | Chunk], context: Context) -> pb.PushUpdateReply:
        if any(call == "PushUpdate" for call, _ in self.fail):
            async for _ in request:  # a call that is refused while its sender writes may end with another error
                pass
        await self._begin("PushUpdate", context)
        breaks = self.break_push_after.pop(0) if self.break_push_after else None
        key, count, first = (0, 0), 0, -1
        async for part in request:
            if not isinstance(part, Chunk):
                key = (part.header.work.round, part.header.work.attempt)
                self.headers.append(part.header)
                if key in self.applied:
                    return pb.PushUpdateReply(outcome=pb.PushUpdateReply.DUPLICATE)
                form = self.form(part.header.encoding.codec)
                upload = self._uploads.setdefault(key, Assembler(np.empty(form.payload_bytes, np.uint8)))
                continue
            if breaks is not None and count >= breaks:
                self.received.append((key[0], first, upload.next_offset))
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the stream broke")
            first = part.offset if first < 0 else first
            upload.add(part)
            count += 1
        self.received.append((key[0], first, upload.next_offset))
        if not upload.complete:
            return pb.PushUpdateReply(outcome=pb.PushUpdateReply.INCOMPLETE, next_offset=upload.next_offset)
        self.applied[key] = np.empty(form.size, np.float32)
        form.decode(upload.payload, self.applied[key])
        if self.reply_lost > 0:
            self.reply_lost -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")
        return pb.PushUpdateReply(outcome=pb.PushUpdateReply.ACCEPTED)

    async def progress(self, request: pb.WorkId, context: Context) -> pb.UploadProgress:
        await self._begin("GetUploadProgress", context)
        key = (request.round, request.attempt)
        upload = self._uploads.get(key)
        return pb.UploadProgress(next_offset=upload.next_offset if upload else 0, accepted=key in self.applied)

    async def return_work(self, request: pb.ReturnWorkRequest, context: Context) -> pb.ReturnWorkReply:
        await self._begin("ReturnWork", context)
        self.returned.append((request.reason, request.detail))
        self.orders = [o for o in self.orders if o.work.round != request.work.round]
        return pb.ReturnWorkReply()

    async def leave(self, request: pb.LeaveRequest, context: Context) -> pb.LeaveReply:
        await self._begin("Leave", context)
        self.left.append(request.reason)
        return pb.LeaveReply()


X, Y = torch.randn(60, 16, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 4
TASK = Task(
    model=lambda: nn.Sequential(nn.Linear(16, 24_000), nn.ReLU(), nn.Linear(24_000, 10)), train=(X, Y), test=(X, Y)
)
"""2.6 MB: three chunks."""


@dataclass
class Cluster:
    """A fake coordinator and one agent."""

    fake: FakeCoordinator
    agent: Agent
    worker: Worker
    outcomes: list[str]

    async def run(self) -> None:
        await asyncio.wait_for(self.agent.run(), 20)


@asynccontextmanager
async def cluster(
    *orders: pb.WorkOrder, grace: float = 5.0, listen: bool = True, **fields: object
) -> AsyncIterator[Cluster]:
    fake = FakeCoordinator(build(TASK, 0), list(orders), **fields)  # type: ignore[arg-type]
    address = await fake.start()
    if not listen:
        await fake.stop()
    node = NodeConfig(grace_seconds=grace, backoff_base_seconds=0.02, backoff_cap_seconds=0.05, pull_wait_seconds=1.0)
    config = SystemConfig(node=node)
    worker = Worker("n1", "auto", config, task=TASK)
    outcomes: list[str] = []
    async with CoordinatorClient(address, Credentials("n1")) as client:
        yield Cluster(fake, Agent(client, worker, config, on_work=outcomes.append), worker, outcomes)
    await fake.stop()


@pytest.fixture(name="cluster")
def cluster_of_one() -> Any:
    """`async with cluster(order(1), fail=…) as c: await c.run()`."""
    return cluster
