"""The service for nodes: decode, check, ask the engine, answer."""

import dataclasses
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from hypergpu.common.clock import Clock, monotonic
from hypergpu.common.errors import HyperGPUError, InvalidInput, NonFiniteUpdate, ProtocolError, StaleWork, Unavailable
from hypergpu.common.grpc_server import Context, Handler
from hypergpu.common.identity import ADVICE, differences
from hypergpu.common.rpc import check_node_id
from hypergpu.common.tensors import Chunk
from hypergpu.common.wire import decode_update_part, encode_part, identity_from_proto, manifest_from_proto
from hypergpu.coordinator import convert
from hypergpu.coordinator.callers import caller, peer_host, require_caller
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.engine import Engine
from hypergpu.coordinator.uploads import Upload
from hypergpu.protos import coordinator_pb2 as pb

SERVICE = "hypergpu.coordinator.v1.Training"
LONGEST_WAIT_SECONDS = 60.0
_BUSY = frozenset({"pulling", "training", "pushing"})
_OUTCOMES = {
    ev.UpdateStatus.ACCEPTED: pb.PushUpdateReply.ACCEPTED,
    ev.UpdateStatus.DUPLICATE: pb.PushUpdateReply.DUPLICATE,
    ev.UpdateStatus.LATE: pb.PushUpdateReply.LATE,
    ev.UpdateStatus.REFUSED: pb.PushUpdateReply.REFUSED,
}
_Directive = pb.HeartbeatReply


class TrainingService:
    """The Training service of coordinator.proto."""

    def __init__(
        self, engine: Engine, heartbeat_seconds: float, max_model_bytes: int, clock: Clock = monotonic
    ) -> None:
        self._engine = engine
        self._heartbeat_seconds = heartbeat_seconds
        self._max_model_bytes = max_model_bytes
        self._clock = clock
        self._named = 0

    def handler(self) -> grpc.GenericRpcHandler:
        """What a server serves. Chunks go around protobuf, the rest through it."""

        def plain(method: Callable[..., Any], request: type[Message], reply: type[Message]) -> Handler:
            return grpc.unary_unary_rpc_method_handler(
                method, request_deserializer=request.FromString, response_serializer=reply.SerializeToString
            )

        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Register": plain(self.register, pb.RegisterRequest, pb.RegisterReply),
                "Heartbeat": plain(self.heartbeat, pb.HeartbeatRequest, pb.HeartbeatReply),
                "GetUploadProgress": plain(self.get_upload_progress, pb.WorkId, pb.UploadProgress),
                "ReturnWork": plain(self.return_work, pb.ReturnWorkRequest, pb.ReturnWorkReply),
                "Leave": plain(self.leave, pb.LeaveRequest, pb.LeaveReply),
                "PullWork": grpc.unary_stream_rpc_method_handler(
                    self.pull_work,
                    request_deserializer=pb.PullWorkRequest.FromString,
                    response_serializer=lambda part: part if isinstance(part, bytes) else encode_part(part),
                ),
                "PushUpdate": grpc.stream_unary_rpc_method_handler(
                    self.push_update,
                    # A sender's malformed message is answered in the handler, where it can be told what is wrong.
                    request_deserializer=lambda data: data,
                    response_serializer=pb.PushUpdateReply.SerializeToString,
                ),
            },
        )

    async def register(self, request: pb.RegisterRequest, context: Context) -> pb.RegisterReply:
        """Join the run, or resume the membership."""
        name = request.node_id or caller(context) or self._free_name()
        require_caller(context, check_node_id(name))
        self._require_same_task(name, request)
        self._engine.join(convert.joined(request, name, peer_host(context)))
        return convert.register_reply(name, self._engine, self._heartbeat_seconds)

    async def heartbeat(self, request: pb.HeartbeatRequest, context: Context) -> pb.HeartbeatReply:
        """A sign of life."""
        engine, node = self._engine, request.node_id
        require_caller(context, check_node_id(node))
        report = convert.report(request.report)
        state = convert.text(request.state, "state")
        if request.run_id != engine.run_id or node not in engine.machine.members.connected:
            return pb.HeartbeatReply(directive=_Directive.REGISTER_AGAIN)
        engine.heard(node, report, request.rtt_ms)
        if engine.machine.finished and not engine.stays:
            return pb.HeartbeatReply(directive=_Directive.SHUT_DOWN)
        if state in _BUSY and node in engine.machine.members.stragglers:
            return pb.HeartbeatReply(directive=_Directive.ABANDON_WORK)
        return pb.HeartbeatReply(directive=_Directive.CONTINUE)

    async def pull_work(self, request: pb.PullWorkRequest, context: Context) -> AsyncIterator[pb.WorkPart | bytes]:
        """The next order and the parameters, as soon as there is work."""
        engine, node = self._engine, request.node_id
        require_caller(context, check_node_id(node))
        self._require_member(node, request.run_id)
        if not 0 <= request.wait_seconds < math.inf:
            raise InvalidInput(f"wait_seconds is {request.wait_seconds}; expected 0 to {LONGEST_WAIT_SECONDS:g}")
        assign = await engine.next_order(node, min(request.wait_seconds, LONGEST_WAIT_SECONDS))
        if assign is None:
            return
        if isinstance(assign, ev.RunOver):
            yield pb.WorkPart(run_over=pb.RunOver(reason=str(engine.machine.state), stays=engine.stays))
            return
        began, sent_all = self._clock(), False
        try:
            parts = await engine.parts(assign.round)
            yield pb.WorkPart(order=convert.order(assign, engine.run_id, engine, engine.now))
            for part in parts or ():
                if not engine.is_current(assign.round):
                    raise StaleWork(f"round {assign.round} closed while its parameters were sent")
                yield part
                engine.metrics.sent.inc(len(part))
            sent_all = parts is not None
            if not sent_all:
                raise StaleWork(f"round {assign.round} closed before its parameters were sent")
        except StaleWork:
            sent_all = True  # our doing, not the link's
            raise
        finally:
            if not sent_all:
                engine.communication(node, 1000.0 * (self._clock() - began), success=False)

    async def push_update(self, request: AsyncIterator[bytes], context: Context) -> pb.PushUpdateReply:
        """Take an update in; a broken stream keeps what it brought, a replay is acknowledged and not applied."""
        engine = self._engine
        header = await self._header(request)
        work = header.work
        require_caller(context, check_node_id(work.node_id))
        self._require_run(work.run_id)
        event = convert.arrived(header)
        known = engine.machine.update_status(event.node, event.round)
        if known is not None:
            return self._answer(engine.refuse(event))
        engine.model.manifest.require_same(manifest_from_proto(header.manifest, self._max_model_bytes))
        stream = object()
        upload = await engine.uploads.open(event.node, (event.round, event.attempt), stream)
        began = self._clock()
        try:
            wanted = await self._receive(request, upload, stream, event)
        except (ProtocolError, NonFiniteUpdate) as error:
            engine.uploads.close(upload)
            self._reject(event, error)
            raise
        except (StaleWork, Unavailable):  # its buffer is another's: our doing, not the link's
            raise
        except BaseException:  # cancelled, corrupt, or the connection broke: kept for a resumption
            engine.uploads.suspend(upload, stream)
            engine.communication(event.node, 1000.0 * (self._clock() - began), success=False)
            raise
        if not wanted:
            engine.uploads.close(upload)
            return self._answer(engine.refuse(event))
        if not upload.assembler.complete:
            engine.uploads.suspend(upload, stream)
            held = upload.assembler.next_offset
            return pb.PushUpdateReply(
                outcome=pb.PushUpdateReply.INCOMPLETE,
                detail=f"{held} of {engine.model.manifest.total_bytes} bytes are here",
                next_offset=held,
            )
        return await self._conclude(event, upload)

    async def get_upload_progress(self, request: pb.WorkId, context: Context) -> pb.UploadProgress:
        """How much of an update is held."""
        engine, node = self._engine, request.node_id
        require_caller(context, check_node_id(node))
        self._require_run(request.run_id)
        accepted = engine.machine.update_status(node, request.round) is ev.UpdateStatus.DUPLICATE
        held = engine.uploads.progress(node, (request.round, request.attempt))
        return pb.UploadProgress(next_offset=engine.model.manifest.total_bytes if accepted else held, accepted=accepted)

    async def return_work(self, request: pb.ReturnWorkRequest, context: Context) -> pb.ReturnWorkReply:
        """A node gives its work up."""
        work = request.work
        require_caller(context, check_node_id(work.node_id))
        self._require_run(work.run_id)
        reason, detail = convert.text(request.reason, "reason"), request.detail[: convert.MAX_TEXT]
        self._engine.metrics.returned(reason)
        self._engine.dispatch(ev.WorkReturned(work.node_id, work.round, reason, convert.text(detail, "detail")))
        return pb.ReturnWorkReply()

    async def leave(self, request: pb.LeaveRequest, context: Context) -> pb.LeaveReply:
        """A node says good-bye."""
        require_caller(context, check_node_id(request.node_id))
        self._require_run(request.run_id)
        self._engine.dispatch(ev.NodeLeft(request.node_id, convert.text(request.reason, "reason")))
        return pb.LeaveReply()

    # ------------------------------------------------------------ the steps of an upload

    @staticmethod
    async def _header(request: AsyncIterator[bytes]) -> pb.UpdateHeader:
        async for data in request:
            part = decode_update_part(data)
            if isinstance(part, Chunk) or part.WhichOneof("part") != "header":
                break
            return part.header
        raise ProtocolError("an update begins with its header")

    async def _receive(
        self, request: AsyncIterator[bytes], upload: Upload, stream: object, event: ev.UpdateArrived
    ) -> bool:
        """Take the chunks in; False as soon as nobody wants the update any more."""
        engine = self._engine
        async for data in request:
            part = decode_update_part(data)
            if not isinstance(part, Chunk):
                raise ProtocolError("after the header of an update there are chunks only")
            if engine.machine.update_status(event.node, event.round) is not None:
                return False
            engine.uploads.require_current(upload, stream)
            upload.assembler.add(part)
            engine.seen(event.node)  # its heartbeats may wait behind what it sends
            engine.metrics.received.inc(len(part.data))
        engine.uploads.require_current(upload, stream)
        return True

    async def _conclude(self, event: ev.UpdateArrived, upload: Upload) -> pb.PushUpdateReply:
        engine = self._engine
        update = engine.uploads.detach(upload)
        norm = await engine.norm(update)
        if not math.isfinite(event.loss) or not math.isfinite(norm):
            engine.uploads.recycle(update)
            error = NonFiniteUpdate(f"the update of {event.node} for round {event.round} holds NaN or infinity")
            self._reject(event, error)
            raise error
        return self._answer(engine.take(dataclasses.replace(event, norm=norm), update))

    def _reject(self, event: ev.UpdateArrived, error: HyperGPUError) -> None:
        kind = type(error).__name__
        self._engine.metrics.rejected.labels(kind).inc()
        self._engine.dispatch(ev.WorkReturned(event.node, event.round, kind, str(error)[: convert.MAX_TEXT]))

    @staticmethod
    def _answer(verdict: ev.UpdateReply) -> pb.PushUpdateReply:
        if verdict.status is ev.UpdateStatus.STALE:
            raise StaleWork(f"nobody ordered this update: {verdict.detail}")
        return pb.PushUpdateReply(outcome=_OUTCOMES[verdict.status], detail=verdict.detail)

    # ------------------------------------------------------------ checks

    def _require_run(self, run_id: str) -> None:
        if run_id != self._engine.run_id:
            raise StaleWork(
                f"run {run_id[:80]!r} is not the one that runs here ({self._engine.run_id!r}): register again"
            )

    def _require_member(self, node: str, run_id: str) -> None:
        self._require_run(run_id)
        if node not in self._engine.machine.members.connected:
            raise StaleWork(f"node {node!r} is not registered any more: register again")
        if self._engine.identity is not None and not self._engine.machine.members.require(node).has_same_task:
            raise StaleWork(f"node {node!r} registered without the identity of its task: register again, with it")

    def _require_same_task(self, name: str, request: pb.RegisterRequest) -> None:
        own = self._engine.identity
        if own is None or not request.HasField("identity"):
            return  # it does not know the task yet, and registers again once it does
        found = differences(own, identity_from_proto(request.identity))
        if found:
            raise InvalidInput(
                f"the task of {name} is another one than the coordinator's: {'; '.join(found[:4])}. {ADVICE}"
            )

    def _free_name(self) -> str:
        while True:
            self._named += 1
            name = f"node_{self._named}"
            if self._engine.machine.members.get(name) is None:
                return name
