"""Registration of a node with a run, and the preparation of the run's model."""

import asyncio
import secrets
import time
from concurrent.futures import Executor
from dataclasses import dataclass

import structlog

from hypergpu.common.data_report import DataReport
from hypergpu.common.errors import InvalidInput, ProtocolError
from hypergpu.common.identity import ADVICE, TaskIdentity, differences
from hypergpu.common.step_times import StepTimes
from hypergpu.common.wire import (
    data_report_to_proto,
    identity_from_proto,
    identity_to_proto,
    manifest_from_proto,
    step_times_to_proto,
    terms_to_proto,
)
from hypergpu.node.client import CoordinatorClient, specs_message
from hypergpu.node.worker import Worker
from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.tasks.loading import is_user_task

log = structlog.get_logger()

_LARGEST_UINT32 = 2**32 - 1
_Known = tuple[int, TaskIdentity | None, DataReport | None, StepTimes | None]
"""Largest batch (0 if unknown), identity of the task, what may be told of the node's own samples, and step times."""


@dataclass(frozen=True)
class NodeInfo:
    """Description of a node that it registers with."""

    own_task: str | None = None
    """The `module:factory` whose code this node may load; None for shipped tasks only."""
    metrics_address: str = ""
    """HOST:PORT of its /metrics; empty if it cannot be scraped."""
    version: str = ""
    """Version of the distribution."""
    region: str = ""


class Registration:
    """The node's registration with a run.

    Args:
        client: calls the coordinator.
        worker: prepares the run's model.
        info: description of the node.
        executor: prepares the model; one thread, which also trains.
    """

    def __init__(self, client: CoordinatorClient, worker: Worker, info: NodeInfo, executor: Executor) -> None:
        self._client, self._worker, self._info, self._executor = client, worker, info, executor
        self.incarnation = secrets.token_hex(16)
        """Random name of this process, known to the coordinator alone: a node that starts again has another one."""
        self._reply = pb.RegisterReply()
        self._announced: _Known = (0, None, None, None)
        """Facts about the task with which the node registered last."""

    @property
    def run_id(self) -> str:
        """Id of the run; empty before the first registration."""
        return self._reply.run_id

    async def register(self) -> pb.RegisterReply:
        """Register, and return the coordinator's reply."""
        largest_batch, identity, data, times = known = self._known()
        request = pb.RegisterRequest(
            node_id=self._client.node_id,
            incarnation=self.incarnation,
            gpu=specs_message(self._worker.specs),
            version=self._info.version,
            metrics_address=self._info.metrics_address,
            region=self._info.region,
            largest_batch=largest_batch,
            identity=identity_to_proto(identity) if identity is not None else None,
            terms=terms_to_proto(self._worker.terms),
            data=data_report_to_proto(data) if data is not None else None,
            step_times=step_times_to_proto(times) if times is not None else None,
            numerics=self._worker.numerics,
        )
        began = time.monotonic()
        self._reply = await self._client.register(request)
        self._worker.metrics.record_network_event(1000 * (time.monotonic() - began), success=True)
        self._announced = known
        return self._reply

    async def prepare(self) -> bool:
        """Build the model of the run's task and check that it is the coordinator's.

        Returns:
            Whether the largest batch and the identity of the task are the registered ones; else register again.

        Raises:
            InvalidInput: a task that this node may not load, or whose data or model differs from the coordinator's.
            ProtocolError: a model of another shape than the coordinator's.
        """
        reply = self._reply
        self._require_permitted(reply.task)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._executor, self._worker.prepare, reply.task, reply.seed, reply.partition)
        try:
            manifest_from_proto(reply.manifest).require_same(self._worker.manifest)
        except ProtocolError as error:
            raise ProtocolError(f"the model of task {reply.task!r} here is not the coordinator's: {error}") from error
        self._require_same_task(reply)
        if self._announced != self._known():
            return False
        log.info("joined", address=self._client.address, run=reply.run_id, task=reply.task, node=self._client.node_id)
        return True

    def _known(self) -> _Known:
        worker = self._worker
        largest = min(worker.largest_batch or 0, _LARGEST_UINT32)
        return largest, worker.identity, worker.data_report, worker.step_times

    def _require_permitted(self, task: str) -> None:
        own_task = self._info.own_task
        if is_user_task(task) and task != own_task:
            here = f"--task is {own_task}" if own_task else "no --task was given"
            raise InvalidInput(
                f"the run trains {task!r}, which is not shipped with HyperGPU, and {here}: a node loads only "
                f"the code that it is told to; start it with --task {task}"
            )

    def _require_same_task(self, reply: pb.RegisterReply) -> None:
        """Check that the data and the model are the coordinator's, before the node trains on them."""
        identity = self._worker.identity
        if identity is None or not reply.HasField("identity"):
            return
        found = differences(identity, identity_from_proto(reply.identity))
        if found:
            raise InvalidInput(f"task {reply.task!r} differs from the coordinator's: {'; '.join(found[:4])}. {ADVICE}")
