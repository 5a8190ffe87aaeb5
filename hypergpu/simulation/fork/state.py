"""State of a run, running or finished, as far as its directory tells."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final

from hypergpu.common import strict_json
from hypergpu.common.codecs import find_codec
from hypergpu.common.config import SystemConfig, load_config
from hypergpu.common.errors import ConfigError, InvalidInput
from hypergpu.common.files import read_text
from hypergpu.common.metric import finite
from hypergpu.coordinator.core.links.profile import ROUND_TRIP_QUANTILES
from hypergpu.simulation.compute import read_rounds
from hypergpu.simulation.message_sizes import chunks_bytes
from hypergpu.simulation.statistics import SMALLEST

Row = Mapping[str, Any]
_MANY_VALUES: Final = 1 << 20
"""Values by which the share of a codec's bytes is measured."""


@dataclass(frozen=True)
class RunState:
    """Last rounds of a run, with what was measured in them."""

    name: str
    config: SystemConfig
    rows: Sequence[Row]
    """Last rounds, at least one; their nodes are those of the fork."""
    nodes: Sequence[str]
    """Nodes that contributed to one of these rounds."""
    round_trips_ms: Mapping[str, Sequence[float]]
    """Quantiles of the round trips of each node whose link was measured."""
    model_bytes: int
    evaluation_seconds: float
    """Median time between two of these rounds."""
    silent: Sequence[str]
    """Nodes that took part in one of these rounds, and contributed to none."""

    @property
    def round(self) -> int:
        """Last round."""
        return int(self.rows[-1]["round"])

    @property
    def figures(self) -> "Figures":
        """Figures of these rounds."""
        return figures_of(self.rows)


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of some rounds in a row."""

    seconds_per_round: float
    """Mean duration, with the time until the next round."""
    bytes_per_round: float
    """Mean bytes of parameters and updates, on all links."""
    samples_per_second: float
    """Samples of accepted updates."""


def figures_of(rows: Sequence[Row]) -> Figures:
    """Return the figures of rounds in a row, at least one."""
    began = rows[0]["ended_seconds"] - rows[0]["seconds"]
    seconds = (rows[-1]["ended_seconds"] - began) / len(rows)
    moved = sum(sum(row["bytes_up"].values()) + sum(row["bytes_down"].values()) for row in rows)
    samples = sum(row["samples"] for row in rows)
    return Figures(seconds, moved / len(rows), samples / len(rows) / max(seconds, SMALLEST))


def read_state(run_dir: Path, window: int = 20, until: int = 0) -> RunState:
    """Return the state of a run after its last round.

    Args:
        run_dir: directory of the run, which may still be written to.
        window: rounds, back from the last one, that the state is measured on.
        until: round after which the run is looked at; 0 = the last one.

    Raises:
        InvalidInput: no round was finished until then, or there is no run.
        ConfigError: the configuration cannot be read.
    """
    config = load_config(SystemConfig, run_dir / "config.yaml")
    finished = [row for row in read_rounds(run_dir) if not until or row["round"] <= until]
    rows = finished[-window:]
    nodes = sorted({node for row in rows for node in row["contributors"]})
    if not nodes:
        raise InvalidInput(f"{run_dir}: no round was finished{f' until {until}' if until else ''}: nothing to fork")
    gaps = [after["ended_seconds"] - after["seconds"] - before["ended_seconds"] for before, after in pairwise(rows)]
    missing = {node for row in rows for node in row["missing"]}
    return RunState(
        name=run_dir.resolve().name,
        config=config,
        rows=rows,
        nodes=nodes,
        round_trips_ms=_round_trips(run_dir, nodes),
        model_bytes=round(median(_model_sizes(rows))) * config.training.fragments,
        evaluation_seconds=max(0.0, median(gaps)) if gaps else 0.0,
        silent=sorted(missing - set(nodes)),
    )


def _round_trips(run_dir: Path, nodes: Sequence[str]) -> dict[str, list[float]]:
    """Return the round trips that nodes.json has; a link without a measurement has none."""
    file = run_dir / "nodes.json"
    try:
        rows = strict_json.parse(read_text(file)) if file.exists() else []
    except ValueError as error:
        raise ConfigError(f"cannot read {file}: {error}") from error
    found = {}
    for row in rows if isinstance(rows, list) else ():
        if not isinstance(row, dict):
            continue
        values = [finite(row.get(name)) for name in ROUND_TRIP_QUANTILES]
        known = [value for value in values if value is not None]
        if row.get("node_id") in nodes and len(known) == len(values):
            found[row["node_id"]] = known
    return found


def _model_sizes(rows: Sequence[Row]) -> Iterator[float]:
    """Yield the size of the model by each update: its bytes over the share that its codec takes of float32."""
    for row in rows:
        for node in row["contributors"]:
            if sent := row["bytes_up"].get(node):
                share = find_codec(row["codec"][node]).encoded_bytes(_MANY_VALUES) / (4 * _MANY_VALUES)
                yield sent / share * sent / chunks_bytes(sent)
