"""State of the round machine: its phases, the table of transitions between them, and everything it remembers.

`RoundState` is the only state. `RoundMachine.handle` changes it, through the functions of `opening`, `dispatch` and
`closing`; `validation` lists what holds between two events.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from hypergpu.common.transfer_codecs import NO_CODECS, TransferCodecs
from hypergpu.coordinator.core.rounds.deadlines import DeadlineEstimator, DeadlineReason
from hypergpu.coordinator.core.rounds.events import (
    CloseRound,
    Evaluated,
    EvaluationFailed,
    Event,
    Fail,
    GainMeasured,
    NodeJoined,
    NodeLeft,
    NodeLost,
    OverrideSet,
    Pause,
    Rehearsed,
    RequestEnded,
    Resume,
    Stop,
    Suspend,
    Tick,
    UpdateArrived,
    WorkRequested,
    WorkReturned,
)
from hypergpu.coordinator.core.rounds.guards import Improvement, ModelGuard, SharedFaults
from hypergpu.coordinator.core.rounds.late import LateUnits
from hypergpu.coordinator.core.rounds.membership import Membership
from hypergpu.coordinator.core.rounds.shards import ShardTable
from hypergpu.coordinator.core.rounds.spot_checks import SpotChecks
from hypergpu.coordinator.core.rounds.suspicion import Suspicions
from hypergpu.coordinator.core.rounds.update_norms import NormBound
from hypergpu.coordinator.core.rounds.usefulness import Usefulness
from hypergpu.coordinator.core.rounds.work import Round


class Phase(StrEnum):
    """Phase of the current round. The rules for a transition are in the module named here."""

    IDLE = "idle"
    """No round is open. `opening` decides when the next one opens."""
    OPEN = "open"
    """Nodes work on the round. `closing` decides when it closes."""
    CLOSING = "closing"
    """The server takes its step and evaluates the model; the answer is `Evaluated` or `EvaluationFailed`."""
    OVER = "over"
    """The run has finished; no round opens again."""


class RunState(StrEnum):
    """State of a run, as users see it."""

    WAITING = "waiting"
    TRAINING = "training"
    EVALUATING = "evaluating"
    PAUSED = "paused"
    COMPLETED = "completed"
    STOPPED = "stopped"


IDLE: Final = Phase.IDLE  # enum members are slow to look up; these are read with every event
OPEN: Final = Phase.OPEN
CLOSING: Final = Phase.CLOSING
OVER: Final = Phase.OVER

TRANSITIONS: Final[Mapping[tuple[Phase, type[Event]], tuple[Phase, ...]]] = {
    (IDLE, NodeJoined): (IDLE, OPEN),
    (IDLE, NodeLeft): (IDLE, OPEN),
    (IDLE, NodeLost): (IDLE, OPEN),
    (IDLE, WorkRequested): (IDLE, OPEN),
    (IDLE, RequestEnded): (IDLE,),
    (IDLE, UpdateArrived): (IDLE, OPEN),
    (IDLE, WorkReturned): (IDLE, OPEN),
    (IDLE, Evaluated): (IDLE,),
    (IDLE, EvaluationFailed): (IDLE,),
    (IDLE, Tick): (IDLE, OPEN),
    (IDLE, Pause): (IDLE,),
    (IDLE, Resume): (IDLE, OPEN),
    (IDLE, Stop): (OVER,),
    (IDLE, Suspend): (IDLE,),
    (IDLE, Fail): (OVER,),
    (IDLE, OverrideSet): (IDLE, OPEN),
    (IDLE, GainMeasured): (IDLE,),
    (IDLE, Rehearsed): (IDLE,),
    (OPEN, NodeJoined): (OPEN,),
    (OPEN, NodeLeft): (OPEN, CLOSING, IDLE, OVER),
    (OPEN, NodeLost): (OPEN, CLOSING, IDLE, OVER),
    (OPEN, WorkRequested): (OPEN,),
    (OPEN, RequestEnded): (OPEN,),
    (OPEN, UpdateArrived): (OPEN, CLOSING, IDLE, OVER),
    (OPEN, WorkReturned): (OPEN, CLOSING, IDLE, OVER),
    (OPEN, Evaluated): (OPEN,),
    (OPEN, EvaluationFailed): (OPEN,),
    (OPEN, Tick): (OPEN, CLOSING, IDLE, OVER),
    (OPEN, Pause): (OPEN,),
    (OPEN, Resume): (OPEN,),
    (OPEN, Stop): (OVER,),
    (OPEN, Suspend): (OPEN,),
    (OPEN, Fail): (OVER,),
    (OPEN, OverrideSet): (OPEN,),
    (OPEN, GainMeasured): (OPEN,),
    (OPEN, Rehearsed): (OPEN,),
    (CLOSING, NodeJoined): (CLOSING,),
    (CLOSING, NodeLeft): (CLOSING,),
    (CLOSING, NodeLost): (CLOSING,),
    (CLOSING, WorkRequested): (CLOSING,),
    (CLOSING, RequestEnded): (CLOSING,),
    (CLOSING, UpdateArrived): (CLOSING,),
    (CLOSING, WorkReturned): (CLOSING,),
    (CLOSING, Evaluated): (CLOSING, IDLE, OPEN, OVER),
    (CLOSING, EvaluationFailed): (CLOSING, OVER),
    (CLOSING, Tick): (CLOSING,),
    (CLOSING, Pause): (CLOSING,),
    (CLOSING, Resume): (CLOSING,),
    (CLOSING, Stop): (CLOSING,),
    (CLOSING, Suspend): (CLOSING,),
    (CLOSING, Fail): (OVER,),
    (CLOSING, OverrideSet): (CLOSING,),
    (CLOSING, GainMeasured): (CLOSING,),
    (CLOSING, Rehearsed): (CLOSING,),
    (OVER, NodeJoined): (OVER,),
    (OVER, NodeLeft): (OVER,),
    (OVER, NodeLost): (OVER,),
    (OVER, WorkRequested): (OVER,),
    (OVER, RequestEnded): (OVER,),
    (OVER, UpdateArrived): (OVER,),
    (OVER, WorkReturned): (OVER,),
    (OVER, Evaluated): (OVER,),
    (OVER, EvaluationFailed): (OVER,),
    (OVER, Tick): (OVER,),
    (OVER, Pause): (OVER,),
    (OVER, Resume): (OVER,),
    (OVER, Stop): (OVER,),
    (OVER, Suspend): (OVER,),
    (OVER, Fail): (OVER,),
    (OVER, OverrideSet): (OVER,),
    (OVER, GainMeasured): (OVER,),
    (OVER, Rehearsed): (OVER,),
}
"""Phases that may follow (phase, type of event). An event that another round was meant for changes nothing.

A round that closes with `Evaluated` may be followed by the next one at once: CLOSING → OPEN. The machine refuses a
change of phase that is not listed; the tests reach every entry, and none besides.
"""


@dataclass(slots=True)
class OpeningState:
    """Knowledge about the next round, between two rounds."""

    waiting_for: str = ""
    """Text that says why no round is open; empty unless the phase is idle."""
    should_try: bool = False
    """Something changed since the last attempt to open a round."""
    retry_at: float = math.inf
    """Time of the next attempt if nothing changes before; until then a failed attempt is not repeated."""
    ready_by: float = math.inf
    """Time until which the first round waits for nodes that have joined but not asked for work."""
    first_round_opened: bool = False
    """From the second round on one node is enough, instead of `min_nodes`."""
    waited_for_stragglers: bool = False
    """The round was held back once for stragglers; the next attempt goes without them."""
    failed_attempts: int = 0
    """Attempts without a closed round since the last one; each doubles the delay of the next."""
    ordered_codecs: dict[str, frozenset[str]] = field(default_factory=dict)
    """Codecs of the update that abandoned attempts at the coming round ordered, by node."""
    dealt_version: int = -1
    """`Membership.version` for which the shards were dealt; -1 = deal them before the next round."""
    deadline_reason: DeadlineReason | None = None
    """Reason for the deadline of the last round that opened."""


@dataclass(slots=True)
class RunControl:
    """Commands that hold for more than one event, and how the run ended."""

    paused: bool = False
    suspended: bool = False
    """The coordinator is shutting down: no further round opens."""
    stop_reason: str | None = None
    """Reason to stop once the closing round is evaluated."""
    final_state: RunState | None = None
    """`COMPLETED` or `STOPPED` once the run is over."""


@dataclass(slots=True)
class LatestFigures:
    """Figures of the latest rounds; None before there are any."""

    loss: float | None = None
    """Loss on held-out data of the latest evaluated model that was not given up."""
    metric_value: float | None = None
    """Metric of that model; None also where it is undefined."""
    evaluated_round: int | None = None
    """Round after which the model had these figures: that of its evaluation, or of the return to it."""
    round_seconds: float | None = None
    utilisation: float | None = None
    """Share of the time of its nodes in which they computed."""


@dataclass(slots=True)
class Guards:
    """Protection of the run from bad updates, bad models and permanent errors."""

    model: ModelGuard
    norms: defaultdict[int, NormBound] = field(default_factory=lambda: defaultdict(NormBound))
    """Bounds by fragment: some are larger than others, or change faster."""
    suspicions: Suspicions = field(default_factory=Suspicions)
    faults: SharedFaults = field(default_factory=SharedFaults)
    improvement: Improvement = field(default_factory=Improvement)


@dataclass(slots=True)
class RoundState:
    """Everything that the round machine remembers."""

    round: int
    """Number of the round that is open or comes next; the first is 1."""
    members: Membership
    shards: ShardTable
    deadlines: DeadlineEstimator
    guards: Guards
    usefulness: Usefulness = field(default_factory=Usefulness)
    spot_checks: SpotChecks = field(default_factory=SpotChecks)
    codecs: TransferCodecs = NO_CODECS
    """Codecs of the nodes for which the adaptation chooses none."""
    phase: Phase = IDLE
    open_round: Round | None = None
    closed_round: CloseRound | None = None
    """The round whose step and evaluation are outstanding."""
    late: LateUnits = field(default_factory=LateUnits)
    opening: OpeningState = field(default_factory=OpeningState)
    control: RunControl = field(default_factory=RunControl)
    latest: LatestFigures = field(default_factory=LatestFigures)
    timer_at: float = math.inf
    """Time of the last `SetTimer`; infinite = none."""

    @property
    def merging_round(self) -> int:
        """Round that counts a late update which arrives now: the open one, or the next."""
        return self.round + (self.phase is CLOSING)

    def next_due(self) -> float:
        """Time of the next thing that happens without an event; infinite = nothing."""
        at = self.members.silent_at  # also after the run: a coordinator may stay, and shows who is connected
        if self.phase is OVER:
            return at
        retry_at, current = self.opening.retry_at, self.open_round
        at = retry_at if retry_at < at else at  # without min(), which would cost a call with every event
        return at if current is None or at < current.deadline_at else current.deadline_at
