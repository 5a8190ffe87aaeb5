"""State of the adaptation, which a checkpoint holds as JSON.

A value of None in place of a number means that nothing was measured. `__post_init__` checks ranges; the reader of
checkpoints checks types.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hypergpu.common.connections import MAX_CONNECTIONS
from hypergpu.common.local_optimizer import LOCAL_OPTIMIZERS
from hypergpu.common.strategies import AdaptationPolicy
from hypergpu.coordinator.core.adaptation.phases import Phase

VERSION = 2
"""Version of this format. A checkpoint with another one is resumed without the state of its adaptation."""
_LARGEST_COUNT = 1 << 53
_LARGEST_FACTOR = 1e30


@dataclass(frozen=True, slots=True)
class OptimizerState:
    """A local optimizer."""

    name: str
    learning_rate: float

    def __post_init__(self) -> None:
        if self.name not in LOCAL_OPTIMIZERS:
            raise ValueError(f"{self.name[:40]!r} is no local optimizer")
        _require_factors(self.learning_rate)


@dataclass(frozen=True, slots=True)
class RateSearchState:
    """State of the search for the learning rate."""

    factor: float
    """Factor in force."""
    step: float
    """Factor of the next trial of a higher rate."""
    bound: float
    """Largest factor that is tried."""
    slower: float | None
    """Lowest factor that decreased the loss less."""
    diverged: float | None
    """Lowest factor that made the loss worse."""
    turn: int
    """Nodes that had their turn to try a rate."""
    tries_low: bool
    """True until a far lower rate was tried."""
    last_gain: float | None
    """Decrease of the loss at the factor in force, where too few nodes try another rate beside it."""

    def __post_init__(self) -> None:
        _require_factors(self.factor, self.step, self.bound, self.slower, self.diverged)
        _require_counts(self.turn)


@dataclass(frozen=True, slots=True)
class OptimizerSearchState:
    """State of the choice of the local optimizer."""

    base: OptimizerState
    """Optimizer whose rate the factor multiplies."""
    may_choose: bool
    """True until the run has chosen the optimizer to begin with."""
    rivals: tuple[OptimizerState, ...]
    """Optimizers that are still to be tried beside it."""
    rates: RateSearchState


@dataclass(frozen=True, slots=True)
class LossRecord:
    """Best loss of one kind so far."""

    best: float | None
    best_round: int
    since_best: int
    """Losses since the best one."""
    first: float | None

    def __post_init__(self) -> None:
        _require_counts(self.best_round, self.since_best)


@dataclass(frozen=True, slots=True)
class ConfigurationSnapshot:
    """Configuration of the best round so far."""

    round: int
    batch_sizes: Mapping[str, int]
    local_steps: int

    def __post_init__(self) -> None:
        _require_counts(self.round)
        _require_positive(self.local_steps, *self.batch_sizes.values())


@dataclass(frozen=True, slots=True)
class ProgressState:
    """Knowledge about the progress of the model."""

    held_out: LossRecord
    training: LossRecord
    last_loss: float | None
    """Loss that the next decrease is measured against."""
    best_worth: float | None
    """Metric of the best evaluated model, if lower is better its negative; None if it was not defined."""
    best_loss: float | None
    """Held-out loss of the best evaluated model; None before the first."""
    since_best: int
    """Evaluated models since the best one."""

    def __post_init__(self) -> None:
        _require_counts(self.since_best)


@dataclass(frozen=True, slots=True)
class ControlState:
    """State of the control by progress."""

    search: OptimizerSearchState
    progress: ProgressState
    momentum_factor: float
    rollbacks: int
    snapshot: ConfigurationSnapshot | None

    def __post_init__(self) -> None:
        _require_factors(self.momentum_factor)
        _require_counts(self.rollbacks)


@dataclass(frozen=True, slots=True)
class BatchState:
    """State of the batches and local steps."""

    local_steps: int
    sizes: Mapping[str, int]
    """Batch size by node id."""
    drift_log: float | None
    """Logarithm of the steps at which half of their worth is lost."""
    saturation_log: float | None
    """Logarithm of the steps after which a node has little left to learn."""

    def __post_init__(self) -> None:
        _require_positive(self.local_steps, *self.sizes.values())


@dataclass(frozen=True, slots=True)
class AdaptationState:
    """Findings of the adaptation about the training. Links and nodes are measured anew after a restart."""

    version: int
    policy: AdaptationPolicy
    phase: Phase
    rounds_begun: int
    held_until: int
    """Round until which batches stay as they are after a rollback; -1 before the first."""
    control: ControlState
    batches: BatchState
    loss_logs: Sequence[float]
    """Logarithms of the latest losses."""
    connections: Mapping[str, tuple[int, int]]
    """Connections of a node's transfers, down and up, by node id."""

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"its version is {self.version}, not {VERSION}")
        _require_counts(self.rounds_begun, self.held_until + 1)
        for counts in self.connections.values():
            if not all(1 <= count <= MAX_CONNECTIONS for count in counts):
                raise ValueError(f"{counts} connections; expected 1 to {MAX_CONNECTIONS} in each direction")


def _require_factors(*factors: float | None) -> None:
    for factor in factors:
        if factor is not None and not 0 < factor <= _LARGEST_FACTOR:
            raise ValueError(f"{factor:g} is no positive factor")


def _require_counts(*counts: int) -> None:
    for count in counts:
        if not 0 <= count <= _LARGEST_COUNT:
            raise ValueError(f"{count:.40g} is no count")


def _require_positive(*counts: int) -> None:
    for count in counts:
        if not 1 <= count <= _LARGEST_COUNT:
            raise ValueError(f"{count:.40g} is no positive count")
