"""Training service for nodes: decodes and checks requests, and answers them with the engine.

Nothing from a node is used before these checks:

1. the join token: `hypergpu.common.grpc_server.CallGuard`
2. the size of a message: `MAX_MESSAGE_BYTES` in `hypergpu.common.rpc`, as an option of the server
3. the type of a message: protobuf, or `hypergpu.common.wire` for the parts of an update
4. the sender: its lease by `Admission` in `callers` before a message is used, then `require_caller` for each message
5. the range of each field: `convert`
6. the run, the round and the assignment: `core.session`
7. the codec of an update, and the size of its payload: `core.session`, `require_payload_bytes`
8. the offset and checksum of a chunk: `Assembler` in `hypergpu.common.tensors`, with a bounded buffer from `uploads`
9. the bytes of a payload: its codec in `hypergpu.common.codecs`
10. the node's signature of the bytes and figures of an update: `receipts.checked_receipt`
11. finiteness and norm of an update: `engine.measure`, then `core.rounds.update_norms`; beside the others of its round,
    `core.rounds.suspicion`
"""

import asyncio
import dataclasses
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.message import Message

from hypergpu.common.byte_ranges import ByteRange
from hypergpu.common.clock import Clock, monotonic
from hypergpu.common.errors import CorruptData, InvalidInput, NonFiniteUpdate, ProtocolError, StaleWork, Unavailable
from hypergpu.common.grpc_server import Context, Handler, peer_host
from hypergpu.common.rpc import check_node_id
from hypergpu.common.tensors import Chunk
from hypergpu.common.tracing import TRACEPARENT, context_of
from hypergpu.common.transfer_meter import PAUSE_SECONDS, TransferMeter
from hypergpu.common.wire import decode_update_part, encode_part, manifest_from_proto, require_payload_bytes
from hypergpu.coordinator import convert
from hypergpu.coordinator.callers import TRAINING, caller, require_caller, shown_lease
from hypergpu.coordinator.core.leases import Leases
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.session import (
    AskParameters,
    AskProgress,
    Directive,
    Heartbeat,
    Leave,
    OfferUpdate,
    Pull,
    RejectUpdate,
    Return,
    Update,
)
from hypergpu.coordinator.downloads import Downloads, chosen_ranges, encoded
from hypergpu.coordinator.engine import Engine
from hypergpu.coordinator.receipts import checked_receipt, checkpoint_for
from hypergpu.coordinator.uploads import Upload, WorkKey
from hypergpu.protos import coordinator_pb2 as pb

LONGEST_WAIT_SECONDS = 60.0
_OUTCOMES = {
    ev.UpdateStatus.ACCEPTED: pb.PushUpdateReply.ACCEPTED,
    ev.UpdateStatus.DUPLICATE: pb.PushUpdateReply.DUPLICATE,
    ev.UpdateStatus.LATE: pb.PushUpdateReply.LATE,
    ev.UpdateStatus.REFUSED: pb.PushUpdateReply.REFUSED,
    ev.UpdateStatus.COMPARED: pb.PushUpdateReply.ACCEPTED,
}
_DIRECTIVES = {
    Directive.CONTINUE: pb.HeartbeatReply.CONTINUE,
    Directive.REGISTER_AGAIN: pb.HeartbeatReply.REGISTER_AGAIN,
    Directive.ABANDON_WORK: pb.HeartbeatReply.ABANDON_WORK,
    Directive.SHUT_DOWN: pb.HeartbeatReply.SHUT_DOWN,
}


class TrainingService:
    """Implementation of the Training service in coordinator.proto."""

    def __init__(
        self,
        engine: Engine,
        leases: Leases,
        heartbeat_seconds: float,
        max_model_bytes: int,
        clock: Clock = monotonic,
        *,
        require_receipts: bool = False,
    ) -> None:
        self._engine, self._leases = engine, leases
        self._heartbeat_seconds = heartbeat_seconds
        self._max_model_bytes = max_model_bytes
        self._require_receipts = require_receipts
        self._clock = clock
        self._downloads = Downloads()
        self._finishing: dict[tuple[str, WorkKey], asyncio.Task[pb.PushUpdateReply]] = {}
        """Complete updates that are being checked and counted."""

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the gRPC handlers. Chunks bypass protobuf; all other messages use it."""

        def plain(method: Callable[..., Any], request: type[Message], reply: type[Message]) -> Handler:
            return grpc.unary_unary_rpc_method_handler(
                method, request_deserializer=request.FromString, response_serializer=reply.SerializeToString
            )

        return grpc.method_handlers_generic_handler(
            TRAINING,
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
                "PullParameters": grpc.unary_stream_rpc_method_handler(
                    self.pull_parameters,
                    request_deserializer=pb.PullParametersRequest.FromString,
                    response_serializer=lambda part: part,
                ),
                "PushUpdate": grpc.stream_unary_rpc_method_handler(
                    self._traced_push if self._engine.traces.tracer.is_on else self.push_update,
                    # A malformed message is handled in the handler, which can explain the error to the sender.
                    request_deserializer=lambda data: data,
                    response_serializer=pb.PushUpdateReply.SerializeToString,
                ),
            },
        )

    async def register(self, request: pb.RegisterRequest, context: Context) -> pb.RegisterReply:
        """Register a node, or resume its membership."""
        name = request.node_id or caller(context) or self._engine.session.free_name()
        require_caller(context, check_node_id(name))
        if self._require_receipts and not request.key:
            raise InvalidInput(f"{name} announces no key: receipts have to be signed (server.require_receipts)")
        registration = convert.registration(request, name, peer_host(context), shown_lease(context))
        self._engine.ask(registration)
        lease = self._leases.secret(name, registration.incarnation)
        return convert.register_reply(name, lease, self._engine, self._heartbeat_seconds)

    async def heartbeat(self, request: pb.HeartbeatRequest, context: Context) -> pb.HeartbeatReply:
        """Record a heartbeat."""
        engine, node = self._engine, request.node_id
        require_caller(context, check_node_id(node))
        report = convert.report(request.report)
        state = convert.text(request.state, "state")
        directive = engine.ask(Heartbeat(node, request.run_id, state, request.rtt_ms, request.loaded, report))
        return pb.HeartbeatReply(
            directive=_DIRECTIVES[directive],
            contested_by=self._leases.take_contest(node),
            ledger=checkpoint_for(engine.ledger, request.ledger_size),
        )

    async def pull_work(self, request: pb.PullWorkRequest, context: Context) -> AsyncIterator[pb.WorkPart | bytes]:
        """Wait for work, and stream the work order and the parameters."""
        engine, node = self._engine, request.node_id
        require_caller(context, check_node_id(node))
        if not 0 <= request.wait_seconds < math.inf:
            raise InvalidInput(f"wait_seconds is {request.wait_seconds}; expected 0 to {LONGEST_WAIT_SECONDS:g}")
        wait_seconds = min(request.wait_seconds, LONGEST_WAIT_SECONDS)
        engine.downloaded(node, convert.download(request))
        assign = await engine.next_order(Pull(node, request.run_id), wait_seconds)
        if assign is None:
            return
        if isinstance(assign, ev.RunOver):
            yield pb.WorkPart(run_over=pb.RunOver(reason=str(engine.state), stays=engine.stays))
            return
        if context_of_unit := engine.traces.context_of(node):
            await context.send_initial_metadata(((TRACEPARENT, context_of_unit),))
        began, sent_all = self._clock(), False
        connections = assign.connections.down
        sending = engine.broadcast.plan(assign.codecs.parameters, convert.held(request), assign.kept_parameters)
        nbytes = engine.model.payload_format(sending.codec, sending.fragments).payload_bytes
        download = self._downloads.begin(node, (assign.round, assign.attempt), sending, nbytes, connections)
        try:
            parts = download.parts = await engine.broadcast.parts(assign.round, sending)
            engine.begin_download(node)
            yield pb.WorkPart(order=convert.order(assign, sending, engine, engine.now))
            with self._downloads.streaming(node):
                async for part in self._parameters(node, assign.round, parts, download.take):
                    yield part
            sent_all = True
            download.parts = None
        except StaleWork:
            sent_all = True  # stopped by the coordinator: no failure of the link
            raise
        finally:
            # A node that has all chunks ends the streams that it does not need.
            if not sent_all and (connections == 1 or download.waiting):
                engine.communication(node, 1000.0 * (self._clock() - began), success=False)

    async def pull_parameters(self, request: pb.PullParametersRequest, context: Context) -> AsyncIterator[bytes]:
        """Stream more chunks of the parameters of an assigned work unit: those that are left, or certain ranges."""
        engine, node = self._engine, request.work.node_id
        require_caller(context, check_node_id(node))
        work = request.work.round, request.work.attempt
        engine.ask(AskParameters(node, request.work.run_id, *work))
        download = self._downloads.join(node, work)
        if request.ranges:
            wanted = chosen_ranges([(each.start, each.end) for each in request.ranges], download.nbytes)
            download = dataclasses.replace(download, waiting=wanted)
        parts = download.parts or await engine.broadcast.parts(request.work.round, download.sending)
        with self._downloads.streaming(node):
            async for part in self._parameters(node, request.work.round, parts, download.take):
                yield part

    async def _parameters(
        self, node: str, round_number: int, parts: Sequence[bytes] | None, take: Callable[[], ByteRange | None]
    ) -> AsyncIterator[bytes]:
        """Yield the chunks that `take` returns, until it returns None.

        Raises:
            StaleWork: The round has closed.
        """
        engine = self._engine
        while (piece := take() if parts else None) is not None and parts:
            if not (engine.broadcast.is_current(round_number) or engine.machine.is_late(node, round_number)):
                raise StaleWork(f"round {round_number} closed while its parameters were sent")
            part = encoded(parts, piece)
            yield part
            engine.sent(node, len(part))
        if parts is None:
            raise StaleWork(f"round {round_number} closed before its parameters were sent")

    async def push_update(self, request: AsyncIterator[bytes], context: Context) -> pb.PushUpdateReply:
        """Receive an update. Data of a broken stream is kept; a duplicate is acknowledged but not applied."""
        engine = self._engine
        header = await self._header(request)
        work = header.work
        require_caller(context, check_node_id(work.node_id))
        event = convert.arrived(header)
        engine.downloaded(event.node, convert.download(header))
        if header.figures_follow and not engine.session.needs_update(event.node, event.round):
            return _too_late(event)
        work_key, announced = (event.round, event.attempt), convert.announced(header)
        finishing = self._finishing.get((event.node, work_key))
        if finishing is not None:  # its sender does not know yet that it came whole
            await asyncio.wait((finishing,))
        reply = engine.ask(OfferUpdate(work.run_id, event))
        if reply is not None:
            return _to_proto(reply)
        engine.model.manifest.require_same(manifest_from_proto(header.manifest, self._max_model_bytes))
        form = engine.model.update_format(event.codec, event.round)
        require_payload_bytes(header.encoding, form)
        stream = object()
        began = self._clock()
        upload = await engine.uploads.open(event.node, work_key, stream, form.payload_bytes, announced=announced)
        try:
            wanted = await self._receive(request, upload, stream, event, began)
        except (ProtocolError, NonFiniteUpdate) as error:
            engine.uploads.close(upload)
            self._engine.metrics.rejected.labels(type(error).__name__).inc()
            self._engine.ask(RejectUpdate(event, error))
            raise
        except (StaleWork, Unavailable):  # the upload lost its buffer: no failure of the link
            raise
        except BaseException:  # cancelled, corrupt or disconnected: keep the data for resumption
            engine.uploads.suspend(upload, stream)
            if not upload.is_taken:  # else another stream has brought the outcome
                engine.communication(event.node, 1000.0 * (self._clock() - began), success=False)
            raise
        if header.figures_follow:
            return self._end_ahead(event, upload, stream, wanted)
        return await self._end_stream(event, upload, stream, wanted, header)

    async def get_upload_progress(self, request: pb.WorkId, context: Context) -> pb.UploadProgress:
        """Return the number of bytes received of an update."""
        engine, node = self._engine, request.node_id
        require_caller(context, check_node_id(node))
        accepted = engine.ask(AskProgress(node, request.run_id, request.round))
        key = request.round, request.attempt
        held, announced = engine.uploads.progress(node, key), engine.uploads.checksum_of(node, key)
        if accepted:
            return pb.UploadProgress(accepted=True)
        if held is None:
            return pb.UploadProgress()
        missing = [pb.ByteRange(start=part.start, end=part.end) for part in held.missing]
        return pb.UploadProgress(next_offset=held.next_offset, missing=missing, payload_crc32c=announced)

    async def return_work(self, request: pb.ReturnWorkRequest, context: Context) -> pb.ReturnWorkReply:
        """Record that a node abandons its work unit."""
        work = request.work
        require_caller(context, check_node_id(work.node_id))
        reason = convert.text(request.reason, "reason")
        detail = convert.text(request.detail[: convert.MAX_TEXT], "detail")
        self._engine.ask(Return(work.node_id, work.run_id, work.round, work.attempt, reason, detail))
        self._engine.metrics.returned(reason)
        return pb.ReturnWorkReply()

    async def leave(self, request: pb.LeaveRequest, context: Context) -> pb.LeaveReply:
        """Record that a node leaves the run."""
        require_caller(context, check_node_id(request.node_id))
        self._engine.ask(Leave(request.node_id, request.run_id, convert.text(request.reason, "reason")))
        return pb.LeaveReply()

    # ------------------------------------------------------------ the steps of an upload

    async def _traced_push(self, request: AsyncIterator[bytes], context: Context) -> pb.PushUpdateReply:
        """Receive an update, as a span below the node's upload."""
        with self._engine.traces.tracer.span("receive", context_of(context.invocation_metadata())):
            return await self.push_update(request, context)

    @staticmethod
    async def _header(request: AsyncIterator[bytes]) -> pb.UpdateHeader:
        async for data in request:
            part = decode_update_part(data)
            if isinstance(part, Chunk) or part.WhichOneof("part") != "header":
                break
            return part.header
        raise ProtocolError("an update begins with its header")

    async def _receive(
        self,
        request: AsyncIterator[bytes],
        upload: Upload,
        stream: object,
        event: ev.UpdateArrived,
        began: float,
    ) -> bool:
        """Receive the chunks, and measure their rate; return False as soon as no more of the update is needed."""
        engine = self._engine
        # While there was no buffer for the chunks, nothing was read, and flow control may have stopped the sender.
        meter = upload.meter = upload.meter or TransferMeter(began if self._clock() - began < PAUSE_SECONDS else None)
        try:
            async for data in request:
                arrived_at = self._clock()
                part = decode_update_part(data)
                if not isinstance(part, Chunk):
                    raise ProtocolError("after the header of an update there are chunks only")
                if upload.is_taken or not engine.session.needs_update(event.node, event.round):
                    return False
                engine.uploads.require_current(upload, stream)
                added = upload.assembler.add(part)
                meter.piece(added, arrived_at, connection=id(stream))
                engine.received(event.node, added)
        finally:
            if upload.assembler.complete or len(upload.streams) <= 1:
                engine.uploaded(event.node, upload.take_measurement())
        if not upload.is_taken:
            engine.uploads.require_current(upload, stream)
        return True

    def _end_ahead(self, event: ev.UpdateArrived, upload: Upload, stream: object, wanted: bool) -> pb.PushUpdateReply:
        """Keep an upload, complete or not, until its figures come; they bring the outcome."""
        if not wanted:
            self._engine.uploads.close(upload)
            return _too_late(event)
        self._engine.uploads.suspend(upload, stream)
        if upload.assembler.complete:
            return pb.PushUpdateReply(outcome=pb.PushUpdateReply.RECEIVED, next_offset=upload.assembler.next_offset)
        return _incomplete(upload)

    async def _end_stream(
        self, event: ev.UpdateArrived, upload: Upload, stream: object, wanted: bool, header: pb.UpdateHeader
    ) -> pb.PushUpdateReply:
        """Return the reply to a stream: the outcome, or that others may still send chunks."""
        engine = self._engine
        if not upload.is_taken and not wanted:
            upload.is_taken = True
            received = upload.assembler.received / max(upload.payload.nbytes, 1)
            engine.uploads.close(upload)
            return _to_proto(engine.ask(Update(dataclasses.replace(event, received_share=received))))
        if not upload.is_taken and upload.assembler.complete:
            upload.is_taken = True
            finishing = asyncio.create_task(self._finish_upload(event, upload, header))
            key = upload.node, upload.work
            self._finishing[key] = finishing
            finishing.add_done_callback(lambda done: self._on_finished(key, done))
            return await asyncio.shield(finishing)  # an update that came whole counts, even if its stream breaks now
        engine.uploads.suspend(upload, stream)
        return _incomplete(upload)

    async def _finish_upload(
        self, event: ev.UpdateArrived, upload: Upload, header: pb.UpdateHeader
    ) -> pb.PushUpdateReply:
        engine = self._engine
        engine.uploads.detach(upload)
        if not await asyncio.to_thread(lambda: upload.is_as_announced):
            engine.uploads.recycle(upload)
            engine.metrics.rejected.labels(CorruptData.__name__).inc()
            raise CorruptData(f"the update of {event.node} does not match its checksum; send it again")
        try:
            receipt = await self._receipt(header, upload)
            norm, sketch = await engine.measure(upload.payload, event.codec, event.round)
        except ProtocolError as error:  # it is not what the node has signed, or not what the codec writes
            engine.uploads.recycle(upload)
            engine.metrics.rejected.labels(type(error).__name__).inc()
            engine.ask(RejectUpdate(event, error))
            raise
        try:
            whole = dataclasses.replace(event, norm=norm, sketch=sketch, receipt=receipt)
            return _to_proto(engine.accept_update(whole, upload))
        except NonFiniteUpdate as error:
            engine.metrics.rejected.labels(type(error).__name__).inc()
            raise

    async def _receipt(self, header: pb.UpdateHeader, upload: Upload) -> Mapping[str, Any]:
        member = self._engine.machine.members.get(upload.node)
        key = bytes.fromhex(member.info.get("key", "")) if member is not None else b""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, checked_receipt, header, upload.payload, key)

    def _on_finished(self, key: tuple[str, WorkKey], finishing: asyncio.Task[pb.PushUpdateReply]) -> None:
        if self._finishing.get(key) is finishing:
            del self._finishing[key]
        if not finishing.cancelled():
            finishing.exception()  # its stream may be gone: nobody else asks


def _incomplete(upload: Upload) -> pb.PushUpdateReply:
    assembler = upload.assembler
    detail = f"{assembler.received} of {len(upload.payload)} bytes are here"
    return pb.PushUpdateReply(outcome=pb.PushUpdateReply.INCOMPLETE, detail=detail, next_offset=assembler.next_offset)


def _too_late(event: ev.UpdateArrived) -> pb.PushUpdateReply:
    """Return the reply to an update that is no longer needed, and whose figures did not come; it is not on record."""
    return pb.PushUpdateReply(outcome=pb.PushUpdateReply.LATE, detail=f"round {event.round} is over")


def _to_proto(reply: ev.UpdateReply) -> pb.PushUpdateReply:
    return pb.PushUpdateReply(outcome=_OUTCOMES[reply.status], detail=reply.detail)
