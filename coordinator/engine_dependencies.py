"""Interfaces between the engine and the rest of the coordinator: files, metrics, links and held-out data."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from hypergpu.common.clock import Clock, monotonic
from hypergpu.common.config.checkpoint import Interval
from hypergpu.common.identity import TaskIdentity
from hypergpu.common.tensors import Flat, Payload
from hypergpu.common.transfer_meter import Transfer
from hypergpu.coordinator.core.checkpoint_rule import CheckpointRule
from hypergpu.coordinator.core.leases import Leases
from hypergpu.coordinator.core.ledger import Ledger
from hypergpu.coordinator.core.rehearsal import RehearsalRequest, RehearsalResult
from hypergpu.coordinator.core.rounds.events import GainMeasured, UpdateArrived
from hypergpu.coordinator.core.rounds.traffic import RoundTraffic
from hypergpu.coordinator.core.session import Register
from hypergpu.coordinator.health import Health
from hypergpu.coordinator.metrics import Metrics
from hypergpu.coordinator.model_files import ModelFiles
from hypergpu.coordinator.round_log import RoundLog
from hypergpu.coordinator.run_dir import ResumedTotals, RunDir
from hypergpu.coordinator.storage import Storage
from hypergpu.coordinator.traces import RoundTraces
from hypergpu.tasks import Evaluation

Evaluate = Callable[[Flat], Evaluation]
"""Function that evaluates parameters on held-out data; it runs on a thread of its own."""

Gain = Callable[[UpdateArrived, Payload], GainMeasured | None]
"""Function that measures the gain of an update; None if it was not measured."""


class Links(Protocol):
    """Receiver of everything that the engine learns about communication with nodes."""

    @property
    def traffic(self) -> RoundTraffic:
        """Bytes on each link since the record of the last round."""
        ...

    def register(self, node: Register) -> None:
        """Register a node that joined, with what it says of itself."""
        ...

    def communication(self, node: str, latency_ms: float, success: bool) -> None:
        """Record one finished RPC of a registered node."""
        ...

    def begin_download(self, node: str, now: float) -> None:
        """Record that the parameters of a registered node are being sent."""
        ...

    def sent(self, node: str, nbytes: int) -> None:
        """Record bytes of these parameters that were sent."""
        ...

    def downloaded(self, node: str, transfer: Transfer, now: float) -> None:
        """Record what a registered node reports of their transfer."""
        ...

    def uploaded(self, node: str, transfer: Transfer) -> None:
        """Record a transfer from a registered node."""
        ...

    def observe_heartbeat(self, node: str, report: Mapping[str, Any], rtt_ms: float, loaded: bool) -> None:
        """Record the report and round trip of a registered node's heartbeat."""
        ...

    def seen(self, node: str) -> None:
        """Record that a part of an upload of a registered node arrived."""
        ...

    def freeze(self, node: str) -> None:
        """Keep the last profile of a node's link, since the node sends no more reports."""
        ...

    def figures(self) -> Mapping[str, Mapping[str, float | str]]:
        """Return the known rates, round trips and class of each link, by node."""
        ...

    def summary(self) -> Mapping[str, Any]:
        """Return the adaptation's part of the run summary."""
        ...


class Rehearser(Protocol):
    """Performer of rehearsals."""

    async def run(self, request: RehearsalRequest) -> RehearsalResult:
        """Carry a rehearsal out; return its result, or the fault for which there is none."""
        ...

    def stop(self) -> None:
        """End the one that runs, if any."""
        ...


class NoRehearsals:
    """Refuses every rehearsal."""

    async def run(self, request: RehearsalRequest) -> RehearsalResult:
        """Return a fault."""
        return RehearsalResult(request.number, 0.0, fault="this coordinator carries none out")

    def stop(self) -> None:
        """Do nothing: none runs."""


@dataclass
class EngineDependencies:
    """Dependencies of the engine: files, metrics, links and held-out data."""

    run_dir: RunDir
    files: ModelFiles
    metrics: Metrics
    evaluate: Evaluate
    links: Links
    health: Health
    ledger: Ledger
    clock: Clock = monotonic
    before: ResumedTotals = field(default_factory=ResumedTotals)
    """Totals of a resumed run before the restart."""
    identity: TaskIdentity | None = None
    """Identity of the coordinator's data and model, which nodes have to match."""
    leases: Leases | None = None
    """Leases of the nodes' names; None: every process is the node that it says."""
    stays: bool = False
    """True if the coordinator keeps serving after the end of the run."""
    adaptation_state: Callable[[], Mapping[str, Any]] = dict
    """Function that returns what the adaptation has learned, as JSON for a checkpoint."""
    storage: Storage = field(default_factory=Storage)
    """Storage of the log and the checkpoints."""
    round_log: RoundLog | None = None
    """Log of closed rounds; None = a crash undoes the rounds since the last checkpoint."""
    checkpoints: CheckpointRule = field(default_factory=lambda: CheckpointRule(Interval(rounds=1), 0, 0.0))
    """Rule by which checkpoints are due."""
    gain: Gain = lambda event, payload: None
    """Function that measures the gain of an update on held-out data; it runs on the same thread as `evaluate`."""
    traces: RoundTraces = field(default_factory=RoundTraces)
    """Spans of the rounds; none by default."""
    rehearsals: Rehearser = field(default_factory=NoRehearsals)
    compute: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, "compute"))
    """Single thread that adds updates, steps and evaluates, in the order that the machine decided."""
