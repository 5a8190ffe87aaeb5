"""Figures of a round, made of its line in rounds.jsonl."""

import math
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any, Final, TypeGuard

from hypergpu.outlets.outlet import Round

MOST_NODES: Final = 32
"""Nodes that have a series each; of more, the least, median and largest figure are shown."""
_OTHER: Final = frozenset({"round"})
_SUMS: Final = frozenset({"bytes_down", "bytes_up"})
"""Figures of nodes whose sum means something."""
_COUNTED: Final = frozenset({"contributors", "missing", "late", "repeated"})


def round_of(row: Mapping[str, Any]) -> Round | None:
    """Return a line of rounds.jsonl as a round; None if it is not one, as in a file that was edited."""
    number, seconds = row.get("round"), row.get("ended_seconds")
    if not isinstance(number, int) or isinstance(number, bool) or not 0 < number < 1 << 62 or not _is_figure(seconds):
        return None
    return Round(number, seconds, figures_of(row))


def figures_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line by name; those of nodes are below their figure, as in `batch_sizes/node_1`."""
    return {name: float(value) for name, value in _figures(row) if _is_figure(value)}


def _figures(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if name in _OTHER:
            continue
        if isinstance(value, Mapping):
            found = {node: each for node, each in value.items() if _is_figure(each)}
            if name in _SUMS:
                yield name, sum(found.values())
            yield from _of_nodes(name, found)
        elif name in _COUNTED and isinstance(value, list):
            yield name, len(value)
        else:
            yield name, value


def _of_nodes(name: str, found: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    if len(found) <= MOST_NODES:
        yield from ((f"{name}/{node}", value) for node, value in found.items())
        return
    values = found.values()
    yield from ((f"{name}/least", min(values)), (f"{name}/median", median(values)), (f"{name}/largest", max(values)))


def _is_figure(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
