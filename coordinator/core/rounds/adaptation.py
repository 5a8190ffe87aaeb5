"""The seam between the rounds and their adaptation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from hypergpu.common.connections import ONE_FOR_ALL, ConnectionPlan
from hypergpu.common.local_optimizer import LocalOptimizer
from hypergpu.common.metric import ACCURACY, MetricSpec
from hypergpu.common.transfer_codecs import TransferCodecs
from hypergpu.coordinator.core.decisions import Decision
from hypergpu.coordinator.core.overrides import NodeOverride, Overrides
from hypergpu.coordinator.core.rehearsal import RehearsalRequest, RehearsalResult
from hypergpu.coordinator.core.rounds.events import Contribution, LateUpdate


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """Nodes and work of one round. Unknown nodes are dropped, and the configured value holds where one is unset."""

    selected: Sequence[str]
    """Node ids, of the available ones."""
    batch_sizes: dict[str, int] = field(default_factory=dict)
    """Samples per local step, by node id."""
    local_steps: int | None = None
    optimizer: LocalOptimizer | None = None
    trials: Mapping[str, LocalOptimizer] = field(default_factory=dict)
    """Optimizers of the nodes that try another one, by node id. Their updates are measured and not applied."""
    node_steps: Mapping[str, int] = field(default_factory=dict)
    """Local steps of single nodes, by node id; `local_steps` for those that are not there."""
    server_momentum: float | None = None
    """Momentum of the server's step after the round."""
    wait_for_all: bool = False
    """True if the round waits for every node, without a measured deadline: plain synchronous training."""
    close_share: float | None = None
    """Share of the nodes whose updates close the round at once."""
    wait_for: Sequence[str] = ()
    """Nodes whose turn it is, and for which the deadline leaves the time that they usually need."""
    expected_seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds that the adaptation expects of nodes which alone hold their data: the deadline leaves them far more."""
    codecs: Mapping[str, TransferCodecs] = field(default_factory=dict)
    """Codecs by node id; the configured ones for nodes that are not there."""
    changed_seconds: Mapping[str, float] = field(default_factory=dict)
    """Change of the time that a node needs, by node id, because its payloads have another size than before."""
    connections: ConnectionPlan = ONE_FOR_ALL
    transfer_seconds: Mapping[str, float] = field(default_factory=dict)
    """Time that the transfers of a round take by the rate of the link, for nodes that have never finished one."""
    probes: Sequence[str] = ()
    """Nodes on probation, and nodes whose links may have recovered. They get work, and the round does not wait for
    them."""
    decisions: Sequence[Decision] = ()
    """Decisions to record, each with its reason."""


@dataclass(frozen=True, slots=True)
class RoundReport:
    """Outcome of one round."""

    round: int
    loss: float
    """Loss on held-out data, or the training loss where no evaluation was due."""
    evaluated: bool = field(default=True, kw_only=True)
    """True if `loss` is the loss on held-out data."""
    seconds: float
    """Duration of the round."""
    samples: int
    """Samples that were used, over all nodes."""
    metric: float | None = None
    """The task's metric on held-out data; None where it is undefined."""
    spec: MetricSpec = ACCURACY
    """Metric of the task."""
    contributions: Sequence[Contribution] = ()
    """One for each selected node."""
    late: Sequence[LateUpdate] = ()
    """Updates of earlier rounds that it counted."""
    update_norms: tuple[float, float] | None = None
    """(mean of |update|² over the nodes, |mean update|²)."""
    restarts: tuple[int, float] = (0, 0.0)
    """(Nodes that restarted since the last report, node-seconds since)."""


class Activity(StrEnum):
    """Activity of a node that has missed the end of its round."""

    PULLING = "pulling"
    """It receives the parameters: all of its time went into communication."""
    TRAINING = "training"
    """It computes: the rest of its time went into computing."""
    PUSHING = "pushing"
    """It sends its update: all of its time but that of computing went into communication."""
    DONE = "done"
    """It has computed, and its update has arrived or was cut off, with the time that computing took."""


@dataclass(frozen=True, slots=True)
class LateWork:
    """Time of a node whose update was not there when its round closed."""

    node: str
    elapsed_seconds: float
    """Time since its work was assigned."""
    doing: Activity
    compute_seconds: float
    """Time that computing took, or that it takes at the speed of the steps so far; 0 = unknown."""
    batch_size: int
    local_steps: int
    allowed_seconds: float = math.inf
    """Time from the assignment to the deadline of the round: a node that needs no more was not late for it."""
    awaited: bool = True
    """True if the round waited for the node."""
    received_share: float = 1.0
    """Share of a finished update that was received: the rest is no longer sent once its round has closed."""
    merged: bool = False
    """True if the update counts in a later round."""


class ModelAction(StrEnum):
    """Use of the model after a round."""

    KEEP = "keep"
    """Keep it as the one to return to."""
    LEAVE = "leave"
    """Train on, and return to an earlier one if need be."""
    REVERT = "revert"
    """Return to the kept one."""


@dataclass(frozen=True, slots=True)
class RoundJudgement:
    """Judgement of a round: what was decided because of it."""

    decisions: Sequence[Decision] = ()
    """Decisions to record, each with its reason."""
    model: ModelAction = ModelAction.KEEP
    rehearsal: RehearsalRequest | None = None
    """Request to rehearse settings, beside the coming rounds."""


class Adaptation(Protocol):
    """Chooses nodes and work before each round, and learns from it afterwards."""

    @property
    def overrides(self) -> Overrides:
        """User overrides, which every plan obeys."""
        ...

    def plan_round(self, available: Sequence[str], round_number: int) -> RoundPlan:
        """Plan a round of some of the available nodes."""
        ...

    def finish_round(self, report: RoundReport) -> RoundJudgement:
        """Learn from a round, and judge it."""
        ...

    def abandon_round(self, round_number: int, fault: str) -> RoundJudgement:
        """Learn from a round without any update; `fault` is the kind of error of every node, empty if they differ."""
        ...

    def record_late(self, work: LateWork) -> None:
        """Learn from work that missed the end of its round, before its node is available again."""
        ...

    def finish_rehearsal(self, result: RehearsalResult, round_number: int) -> Sequence[Decision]:
        """Learn from a rehearsal that ends in a round or before it; return the decisions to record."""
        ...


class FixedAdaptation:
    """No adaptation: every node that no user excluded, with the same batch for all."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.overrides = Overrides()

    def plan_round(self, available: Sequence[str], round_number: int) -> RoundPlan:
        """Select everyone, on the configured batch."""
        del round_number
        excluded = self.overrides.nodes_with(NodeOverride.EXCLUDE)
        selected = [node for node in available if node not in excluded]
        return RoundPlan(selected, dict.fromkeys(selected, self._batch_size))

    def finish_round(self, report: RoundReport) -> RoundJudgement:
        """Learn nothing."""
        del report
        return RoundJudgement()

    def abandon_round(self, round_number: int, fault: str) -> RoundJudgement:
        """Learn nothing."""
        del round_number, fault
        return RoundJudgement(model=ModelAction.LEAVE)

    def record_late(self, work: LateWork) -> None:
        """Learn nothing."""

    def finish_rehearsal(self, result: RehearsalResult, round_number: int) -> Sequence[Decision]:
        """Learn nothing."""
        del result, round_number
        return ()
