"""Where the engine touches the rest of the coordinator: files, metrics, links and held-out data."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from hypergpu.common.clock import Clock, monotonic
from hypergpu.common.identity import TaskIdentity
from hypergpu.common.tensors import Flat
from hypergpu.coordinator.health import Health
from hypergpu.coordinator.metrics import Metrics
from hypergpu.coordinator.model_files import ModelFiles
from hypergpu.coordinator.run_dir import ResumedTotals, RunDir
from hypergpu.tasks import Evaluation

Evaluate = Callable[[Flat], Evaluation]
"""Parameters -> how good they are on held-out data; called on a thread of its own."""


class Links(Protocol):
    """Whoever wants to know how communication with the nodes goes."""

    def register(self, node: str, largest_batch: int) -> None:
        """A node joined; 0 = how much it can hold is not known."""
        ...

    def communication(self, node: str, latency_ms: float, success: bool) -> None:
        """One RPC with a registered node ended."""
        ...

    def heard(self, node: str, report: Mapping[str, Any], rtt_ms: float) -> None:
        """A heartbeat of a registered node."""
        ...

    def freeze(self, node: str) -> None:
        """A node has no more to say: keep what is known of its link."""
        ...

    def summary(self) -> Mapping[str, Any]:
        """What is to be said of the adaptation in a run's summary."""
        ...


@dataclass
class Seams:
    """Where the engine touches the rest: files, metrics, links and held-out data."""

    run_dir: RunDir
    files: ModelFiles
    metrics: Metrics
    evaluate: Evaluate
    links: Links
    health: Health
    clock: Clock = monotonic
    before: ResumedTotals = field(default_factory=ResumedTotals)
    """Of a resumed run: what it took so far."""
    identity: TaskIdentity | None = None
    """Of the coordinator's data and model: nodes have to have the same."""
    stays: bool = False
    """Whether the coordinator goes on answering when the run is over."""
    compute: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, "compute"))
    """One thread: it takes updates in, steps and evaluates in the order in which the machine decided."""
