"""A node's calls to its coordinator, with the metadata of the node and typed errors."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Self, TypeVar

import grpc

from hypergpu.common.errors import CorruptData, DeadlineExceeded, ProtocolError, Unavailable
from hypergpu.common.rpc import explain_failure, metadata_for, open_channel
from hypergpu.common.tensors import Assembler, Chunk, Flat, Manifest, chunks
from hypergpu.common.tls import Tls
from hypergpu.common.wire import (
    codec_from_proto,
    decode_work_part,
    encode_part,
    encoding_to_proto,
    manifest_from_proto,
    manifest_to_proto,
    require_payload_bytes,
)
from hypergpu.node.core.gpu import GPUSpecs
from hypergpu.node.core.held_parameters import HeldParameters
from hypergpu.node.core.update_encoder import EncodedUpdate
from hypergpu.node.download_meter import DownloadMeter
from hypergpu.node.trainer import Update
from hypergpu.protos import coordinator_pb2 as pb

_SERVICE = "/hypergpu.coordinator.v1.Training/"
UNARY_SECONDS = 15.0
"""Timeout of a small call; far above the round trip of any link."""
STALL_SECONDS = 30.0
"""Time without a part after which a stream counts as broken. Keepalive detects a dead peer sooner."""

Reply = TypeVar("Reply")


@dataclass(frozen=True, slots=True)
class Work:
    """Work unit as assigned, with its parameters."""

    order: pb.WorkOrder
    parameters: Flat

    @property
    def id(self) -> pb.WorkId:
        """Run, round, node and attempt."""
        return self.order.work


@dataclass(frozen=True, slots=True)
class RunOver:
    """End of the run."""

    reason: str
    stays: bool = False
    """True if the coordinator stays and may start another run."""


class CoordinatorClient:
    """Calls of one node to its coordinator, directly or through a proxy; every call carries the node's name.

    Use it as an async context manager. Every method raises only errors of `hypergpu.common.errors`; a retry may help
    after `Unavailable`, `DeadlineExceeded` and `CorruptData`.
    """

    def __init__(
        self,
        address: str,
        node_id: str,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        http_proxy: bool = False,
    ) -> None:
        self.address, self.node_id = address, node_id
        self.bytes_sent = 0
        self.downloads = DownloadMeter()
        self._metadata = metadata_for(node_id, token)
        self._tls, self._http_proxy = tls, http_proxy

    async def __aenter__(self) -> Self:
        self._channel = open_channel(self.address, self._tls, http_proxy=self._http_proxy)
        channel = self._channel
        self._register = channel.unary_unary(
            _SERVICE + "Register", pb.RegisterRequest.SerializeToString, pb.RegisterReply.FromString
        )
        self._heartbeat = channel.unary_unary(
            _SERVICE + "Heartbeat", pb.HeartbeatRequest.SerializeToString, pb.HeartbeatReply.FromString
        )
        self._progress = channel.unary_unary(
            _SERVICE + "GetUploadProgress", pb.WorkId.SerializeToString, pb.UploadProgress.FromString
        )
        self._return = channel.unary_unary(
            _SERVICE + "ReturnWork", pb.ReturnWorkRequest.SerializeToString, pb.ReturnWorkReply.FromString
        )
        self._leave = channel.unary_unary(
            _SERVICE + "Leave", pb.LeaveRequest.SerializeToString, pb.LeaveReply.FromString
        )
        self._pull = channel.unary_stream(_SERVICE + "PullWork", pb.PullWorkRequest.SerializeToString, bytes)
        self._push = channel.stream_unary(_SERVICE + "PushUpdate", encode_part, pb.PushUpdateReply.FromString)
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._channel.close()

    async def register(self, request: pb.RegisterRequest) -> pb.RegisterReply:
        """Register with the run."""
        return await self._call(self._register, request)

    async def heartbeat(
        self, request: pb.HeartbeatRequest, timeout_seconds: float = UNARY_SECONDS
    ) -> pb.HeartbeatReply:
        """Report that the node is alive; return the coordinator's reply, with its directive."""
        return await self._call(self._heartbeat, request, timeout_seconds)

    async def upload_progress(self, work: pb.WorkId) -> pb.UploadProgress:
        """Return how much of an update the coordinator holds."""
        return await self._call(self._progress, work)

    async def return_work(
        self, work: pb.WorkId, reason: str, detail: str, timeout_seconds: float = UNARY_SECONDS
    ) -> None:
        """Return a work unit."""
        request = pb.ReturnWorkRequest(work=work, reason=reason, detail=detail[:400])
        await self._call(self._return, request, timeout_seconds)

    async def leave(self, run_id: str, reason: str, timeout_seconds: float = UNARY_SECONDS) -> None:
        """Leave the run."""
        await self._call(
            self._leave, pb.LeaveRequest(node_id=self.node_id, run_id=run_id, reason=reason), timeout_seconds
        )

    async def pull(
        self, run_id: str, wait_seconds: float, held: HeldParameters, on_order: Callable[[Work], None]
    ) -> Work | RunOver | None:
        """Return the next work unit; None if there was none within `wait_seconds`.

        The payload of its parameters is in the buffer of `held.begin`, for `held.finish`.

        Args:
            run_id: id of the registered run.
            wait_seconds: how long the coordinator may hold the call.
            held: parameters of the model that the node holds.
            on_order: called when the order has arrived, before its parameters.

        Raises:
            ProtocolError: parts in the wrong order, or parameters of another model.
            CorruptData: a chunk that does not match its checksum, or a stream that ended early.
        """
        report = self.downloads.take_report()
        request = pb.PullWorkRequest(node_id=self.node_id, run_id=run_id, wait_seconds=wait_seconds, download=report)
        request.parameters_version = held.version
        call = self._pull(request, metadata=self._metadata)
        work: Work | None = None
        assembler: Assembler | None = None
        try:
            while True:
                patience = STALL_SECONDS + (wait_seconds if work is None else 0)
                data = await asyncio.wait_for(call.read(), patience)
                if not isinstance(data, bytes):  # grpc.aio.EOF
                    break
                arrived_at = self.downloads.arrived(data)
                part = decode_work_part(data)
                if isinstance(part, Chunk):
                    if assembler is None:
                        raise ProtocolError(f"{self.address}: parameters arrived before their order")
                    assembler.add(part)
                    self.downloads.chunk(len(part.data), arrived_at)
                elif part.WhichOneof("part") == "run_over":
                    return RunOver(part.run_over.reason, part.run_over.stays)
                elif work is None and part.WhichOneof("part") == "order":
                    work = Work(part.order, held.flat)
                    on_order(work)
                    assembler = _assembler_of(part.order, held)
                    self.downloads.begin(arrived_at)
                else:
                    raise ProtocolError(f"{self.address}: expected one order")
        except grpc.RpcError as error:
            raise await explain_failure(error, self.address, self._tls) from error
        except TimeoutError as error:
            raise DeadlineExceeded(f"{self.address}: nothing arrived for {patience:g} s") from error
        finally:
            call.cancel()
        if assembler is not None and not assembler.complete:
            raise CorruptData(f"{self.address}: the parameters ended after {assembler.next_offset} bytes")
        return work

    async def push(
        self,
        work: Work,
        manifest: Manifest,
        update: Update,
        encoded: EncodedUpdate,
        offset: int,
        *,
        timeout_seconds: float,
    ) -> pb.PushUpdateReply:
        """Send an update from byte `offset` of its payload on.

        Raises:
            Unavailable: the coordinator keeps what arrived, but does not have all of it yet.
        """
        reply = await self._call_push(self._parts(work, manifest, update, encoded, offset), timeout_seconds)
        if reply.outcome == pb.PushUpdateReply.INCOMPLETE:
            raise Unavailable(f"{self.address}: the update is incomplete: {reply.detail}")
        return reply

    async def _parts(
        self, work: Work, manifest: Manifest, update: Update, encoded: EncodedUpdate, start: int
    ) -> AsyncIterator[pb.UpdatePart | Chunk]:
        header = pb.UpdateHeader(
            work=work.id,
            manifest=manifest_to_proto(manifest),
            samples=update.samples,
            loss=update.loss,
            compute_seconds=update.compute_seconds,
            grad_norm=update.steps[-1].grad_norm,
            loss_before=update.steps[0].loss,
            steps=len(update.steps),
            loss_after=update.loss_after,
            encoding=encoding_to_proto(encoded.form),
            noise=encoded.noise,
            download=self.downloads.take_report(),
        )
        yield pb.UpdatePart(header=header)
        for chunk in chunks(encoded.payload, start):
            yield chunk
            self.bytes_sent += len(chunk.data)

    async def _call_push(
        self, parts: AsyncIterator[pb.UpdatePart | Chunk], timeout_seconds: float
    ) -> pb.PushUpdateReply:
        try:
            reply: pb.PushUpdateReply = await self._push(parts, metadata=self._metadata, timeout=timeout_seconds)
        except grpc.RpcError as error:
            raise await explain_failure(error, self.address, self._tls) from error
        return reply

    async def _call(
        self, method: Callable[..., Awaitable[Reply]], request: object, timeout_seconds: float = UNARY_SECONDS
    ) -> Reply:
        try:
            return await method(request, metadata=self._metadata, timeout=timeout_seconds)
        except grpc.RpcError as error:
            raise await explain_failure(error, self.address, self._tls) from error


def _assembler_of(order: pb.WorkOrder, held: HeldParameters) -> Assembler:
    """Return what receives the parameters of an order.

    Raises:
        ProtocolError: they are those of another model, or in a format that this node cannot take.
    """
    held.manifest.require_same(manifest_from_proto(order.manifest))
    form = held.payload_format(codec_from_proto(order.parameters))
    require_payload_bytes(order.parameters, form)
    return Assembler(held.begin(form, order.base_version))


def specs_message(specs: GPUSpecs) -> pb.GpuSpecs:
    """Return the message for the specs of a card."""
    return pb.GpuSpecs(
        name=specs.name,
        memory_bytes=specs.memory_bytes,
        tflops=specs.tflops,
        compute_capability=specs.compute_capability,
        simulated=specs.simulated,
    )
