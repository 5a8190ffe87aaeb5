"""Work units assigned to a node: pulled, trained, and pushed or returned."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import structlog

from hypergpu.common.byte_ranges import ByteRanges
from hypergpu.common.errors import HyperGPUError
from hypergpu.common.local_optimizer import LocalOptimizer
from hypergpu.common.tensors import Flat
from hypergpu.common.wire import codec_from_proto, local_settings_from_proto
from hypergpu.node.background_transfers import BackgroundTransfers
from hypergpu.node.client import CoordinatorClient, RunOver, Work, missing_of
from hypergpu.node.core.held_parameters import HeldParameters
from hypergpu.node.core.local_model import LocalModel
from hypergpu.node.core.timeouts import SHUTDOWN_RPC_TIMEOUT_SECONDS, push_timeout_seconds
from hypergpu.node.core.update_encoder import EncodedUpdate, UpdateEncoder
from hypergpu.node.optimizers import KeptState
from hypergpu.node.trainer import Update, WorkAbandoned
from hypergpu.node.worker import Worker
from hypergpu.protos import coordinator_pb2 as pb

log = structlog.get_logger()

Result = TypeVar("Result")
OnWork = Callable[[str], None]
"""Called with how each work unit ended: accepted, duplicate, late, or the type of an error."""


@dataclass(frozen=True, slots=True)
class _Run:
    """State of a node between the work units of a run."""

    run_id: str
    held: HeldParameters
    encoder: UpdateEncoder
    optimizer: KeptState


class Assignments:
    """Does one work unit after the other, and records how long each computed and waited.

    Args:
        client: calls the coordinator.
        worker: trains.
        executor: runs the training; one thread.
        on_work: called with how each unit ended.
    """

    def __init__(self, client: CoordinatorClient, worker: Worker, executor: Executor, on_work: OnWork) -> None:
        self._client, self._worker, self._executor, self._on_work = client, worker, executor, on_work
        self._abandoned = threading.Event()
        self._update: tuple[Update, EncodedUpdate] | None = None
        self._run: _Run | None = None
        self._decoding: asyncio.Future[None] | None = None
        """Decoding of the parameters that were received last."""
        self._missing = ByteRanges()
        """Bytes of its payload that the coordinator lacks."""
        self._transfers = BackgroundTransfers()
        self._waiting_since = time.monotonic()
        self._compute_seconds = 0.0

    @property
    def is_transferring(self) -> bool:
        """True while parameters or an update travel beside the training."""
        return self._transfers.is_active

    async def close(self) -> None:
        """End the transfers beside the training."""
        await self._transfers.cancel()

    def start_waiting(self) -> None:
        """Count the time until the next work unit ends from now on."""
        self._waiting_since = time.monotonic()

    def abandon(self) -> None:
        """End the training in progress at its next step."""
        self._abandoned.set()

    async def pull(self, run_id: str, wait_seconds: float, on_order: Callable[[Work], None]) -> Work | RunOver | None:
        """Return the next work unit; None if there was none within `wait_seconds`.

        Args:
            run_id: id of the registered run.
            wait_seconds: how long the coordinator may hold the request.
            on_order: called when the order has arrived, before its parameters.
        """
        await self._transfers.cancel()
        if self._decoding is not None:
            await asyncio.wait((self._decoding,))  # a pull that was abandoned may still decode into the same buffer
        held = self._run_of(run_id).held
        pulled = await self._client.pull(run_id, wait_seconds, held, on_order)
        if isinstance(pulled, Work) and pulled.download is not None:
            self._transfers.download(pulled.download)
            self._record_call()
        elif isinstance(pulled, Work):
            finish = partial(_finish, held, pulled.order)
            self._decoding = asyncio.get_running_loop().run_in_executor(self._executor, finish)
            await asyncio.shield(self._decoding)
            self._record_call()
        return pulled

    async def train(self, work: Work) -> None:
        """Compute the update of a work unit.

        Raises:
            WorkAbandoned: `abandon` was called.
            HyperGPUError: its parameters, which travel beside the training, did not arrive.
        """
        self._abandoned = abandoned = threading.Event()
        if work.download is not None:
            self._update = await self._compute_beside_transfers(work, abandoned)
        else:
            with self._client.tracer.span("train", work.trace):
                self._update = await self._on_thread(self._compute, work, abandoned)
        update, encoded = self._update
        self._missing = ByteRanges([(0, encoded.payload.nbytes)])
        self._compute_seconds = update.compute_seconds

    async def push(self, work: Work) -> None:
        """Send what the coordinator lacks of the update, as far as that is known."""
        if self._transfers.has_upload:
            if await self._transfers.wait_for_upload():
                self._missing = ByteRanges()
            elif (await self.ask_progress(work)).accepted:
                return
        update, encoded = self._require_update()
        timeout = push_timeout_seconds(work.order.deadline_seconds)
        missing = ByteRanges(self._missing)
        reply = await self._client.push(work, self._worker.manifest, update, encoded, missing, timeout_seconds=timeout)
        self._record_call()
        self._end_push(work, pb.PushUpdateReply.Outcome.Name(reply.outcome).lower(), update)

    async def ask_progress(self, work: Work) -> pb.UploadProgress:
        """Ask how much of the update the coordinator holds; the next `push` sends the rest."""
        progress = await self._client.upload_progress(work.id)
        self._missing = missing_of(progress, self._require_update()[1].payload)
        if progress.accepted:
            self._record_call()
            self._end_push(work, "duplicate", self._require_update()[0])
        return progress

    async def give_back(self, work: Work, kind: str, detail: str) -> None:
        """Return a work unit to the coordinator. If it cannot be reached, its deadline has the same effect."""
        log.warning("returned work", run=work.id.run_id, round=work.id.round, kind=kind, detail=detail)
        self._end(kind, success=False)
        try:
            await self._client.return_work(work.id, kind, detail, timeout_seconds=SHUTDOWN_RPC_TIMEOUT_SECONDS)
        except HyperGPUError as error:
            log.warning("could not notify the coordinator", detail=str(error))

    async def _compute_beside_transfers(self, work: Work, abandoned: threading.Event) -> tuple[Update, EncodedUpdate]:
        """Train while the update, which is that of when the work begins, and the parameters travel."""
        order = work.order
        values, encoded = await self._on_thread(self._begin_fragment, order)
        timeout = push_timeout_seconds(order.deadline_seconds)
        missing = ByteRanges([(0, encoded.payload.nbytes)])
        self._transfers.upload(
            self._client.push(work, self._worker.manifest, None, encoded, missing, timeout_seconds=timeout)
        )
        with self._client.tracer.span("train", work.trace):
            update = await self._on_thread(self._end_fragment, order, values, abandoned)
        await self._transfers.wait_for_download()
        await self._on_thread(_finish, self._run_of(order.work.run_id).held, order)
        return update, encoded

    async def _on_thread(self, function: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, partial(function, *arguments))

    def _local_model(self, order: pb.WorkOrder) -> LocalModel:
        return self._run_of(order.work.run_id).held.split(order.fragments.count)

    def _begin_fragment(self, order: pb.WorkOrder) -> tuple[Flat, EncodedUpdate]:
        """Return the values that a work unit begins with, and the update that they make."""
        local = self._local_model(order)
        values = local.begin(order.work.round, order.accepted_round)
        return values, self._encode_fragment(order, values)

    def _encode_fragment(self, order: pb.WorkOrder, values: Flat) -> EncodedUpdate:
        return self._local_model(order).update_of(
            values,
            codec_from_proto(order.update).name,
            order.fragments.update,
            round_number=order.work.round,
            accepted_round=order.accepted_round,
            trial=order.trial,
        )

    def _end_fragment(self, order: pb.WorkOrder, values: Flat, abandoned: threading.Event) -> Update:
        update = self._train(order, values, abandoned)
        self._local_model(order).end(update.flat, order.work.round, trial=order.trial)
        return update

    def _compute(self, work: Work, abandoned: threading.Event) -> tuple[Update, EncodedUpdate]:
        codec = codec_from_proto(work.order.update)
        if abandoned.is_set():
            raise WorkAbandoned("abandoned before the first step")
        order, run = work.order, self._run_of(work.order.work.run_id)
        if run.held.local is not None:
            local = run.held.local
            update = self._train(order, local.begin(order.work.round, order.accepted_round), abandoned)
            return update, self._encode_fragment(order, local.end(update.flat, order.work.round, trial=order.trial))
        update = self._train(order, work.parameters, abandoned)
        encoded = run.encoder.encode(
            update.flat,
            codec.name,
            round_number=order.work.round,
            accepted_round=order.accepted_round,
            trial=order.trial,
        )
        return update, encoded

    def _train(self, order: pb.WorkOrder, parameters: Flat, abandoned: threading.Event) -> Update:
        shard, run = order.shard, self._run_of(order.work.run_id)
        optimizer = LocalOptimizer(order.local_optimizer, order.learning_rate)
        local = run.optimizer.local_training(optimizer, local_settings_from_proto(order.local), order.accepted_round)
        update = self._worker.work(
            parameters,
            self._worker.shard(shard.partition, shard.index, shard.count, shard.seed, shard.dirichlet_alpha),
            shard.cursor,
            batch_size=order.batch_size,
            local_steps=order.local_steps,
            local=local,
            # Neither node nor attempt: the result does not depend on who does the work, nor on when it is repeated.
            key=(order.repeats_round or order.work.round, shard.index),
            abandon=abandoned,
        )
        run.optimizer.trained(local, order.work.round, trial=order.trial)
        return update

    def _run_of(self, run_id: str) -> "_Run":
        """Return what is kept of a run. Another run has another model: nothing of the former one is of use to it."""
        if self._run is None or self._run.run_id != run_id:
            model = self._worker.trainer.model
            held = HeldParameters(model.manifest, model.parameter_count)
            encoder = UpdateEncoder(model.parameter_count, model.manifest.size - model.parameter_count)
            self._run = _Run(run_id, held, encoder, KeptState())
        return self._run

    def _require_update(self) -> tuple[Update, EncodedUpdate]:
        if self._update is None:
            raise HyperGPUError("a push without an update")
        return self._update

    def _record_call(self) -> None:
        self._worker.metrics.record_network_event(None, success=True)

    def _end_push(self, work: Work, outcome: str, update: Update) -> None:
        self._end(outcome, success=outcome in {"accepted", "duplicate"})
        loss = round(update.loss, 4)
        log.info("update pushed", run=work.id.run_id, round=work.id.round, outcome=outcome, loss=loss)

    def _end(self, outcome: str, *, success: bool) -> None:
        now = time.monotonic()
        waited = max(0.0, now - self._waiting_since - self._compute_seconds)
        self._worker.metrics.record_work(self._compute_seconds, waited, success)
        self._on_work(outcome)
        self._waiting_since, self._compute_seconds = now, 0.0


def _finish(held: HeldParameters, order: pb.WorkOrder) -> None:
    """Turn the payload that an order announced, and that has arrived, into parameters."""
    parts = order.fragments
    form = held.payload_format(codec_from_proto(order.parameters), parts.parameters)
    if order.HasField("fragments"):
        held.finish_fragments(
            form,
            parts.parameters,
            order.parameters_version,
            fragment=parts.version,
            base=order.base_version,
            later=parts.background,
        )
    else:
        held.finish(form, order.parameters_version, order.base_version)
