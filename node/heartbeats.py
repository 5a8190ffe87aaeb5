"""Heartbeats of a node: they report its state and bring back the coordinator's directives."""

import time
from collections.abc import Callable

import structlog

from hypergpu.common.background import PeriodicTask
from hypergpu.common.errors import ForkedLedger, HyperGPUError, NotFound
from hypergpu.node.client import CoordinatorClient, Work
from hypergpu.node.core import events as ev
from hypergpu.node.core.lifecycle import LifeCycle
from hypergpu.node.core.metrics_collector import MetricsCollector
from hypergpu.node.core.states import TRANSFERRING
from hypergpu.node.core.timeouts import heartbeat_timeout_seconds
from hypergpu.protos import coordinator_pb2 as pb

log = structlog.get_logger()

_MIN_INTERVAL_SECONDS = 0.05
"""A coordinator cannot make a node send more than 20 heartbeats per second."""
_DEFAULT_INTERVAL_SECONDS = 2.0


class HeartbeatLoop:
    """Sends a heartbeat periodically, from the first registration to `stop`.

    Args:
        client: calls the coordinator.
        metrics: reported with each heartbeat; each heartbeat is recorded there.
        life: gives the state and the work that a heartbeat is about.
        on_event: called with the event that a directive stands for.
        is_transferring: returns whether bytes travel beside the training.
    """

    def __init__(
        self,
        client: CoordinatorClient,
        metrics: MetricsCollector,
        life: LifeCycle[Work],
        on_event: Callable[[ev.Event[Work]], None],
        is_transferring: Callable[[], bool] = lambda: False,
    ) -> None:
        self._is_transferring = is_transferring
        self._client, self._metrics, self._life, self._on_event = client, metrics, life, on_event
        self._run_id = ""
        self._rtt_ms = 0.0
        """Round trip of the previous heartbeat; 0 if it failed."""
        self._loaded = False
        self._sending = PeriodicTask(self._send, _DEFAULT_INTERVAL_SECONDS)

    @property
    def interval_seconds(self) -> float:
        """Time between two heartbeats, as the coordinator set it."""
        return self._sending.interval_seconds

    def start(self, run_id: str, interval_seconds: float) -> None:
        """Start, or go on with another run or interval."""
        self._run_id = run_id
        self._sending.interval_seconds = max(_MIN_INTERVAL_SECONDS, interval_seconds)
        self._sending.start(delay_seconds=self.interval_seconds)

    async def stop(self) -> None:
        """Stop sending."""
        await self._sending.stop()

    @property
    def _transfers(self) -> bool:
        return self._life.state in TRANSFERRING or self._is_transferring()

    async def _send(self) -> None:
        work = self._life.work
        request = pb.HeartbeatRequest(
            node_id=self._client.node_id,
            run_id=self._run_id,
            state=str(self._life.state),
            rtt_ms=self._rtt_ms,
            report=self._metrics.encode_report(),
            loaded=self._loaded,
        )
        loaded = self._transfers
        began = time.monotonic()
        try:
            timeout = heartbeat_timeout_seconds(self.interval_seconds)
            reply = await self._client.heartbeat(request, timeout_seconds=timeout)
        except ForkedLedger as error:
            log.error("the ledger of the coordinator was forked", seen=error.seen, now=error.now)
            self._on_event(ev.Distrusted(error))
            return
        except HyperGPUError as error:
            log.debug("a heartbeat failed", detail=str(error))
            self._metrics.record_network_event(None, success=False)
            self._rtt_ms = 0.0
            if isinstance(error, NotFound):  # the coordinator does not know this node's lease
                self._on_event(ev.RegistrationRequested())
            return
        self._rtt_ms = 1000 * (time.monotonic() - began)
        self._loaded = loaded or self._transfers
        self._metrics.record_network_event(self._rtt_ms, success=True)
        if reply.contested_by:
            log.warning("another process wanted to register under this node's name", address=reply.contested_by)
        event = _event_of(reply.directive, work)
        if event is not None:
            self._on_event(event)


def _event_of(directive: pb.HeartbeatReply.Directive, work: Work | None) -> ev.Event[Work] | None:
    """Return the event that a directive stands for; `work` is what the node had when it sent the heartbeat."""
    match directive:
        case pb.HeartbeatReply.REGISTER_AGAIN:
            return ev.RegistrationRequested()
        case pb.HeartbeatReply.ABANDON_WORK:
            return ev.AbandonRequested(work)
        case pb.HeartbeatReply.SHUT_DOWN:
            return ev.RunFinished("the run is over")
        case _:
            return None
