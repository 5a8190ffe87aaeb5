"""Scores of the nodes of a run, from the records of its rounds."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from hypergpu.common import strict_json
from hypergpu.common.errors import ConfigError, InvalidInput
from hypergpu.common.files import read_bytes, shown
from hypergpu.coordinator.run_dir import ROUNDS

NODES: Final = "nodes.json"
POINTS: Final = "points"
LARGEST: Final = 1 << 53
"""Bound of a figure that was read from a file."""


class Basis(StrEnum):
    """Score by which an amount is divided."""

    USEFULNESS = "usefulness"
    """Points: share of, and cosine with, the accepted mean."""
    SAMPLES = "samples"
    """Samples of the updates that were in time."""


@dataclass(frozen=True)
class Epoch:
    """Rounds that are paid together, and the score of each node in them."""

    first_round: int
    last_round: int
    scores: Mapping[str, float]


def read_epoch(run_dir: Path, by: Basis, first: int | None = None, last: int | None = None) -> Epoch:
    """Return the scores of the rounds from `first` to `last`, or of all. Scores below zero count as zero.

    Raises:
        InvalidInput: The rounds are not those of the run, or have no such score.
        ConfigError: The records cannot be read.
    """
    file = run_dir / ROUNDS
    if not file.is_file():
        raise InvalidInput(f"{shown(run_dir)} holds no run: there is no {ROUNDS} in it")
    rows = dict(_rows(file))  # of a round that was repeated after a restart, the last line
    if not rows:
        raise InvalidInput(f"{shown(file)} has no round yet; a share needs at least one")
    first, last = min(rows) if first is None else first, max(rows) if last is None else last
    missing = [str(number) for number in (first, last) if number not in rows]
    if missing or first > last:
        raise InvalidInput(f"the run has rounds {min(rows)} to {max(rows)}; {first}-{last} is no part of them")
    scores: dict[str, float] = defaultdict(float, dict.fromkeys(_nodes(run_dir), 0.0))
    for number in sorted(rows):
        if first <= number <= last:
            for node, score in _SCORES[by](file, number, rows[number]):
                scores[node] += score
    if by is Basis.USEFULNESS and not any(POINTS in row for row in rows.values()):
        raise InvalidInput(f"{shown(file)} has no usefulness: the updates of no round were compared; give --by samples")
    return Epoch(first, last, {node: max(0.0, score) for node, score in scores.items()})


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for row in strict_json.read_lines(file, on_invalid=lambda number: None):  # the last line may be cut short
        yield _whole(file, 0, row.get("round"), "round"), row


def _nodes(run_dir: Path) -> Iterator[str]:
    """Yield the nodes that the run knows, those without a share among them."""
    if (run_dir / NODES).is_file():
        try:
            rows = strict_json.parse(read_bytes(run_dir / NODES))
        except ValueError as error:
            raise ConfigError(f"cannot read {shown(run_dir / NODES)}: {error}") from error
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict) and isinstance(row.get("node_id"), str):
                yield row["node_id"]


def _points(file: Path, number: int, row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the points of each node in a round, and those of no node where no updates were compared."""
    points = row.get(POINTS, {})
    if not isinstance(points, dict):
        raise ConfigError(f"{shown(file)}: round {number}: its points cannot be read")
    for node, score in points.items():
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) < LARGEST:
            raise ConfigError(f"{shown(file)}: round {number}: the points of {node[:60]} are {score!r:.40}")
        yield node, float(score)


def _samples(file: Path, number: int, row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the samples of each node that a round counts."""
    usual = row.get("local_steps", 1)
    batches, own_steps, contributors = (
        row.get("batch_sizes", {}),
        row.get("node_steps", {}),
        row.get("contributors", []),
    )
    if not isinstance(batches, dict) or not isinstance(own_steps, dict) or not isinstance(contributors, list):
        raise ConfigError(f"{shown(file)}: round {number}: its nodes cannot be read")
    for node in map(str, contributors):
        steps = _whole(file, number, own_steps.get(node, usual), f"local_steps of {node}")
        yield node, float(steps * _whole(file, number, batches.get(node), f"batch_sizes of {node}"))


def _whole(file: Path, number: int, value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LARGEST:
        raise ConfigError(f"{shown(file)}: round {number}: {name[:60]} is {value!r:.40}; expected a whole number")
    return value


_SCORES: Final = {Basis.USEFULNESS: _points, Basis.SAMPLES: _samples}
