"""Links of a planned run, from CSV: what each node's line and machine can do, and what it costs.

name,rtt_ms,jitter_ms,loss,up_mbit,down_mbit,step_seconds,price_per_hour
virginia,2,0.2,0,1000,1000,0.08,1.90
home,35,6,0.003,20,200,0.21,0

Columns may stand in any order. Only `name`, `rtt_ms` and `step_seconds` are required. An empty bandwidth means no
limit, as in a trace. Lines that begin with # are comments.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from hypergpu.common.csv_lines import cells_of
from hypergpu.common.errors import ConfigError, InvalidInput, suggest
from hypergpu.common.files import read_text
from hypergpu.common.rpc import check_node_id
from hypergpu.common.text import counted

MOST_NODES: Final = 1000
"""Most nodes of a plan: each candidate setting is simulated with all of them."""


class _Column(NamedTuple):
    """Bounds of a column of numbers, and its value in an empty cell; None if a number is required."""

    default: float | None
    least: float
    most: float
    above: bool = False
    """True if the least value is no value."""

    @property
    def wanted(self) -> str:
        """Description of the expected values."""
        if self.above:
            return f"a number above {self.least:g}" + (f", up to {self.most:,.15g}" if self.most < math.inf else "")
        return f"a number from {self.least:g} to {self.most:,.15g}"

    def holds(self, value: float) -> bool:
        """Return whether a value is within the bounds."""
        return self.least <= value <= self.most and not (self.above and value == self.least)


_NUMBERS: Final[Mapping[str, _Column]] = {
    "rtt_ms": _Column(None, 0.0, 1e6),
    "jitter_ms": _Column(0.0, 0.0, 1e6),
    "loss": _Column(0.0, 0.0, 0.5),
    "up_mbit": _Column(math.inf, 0.0, math.inf, above=True),
    "down_mbit": _Column(math.inf, 0.0, math.inf, above=True),
    "step_seconds": _Column(None, 0.0, 1e6, above=True),
    "price_per_hour": _Column(math.nan, 0.0, 1e9),
}
COLUMNS: Final = ("name", *_NUMBERS)
_REQUIRED: Final = ("name", *(name for name, column in _NUMBERS.items() if column.default is None))


@dataclass(frozen=True, slots=True)
class PlannedNode:
    """A node that could take part: its link and its machine."""

    name: str
    rtt_ms: float
    """Mean round trip to the coordinator."""
    step_seconds: float
    """Seconds of one local step on a batch of the planned size."""
    jitter_ms: float = 0.0
    """Standard deviation of round trips."""
    loss: float = 0.0
    """Share of packets that is lost."""
    up_mbit: float = math.inf
    """Megabits per second from the node."""
    down_mbit: float = math.inf
    """Megabits per second to the node."""
    price_per_hour: float = 0.0
    """Price of an hour of the node, in any currency."""


def load_links(file: Path, price_per_hour: float = 0.0) -> list[PlannedNode]:
    """Return the nodes of a file; those without a price cost `price_per_hour`.

    Raises:
        ConfigError: it cannot be read or does not hold; file, line, column and the expected value are named.
    """
    return parse_links(read_text(file), str(file), price_per_hour)


def parse_links(text: str, name: str, price_per_hour: float = 0.0) -> list[PlannedNode]:
    """Return the nodes in a CSV text; errors call the text `name`.

    Raises:
        ConfigError: as `load_links`.
    """
    header: Sequence[str] = ()
    found: dict[str, PlannedNode] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        where = f"{name}:{number}"
        cells = cells_of(line, where)
        if not header:
            header = _header(cells, where)
            continue
        node = _node(header, cells, where, price_per_hour)
        if node.name in found:
            raise ConfigError(f"{where}: name: {node.name!r} is in the file twice")
        found[node.name] = node
    if not found:
        raise ConfigError(f"{name}: expected the columns {','.join(COLUMNS)} and at least one row")
    if len(found) > MOST_NODES:
        raise ConfigError(f"{name}: {counted(len(found), 'node')}; expected {MOST_NODES:,} or fewer")
    return list(found.values())


def _header(cells: Sequence[str], where: str) -> Sequence[str]:
    for cell in cells:
        if cell not in COLUMNS:
            raise ConfigError(f"{where}: unknown column {cell!r}{suggest(cell, COLUMNS)}")
        if cells.count(cell) > 1:
            raise ConfigError(f"{where}: column {cell} twice")
    missing = [column for column in _REQUIRED if column not in cells]
    if missing:
        raise ConfigError(f"{where}: {missing[0]}: expected this column; found {','.join(cells)}")
    return cells


def _node(header: Sequence[str], cells: Sequence[str], where: str, price_per_hour: float) -> PlannedNode:
    if len(cells) != len(header):
        raise ConfigError(f"{where}: expected {counted(len(header), 'value')}, found {len(cells)}")
    given = dict(zip(header, cells, strict=True))
    try:
        node_id = check_node_id(given["name"])
    except InvalidInput as error:
        raise ConfigError(f"{where}: name: {error}") from error
    values = {column: _number(column, given.get(column, ""), where) for column in _NUMBERS}
    if math.isnan(values["price_per_hour"]):
        values["price_per_hour"] = price_per_hour
    return PlannedNode(node_id, **values)


def _number(name: str, cell: str, where: str) -> float:
    column = _NUMBERS[name]
    if not cell and column.default is not None:
        return column.default
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not column.holds(value):
        found = repr(cell) if cell else "nothing"
        raise ConfigError(f"{where}: {name}: expected {column.wanted}, found {found}")
    return value
