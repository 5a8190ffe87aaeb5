"""A node's calls to its coordinator, with the metadata of the node and typed errors."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import grpc

from hypergpu.common.byte_ranges import ByteRange, ByteRanges
from hypergpu.common.connections import useful_connections
from hypergpu.common.errors import CorruptData, DeadlineExceeded, ProtocolError, Unavailable
from hypergpu.common.files import FileWatch
from hypergpu.common.rpc import explain_failure, open_channel
from hypergpu.common.tensors import Assembler, Chunk, Flat, Manifest, Payload, checksum
from hypergpu.common.tls import Tls
from hypergpu.common.tracing import NO_TRACER, TRACEPARENT, Tracer, context_of
from hypergpu.common.wire import (
    codec_from_proto,
    decode_work_part,
    encoding_to_proto,
    manifest_from_proto,
    manifest_to_proto,
    require_payload_bytes,
)
from hypergpu.node.connections import Connections, TransferConnection
from hypergpu.node.core.gpu import GPUSpecs
from hypergpu.node.core.held_parameters import HeldParameters
from hypergpu.node.core.timeouts import chunk_timeout_seconds
from hypergpu.node.core.update_encoder import EncodedUpdate
from hypergpu.node.credentials import Credentials
from hypergpu.node.download_meter import DownloadMeter
from hypergpu.node.downloading import Receive, SharedDownload
from hypergpu.node.trainer import Update
from hypergpu.node.uploading import Send, SharedUpload
from hypergpu.protos import coordinator_pb2 as pb

UNARY_SECONDS = 15.0
"""Timeout of a small call; far above the round trip of any link."""

Reply = TypeVar("Reply")


@dataclass(frozen=True, slots=True)
class Work:
    """Work unit as assigned, with its parameters."""

    order: pb.WorkOrder
    parameters: Flat
    download: asyncio.Task[None] | None = None
    """Transfer of its parameters in the background; None if they have arrived."""
    trace: str = ""
    """Context of its span at the coordinator; empty if there are no traces."""

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
    """Calls of one node to its coordinator, directly or through a proxy; every call carries the node's credentials.

    Use it as an async context manager. Every method raises only errors of `hypergpu.common.errors`; a retry may help
    after `Unavailable`, `DeadlineExceeded` and `CorruptData`.
    """

    def __init__(
        self,
        address: str,
        credentials: Credentials,
        *,
        tls: Tls | None = None,
        http_proxy: bool = False,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self.tracer = tracer
        self.address, self.node_id = address, credentials.node_id
        self.bytes_sent = 0
        self.downloads = DownloadMeter()
        self._credentials = credentials
        self._tls, self._http_proxy = tls, http_proxy
        self._arrived_at = 0.0
        """Arrival of the latest part of a stream."""

    async def __aenter__(self) -> Self:
        files = FileWatch(self._tls.files if self._tls is not None else ())
        self._connections = Connections(self._open, files)
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._connections.close()

    def _open(self) -> grpc.aio.Channel:
        return open_channel(self.address, self._tls, http_proxy=self._http_proxy)

    async def register(self, request: pb.RegisterRequest) -> pb.RegisterReply:
        """Register with the run, and show the lease of the reply from now on.

        Raises:
            ForkedLedger: the ledger of the run has another key than before.
        """
        await self._connections.renew()
        request.key = self._credentials.countersigning.public_key
        reply = await self._call(self._connections.small.register, request)
        self._credentials.keep(reply.lease)
        self._credentials.countersigning.begin(reply.ledger_key)
        return reply

    async def heartbeat(
        self, request: pb.HeartbeatRequest, timeout_seconds: float = UNARY_SECONDS
    ) -> pb.HeartbeatReply:
        """Report that the node is alive; return the coordinator's reply, with its directive.

        Raises:
            ForkedLedger: the checkpoint in the reply does not go on from what the node has seen of the ledger.
        """
        await self._connections.renew()
        request.ledger_size = self._credentials.countersigning.ledger_size
        reply = await self._call(self._connections.small.heartbeat, request, timeout_seconds)
        if reply.directive != pb.HeartbeatReply.REGISTER_AGAIN:  # else it is not about the run that is watched
            self._credentials.countersigning.see(reply.ledger)
        return reply

    async def upload_progress(self, work: pb.WorkId) -> pb.UploadProgress:
        """Return how much of an update the coordinator holds."""
        return await self._call(self._connections.small.progress, work)

    async def return_work(
        self, work: pb.WorkId, reason: str, detail: str, timeout_seconds: float = UNARY_SECONDS
    ) -> None:
        """Return a work unit."""
        request = pb.ReturnWorkRequest(work=work, reason=reason, detail=detail[:400])
        await self._call(self._connections.small.return_work, request, timeout_seconds)

    async def leave(self, run_id: str, reason: str, timeout_seconds: float = UNARY_SECONDS) -> None:
        """Leave the run."""
        await self._call(
            self._connections.small.leave,
            pb.LeaveRequest(node_id=self.node_id, run_id=run_id, reason=reason),
            timeout_seconds,
        )
        self._credentials.forget()

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
        request.fragment_versions.extend(held.fragment_versions)
        call = self._connections.for_transfers(1)[0].pull(request, metadata=self._credentials.metadata())
        parts = self._parts_of(call, chunk_timeout_seconds(0.0) + wait_seconds)
        receiving: Coroutine[Any, Any, None] | None = None
        try:
            first = await anext(parts, None)
            if first is None:
                return None
            if isinstance(first, Chunk):
                raise ProtocolError(f"{self.address}: parameters arrived before their order")
            if first.WhichOneof("part") == "run_over":
                return RunOver(first.run_over.reason, first.run_over.stays)
            if first.WhichOneof("part") != "order":
                raise ProtocolError(f"{self.address}: expected one order")
            order_at = self._arrived_at
            work = Work(first.order, held.flat, trace=await self._trace_of(call))
            on_order(work)
            assembler = _assembler_of(first.order, held)
            self.downloads.begin(order_at)
            receiving = self._receive_all(call, work, parts, assembler)
        finally:
            if receiving is None:
                call.cancel()
        if first.order.fragments.background:
            return replace(work, download=asyncio.create_task(receiving))
        await receiving
        return work

    async def _receive_all(
        self, call: Any, work: Work, parts: AsyncIterator[pb.WorkPart | Chunk], assembler: Assembler
    ) -> None:
        try:
            with self.tracer.span("download", work.trace, bytes=assembler.payload.nbytes) as trace:
                await self._receive(replace(work, trace=trace), self._chunks_of(parts), assembler)
        finally:
            call.cancel()
        if not assembler.complete:
            raise CorruptData(f"{self.address}: the parameters ended after {assembler.received} bytes")

    async def _receive(self, work: Work, first: AsyncIterator[Chunk], assembler: Assembler) -> None:
        """Receive the parameters: `first` has those on the connection that brought the order."""

        def deliver(chunk: Chunk, connection: int = 0) -> None:
            self.downloads.chunk(assembler.add(chunk), self._arrived_at, connection)

        count = useful_connections(work.order.connections.down, assembler.payload.nbytes)
        if count == 1:
            async for chunk in first:
                deliver(chunk)
            return

        def receiver(connection: TransferConnection) -> Receive:
            return lambda ranges: self._more(connection, work, ranges)

        others = [receiver(connection) for connection in self._connections.for_transfers(count)[1:]]
        await SharedDownload(assembler, deliver).receive(first, others)

    async def _more(
        self, connection: "TransferConnection", work: Work, ranges: Sequence[ByteRange]
    ) -> AsyncIterator[Chunk]:
        """Yield chunks of parameters on a further connection."""
        order = work.order
        message = [pb.ByteRange(start=start, end=end) for start, end in ranges]
        request = pb.PullParametersRequest(work=order.work, ranges=message)
        call = connection.parameters(request, metadata=self._metadata(work.trace))
        try:
            async for chunk in self._chunks_of(self._parts_of(call, chunk_timeout_seconds(order.deadline_seconds))):
                yield chunk
        finally:
            call.cancel()

    async def _trace_of(self, call: Any) -> str:
        """Return the context of the span of the order that a call has brought."""
        return context_of(await call.initial_metadata()) if self.tracer.is_on else ""

    def _metadata(self, trace: str) -> tuple[tuple[str, str], ...]:
        """Return the metadata of a call below a span."""
        return self._credentials.metadata() + (((TRACEPARENT, trace),) if trace else ())

    async def _chunks_of(self, parts: AsyncIterator[pb.WorkPart | Chunk]) -> AsyncIterator[Chunk]:
        async for part in parts:
            if not isinstance(part, Chunk):
                raise ProtocolError(f"{self.address}: after an order there are chunks only")
            yield part

    async def _parts_of(self, call: Any, first_seconds: float) -> AsyncIterator[pb.WorkPart | Chunk]:
        """Yield the parts of a stream; the first may take `first_seconds`."""
        patience = chunk_seconds = first_seconds
        try:
            while True:
                data = await asyncio.wait_for(call.read(), patience)
                if not isinstance(data, bytes):  # grpc.aio.EOF
                    return
                self._arrived_at = self.downloads.arrived(data)
                part = decode_work_part(data)
                if not isinstance(part, Chunk) and part.WhichOneof("part") == "order":
                    chunk_seconds = chunk_timeout_seconds(part.order.deadline_seconds)
                yield part
                patience = chunk_seconds
        except grpc.RpcError as error:
            raise await explain_failure(error, self.address, self._tls) from error
        except TimeoutError as error:
            raise DeadlineExceeded(f"{self.address}: nothing arrived for {patience:g} s") from error

    async def push(
        self,
        work: Work,
        manifest: Manifest,
        update: Update | None,
        encoded: EncodedUpdate,
        missing: ByteRanges,
        *,
        timeout_seconds: float,
    ) -> pb.PushUpdateReply:
        """Send the bytes of an update's payload that the coordinator lacks.

        Without `update` they are sent ahead, while the figures are not known yet: the reply is no outcome then.

        Raises:
            Unavailable: the coordinator keeps what arrived, but does not have all of it yet.
        """
        payload = encoded.payload
        header = _header(work, manifest, update, encoded)
        beside = asyncio.get_running_loop().run_in_executor  # both read all of the payload
        header.header.payload_crc32c = await beside(None, checksum, payload.data)
        if update is not None:
            receipt = await beside(None, self._credentials.countersigning.sign, header.header, payload)
            header.header.receipt.CopyFrom(receipt)
        report = self.downloads.take_report() if update else None
        if report is not None:
            header.header.download.CopyFrom(report)
        connections = self._connections.for_transfers(useful_connections(work.order.connections.up, missing.total))
        upload = SharedUpload(payload, missing, len(connections))

        def sender(connection: TransferConnection) -> Send:
            return lambda chunks: self._call_push(connection, header, chunks, timeout_seconds, trace)

        async def ask_missing() -> ByteRanges:
            return missing_of(await self.upload_progress(work.id), payload)

        try:
            with self.tracer.span("upload", work.trace, bytes=missing.total) as trace:
                return await upload.send([sender(connection) for connection in connections], ask_missing)
        except Unavailable as error:
            raise Unavailable(f"{self.address}: {error}") from error
        finally:
            self.bytes_sent += upload.bytes_sent

    async def _call_push(
        self,
        connection: "TransferConnection",
        header: pb.UpdatePart,
        chunks: AsyncIterator[Chunk],
        timeout_seconds: float,
        trace: str,
    ) -> pb.PushUpdateReply:
        async def parts() -> AsyncIterator[pb.UpdatePart | Chunk]:
            yield header
            async for chunk in chunks:
                yield chunk

        try:
            reply: pb.PushUpdateReply = await connection.push(
                parts(), metadata=self._metadata(trace), timeout=timeout_seconds
            )
        except grpc.RpcError as error:
            raise await explain_failure(error, self.address, self._tls) from error
        return reply

    async def _call(
        self, method: Callable[..., Awaitable[Reply]], request: object, timeout_seconds: float = UNARY_SECONDS
    ) -> Reply:
        try:
            return await method(request, metadata=self._credentials.metadata(), timeout=timeout_seconds)
        except grpc.RpcError as error:
            raise await explain_failure(error, self.address, self._tls) from error


def _assembler_of(order: pb.WorkOrder, held: HeldParameters) -> Assembler:
    """Return what receives the parameters of an order.

    Raises:
        ProtocolError: they are those of another model, or in a format that this node cannot take.
    """
    held.manifest.require_same(manifest_from_proto(order.manifest))
    if order.HasField("fragments"):
        held.split(order.fragments.count)
        require_payload_bytes(
            order.update, held.payload_format(codec_from_proto(order.update), (order.fragments.update,))
        )
    form = held.payload_format(codec_from_proto(order.parameters), order.fragments.parameters)
    require_payload_bytes(order.parameters, form)
    return Assembler(held.begin(form, order.base_version, order.fragments.parameters))


def missing_of(progress: pb.UploadProgress, payload: Payload) -> ByteRanges:
    """Return what the coordinator lacks of a payload: everything, if what it holds is of another one."""
    if progress.HasField("payload_crc32c") and progress.payload_crc32c != checksum(payload.data):
        return ByteRanges([(0, payload.nbytes)])
    if progress.missing:
        return ByteRanges((min(part.start, payload.nbytes), min(part.end, payload.nbytes)) for part in progress.missing)
    return ByteRanges([(min(progress.next_offset, payload.nbytes), payload.nbytes)])


def _header(work: Work, manifest: Manifest, update: Update | None, encoded: EncodedUpdate) -> pb.UpdatePart:
    layout, encoding = manifest_to_proto(manifest), encoding_to_proto(encoded.form)
    if update is None:
        ordered = work.order.batch_size * work.order.local_steps
        ahead = pb.UpdateHeader(
            work=work.id, manifest=layout, samples=ordered, encoding=encoding, noise=encoded.noise, figures_follow=True
        )
        return pb.UpdatePart(header=ahead)
    header = pb.UpdateHeader(
        work=work.id,
        manifest=layout,
        samples=update.samples,
        loss=update.loss,
        compute_seconds=update.compute_seconds,
        grad_norm=update.steps[-1].grad_norm,
        loss_before=update.steps[0].loss,
        steps=len(update.steps),
        loss_after=update.loss_after,
        encoding=encoding,
        noise=encoded.noise,
        optimizer_share=update.optimizer_share,
    )
    return pb.UpdatePart(header=header)


def specs_message(specs: GPUSpecs) -> pb.GpuSpecs:
    """Return the message for the specs of a card."""
    return pb.GpuSpecs(
        name=specs.name,
        memory_bytes=specs.memory_bytes,
        tflops=specs.tflops,
        compute_capability=specs.compute_capability,
        simulated=specs.simulated,
    )
