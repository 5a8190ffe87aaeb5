"""State of a run in a checkpoint, as JSON. Every field is validated on reading: files get damaged or edited."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from hypergpu.common.errors import CorruptData
from hypergpu.coordinator.core.adaptation.state import VERSION, AdaptationState
from hypergpu.coordinator.core.overrides import NodeOverride
from hypergpu.coordinator.core.rounds.events import FinishReason
from hypergpu.coordinator.core.rounds.suspicion import MIDDLES

_M = TypeVar("_M", bound=BaseModel)
_MOST = 1 << 53
"""Largest plausible count; larger numbers would not fit the protocol messages."""
_HIGHEST_SCORE = 1e9
_LONGEST_RUN_SECONDS = 100 * 365.25 * 86_400

Count = Annotated[int, Field(ge=0, le=_MOST, strict=True)]
NodeId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\z")]
Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class Identity:
    """Properties of data and model that, with the configuration, identify a run."""

    samples: int
    """Number of training samples that all nodes share."""
    data: str
    """Fingerprint of the data."""
    travelling: Sequence[str]
    """Names of the trained tensors."""
    parameter_count: int
    """Number of floats that the optimizer changes."""
    untrained: str
    """Checksum of the tensors that training leaves unchanged."""


class _Saved(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class SavedNode(_Saved):
    """Totals of a node so far."""

    node_id: NodeId
    state: Annotated[str, Field(max_length=64)] = ""
    """Connection of the node as `hypergpu nodes` shows it; empty = unknown."""
    rounds_contributed: Count = 0
    rounds_selected: Count = 0
    retries: Count = 0
    late: Count = 0
    merged_late: Count = 0
    last_accepted: Count = 0
    """Latest round that counts an update of it, or whose update counts late; 0 = none."""
    judged_rounds: Count = 0
    points: Finite = 0.0
    squared_points: Finite = 0.0
    measured_updates: Count = 0
    gains: Finite = 0.0
    squared_gains: Finite = 0.0
    rule: NodeOverride = NodeOverride.AUTOMATIC


class SavedShards(_Saved):
    """Shard assignment, as returned by `ShardTable.snapshot`."""

    owners: dict[NodeId, Count]
    cursors: list[Count]

    @model_validator(mode="after")
    def _owners_own_what_there_is(self) -> "SavedShards":
        for node, index in self.owners.items():
            if index >= len(self.cursors):
                raise ValueError(f"{node} owns shard {index} of {len(self.cursors)}")
        return self


class SavedEvaluation(_Saved):
    """Loss and metric of the model after a round; None if they were not measured."""

    round: Count
    loss: Finite | None
    metric: Finite | None


class SavedImprovement(_Saved):
    """Evaluation of the best model, and how many there were since."""

    round: Count
    loss: Finite
    metric: Finite | None
    evaluations: Count


class SavedLedger(_Saved):
    """The ledger after its last seal, as returned by `Ledger.state`."""

    origin: Annotated[str, Field(pattern=r"^hypergpu/[0-9a-f]{12}\z")]
    size: Count
    note: Annotated[str, Field(max_length=4096)]
    """Signed checkpoint; empty before the first leaf."""
    leaves: list[Annotated[str, Field(pattern=r"^[ -~]*\z")]]
    """Last leaves, which the file of leaves may lack."""

    @property
    def first(self) -> int:
        """Number of leaves that are in the file of leaves."""
        return self.size - len(self.leaves)

    @model_validator(mode="after")
    def _it_has_no_more_leaves_than_its_size(self) -> "SavedLedger":
        if self.first < 0:
            raise ValueError(f"{len(self.leaves)} leaves of {self.size}")
        return self


class SavedSuspect(_Saved):
    """Knowledge of a node by its updates; see `suspicion`."""

    score: Annotated[float, Field(ge=0, le=_HIGHEST_SCORE, allow_inf_nan=False)] = 0.0
    copied: Count = 0
    strikes: Count = 0
    suspended_until: Count = 0
    probation: Count = 0


class SavedSuspicions(_Saved):
    """Knowledge of nodes by their updates, and what those of the latest rounds were measured by."""

    nodes: dict[NodeId, SavedSuspect] = Field(default_factory=dict)
    middles: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=list, max_length=MIDDLES)


class SavedState(_Saved):
    """Everything that a run needs to resume, except its tensors."""

    configuration: dict[str, JsonValue]
    """Section `training` of the configuration when the checkpoint was written."""
    samples: Count
    data: str
    travelling: list[str]
    parameter_count: Count
    untrained: str
    """This field and the four before it form the `Identity`."""
    shards: SavedShards
    nodes: list[SavedNode]
    elapsed_seconds: Annotated[float, Field(ge=0, le=_LONGEST_RUN_SECONDS, allow_inf_nan=False)]
    loss: Finite | None
    """Loss of the last evaluation; None before the first."""
    metric: Finite | None
    """Metric of the last evaluation; None before the first or if undefined."""
    kept: SavedEvaluation | None = None
    """Evaluation of the model to return to; None in a checkpoint of another version."""
    improvement: SavedImprovement | None = None
    """None before the first evaluation, and in a checkpoint of another version."""
    suspicions: SavedSuspicions = SavedSuspicions()
    """Empty in a checkpoint of another version."""
    finished: FinishReason | None
    """Reason for the end of the run; None while it runs."""
    adaptation: AdaptationState | None = None
    """Findings of the adaptation; None in a checkpoint of another version."""

    ledger: SavedLedger | None = None
    """None in a checkpoint of another version."""

    @field_validator("adaptation", mode="before")
    @classmethod
    def _another_version_is_not_read(cls, value: object) -> object:
        return None if isinstance(value, Mapping) and value.get("version") != VERSION else value

    @model_validator(mode="after")
    def _there_are_as_many_shards_as_owners_or_samples(self) -> "SavedState":
        owners, is_local = len(self.shards.owners), self.configuration.get("partition") == "local"
        expected = owners if is_local else min(owners, self.samples)
        if len(self.shards.cursors) != expected:
            raise ValueError(f"there are {len(self.shards.cursors)} shards where {expected} belong")
        return self


class SavedScore(_Saved):
    """Evaluation of the model after a step."""

    loss: Finite | None
    metric: Finite | None


class SavedRound(_Saved):
    """Part of the record of a closed round that its replay needs; see `durability.closing_record`."""

    step: tuple[Finite | None, Finite, Annotated[int, Field(ge=1, le=_MOST)]] | None
    """Momentum, learning rate and delay of momentum; None if the round had no mean."""
    values: Annotated[str, Field(pattern=r"^[0-9a-f]{8}\z")]
    """Checksum of the parameters after the step."""
    then: Literal["", "keep", "revert"]
    """Fate of the model."""
    score: SavedScore | None


def parse_record(record: Mapping[str, Any]) -> SavedRound:
    """Parse and validate the record of a closed round.

    Raises:
        CorruptData: A field is missing or invalid; the message names it.
    """
    return _parsed(SavedRound, record, "record")


def parse_state(state: Mapping[str, Any]) -> SavedState:
    """Parse and validate the state in a checkpoint.

    Raises:
        CorruptData: A field is missing or invalid; the message names it.
    """
    return _parsed(SavedState, state, "state")


def _parsed(kind: type[_M], content: Mapping[str, Any], name: str) -> _M:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or name
        raise CorruptData(f"its {name} is not valid: {where[:200]}: {first['msg'][:200]}") from error
    except RecursionError as error:
        raise CorruptData(f"its {name} is nested too deeply") from error
