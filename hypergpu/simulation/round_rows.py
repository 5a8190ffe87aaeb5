"""Rows of rounds.jsonl and events.jsonl as studies of a run read them: validated, since files get damaged or edited."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hypergpu.common.codecs import CODECS
from hypergpu.common.connections import MAX_CONNECTIONS
from hypergpu.common.errors import ConfigError

_MOST: Final = 1 << 53
_LONGEST_SECONDS: Final = 100 * 365.25 * 86_400

_Count = Annotated[int, Field(ge=0, le=_MOST)]
_Seconds = Annotated[float, Field(ge=0, le=_LONGEST_SECONDS, allow_inf_nan=False)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Name = Annotated[str, Field(min_length=1, max_length=64)]
_Connections = Annotated[int, Field(ge=1, le=MAX_CONNECTIONS)]

_Row = TypeVar("_Row", bound=BaseModel)


class _RoundRow(BaseModel):
    """The part of a row that is read."""

    model_config = ConfigDict(extra="ignore", strict=True)

    round: Annotated[int, Field(ge=1, le=_MOST)]
    ended_seconds: _Seconds
    seconds: _Seconds
    accuracy: _Finite | None = None
    loss: _Finite | None
    samples: _Count
    local_steps: Annotated[int, Field(ge=1, le=_MOST)]
    node_steps: dict[_Name, Annotated[int, Field(ge=1, le=_MOST)]] = Field(default_factory=dict)
    contributors: list[_Name]
    missing: list[_Name]
    batch_sizes: dict[_Name, Annotated[int, Field(ge=1, le=_MOST)]]
    compute_seconds: dict[_Name, _Seconds]
    waiting_seconds: dict[_Name, _Seconds]
    upload_seconds: dict[_Name, _Seconds]
    codec: dict[_Name, str]
    noise: dict[_Name, _Finite]
    parameters_codec: dict[_Name, str]
    connections_down: dict[_Name, _Connections]
    connections_up: dict[_Name, _Connections]
    bytes_down: dict[_Name, _Count]
    bytes_up: dict[_Name, _Count]

    @model_validator(mode="after")
    def _figures_of_all_nodes_are_there(self) -> "_RoundRow":
        of_all = ("codec", "parameters_codec", "connections_down", "connections_up")
        for names, columns in (
            (self.contributors, ("batch_sizes", "compute_seconds", "waiting_seconds", "upload_seconds")),
            (self.batch_sizes, of_all),
        ):
            for column in columns:
                absent = [node for node in names if node not in getattr(self, column)]
                if absent:
                    raise ValueError(f"{column} has no entry of {absent[0]}, which took part")
        unknown = [codec for codec in (*self.codec.values(), *self.parameters_codec.values()) if codec not in CODECS]
        if unknown:
            raise ValueError(f"{unknown[0][:40]!r} is no codec")
        return self


class _EventRow(BaseModel):
    """The part of a line of events.jsonl that is read."""

    model_config = ConfigDict(extra="ignore", strict=True)

    kind: str
    seconds: _Seconds
    node: str = ""
    subject: str = ""
    reason: str = ""
    figures: dict[str, float | str | None] = Field(default_factory=dict)


def require_valid(rows: Sequence[Mapping[str, Any]], source: str) -> None:
    """Check the rows of a run, in which rounds are in order.

    Raises:
        ConfigError: a field is missing or invalid; the message names it, its row and the source.
    """
    last = 0
    for number, row in enumerate(rows, start=1):
        found = _valid(_RoundRow, row, f"{source}: record {number}")
        if found.round <= last:
            raise ConfigError(f"{source}: record {number}: round {found.round} comes after round {last}")
        last = found.round


def require_valid_events(rows: Sequence[Mapping[str, Any]], source: str) -> None:
    """Check the events of a run.

    Raises:
        ConfigError: as `require_valid`.
    """
    for number, row in enumerate(rows, start=1):
        _valid(_EventRow, row, f"{source}: record {number}")


def _valid(kind: type[_Row], row: Mapping[str, Any], where: str) -> _Row:
    try:
        return kind.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:200]
        raise ConfigError(f"{where}: {f'{field}: ' if field else ''}{first['msg'][:200]}") from error
