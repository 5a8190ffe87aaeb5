"""Scores of the nodes of a run, from the records of its rounds."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hypergpu.common import strict_json
from hypergpu.common.errors import ConfigError, InvalidInput
from hypergpu.common.files import read_bytes, shown

ROUNDS: Final = "rounds.jsonl"
NODES: Final = "nodes.json"
LARGEST: Final = 1 << 53
"""Bound of a figure that was read from a file."""


@dataclass(frozen=True)
class Epoch:
    """Rounds that are paid together, and the score of each node in them."""

    first_round: int
    last_round: int
    scores: Mapping[str, float]


def read_epoch(run_dir: Path, first: int | None = None, last: int | None = None) -> Epoch:
    """Return the scores of the rounds from `first` to `last`, or of all.

    Raises:
        InvalidInput: The rounds are not those of the run.
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
            for node, score in _scores(file, number, rows[number]):
                scores[node] += score
    return Epoch(first, last, dict(scores))


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


def _scores(file: Path, number: int, row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the samples of each node that a round counts."""
    steps = _whole(file, number, row.get("local_steps", 1), "local_steps")
    batches, contributors = row.get("batch_sizes", {}), row.get("contributors", [])
    if not isinstance(batches, dict) or not isinstance(contributors, list):
        raise ConfigError(f"{shown(file)}: round {number}: its nodes cannot be read")
    for node in contributors:
        yield str(node), float(steps * _whole(file, number, batches.get(node), f"batch_sizes of {node}"))


def _whole(file: Path, number: int, value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LARGEST:
        raise ConfigError(f"{shown(file)}: round {number}: {name[:60]} is {value!r:.40}; expected a whole number")
    return value
