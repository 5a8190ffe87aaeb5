"""Links of a fork: bandwidths with which the last rounds take in virtual time what they took.

A link's round trips are known from the monitor. Its packet loss and its bandwidths are found by replaying the rounds
with their own decisions. For each of some losses, the bandwidths are corrected by how much longer or shorter the node's
transfers then take than they did. The loss with which they also vary as they did is taken: what losses cost one
transfer and spare another shows in nothing else from outside of TCP.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from statistics import median
from typing import Any, Final, NamedTuple

import numpy as np

from hypergpu.coordinator.core.rounds.adaptation import Adaptation
from hypergpu.simulation.compute import read_rounds
from hypergpu.simulation.fork.state import Row, RunState, figures_of
from hypergpu.simulation.node import Compute
from hypergpu.simulation.replay import ReplayedDecisions
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.statistics import SMALLEST

_ITERATIONS: Final = 3
_LOSSES: Final = (0.0, 0.002, 0.01, 0.05)
_BETTER: Final = 0.7
"""Distance of a larger loss in those of the best so far, for which it is taken instead."""
_QUANTILES: Final = (0.1, 0.25, 0.5, 0.75, 0.9)
_WAYS: Final = ("up", "down")
_LEAST_SHARE: Final = 0.05
"""Smallest part of a transfer's time that is put down to the bandwidth; with less, the link has no limit."""
_MOST_CHANGE: Final = 20.0
"""Largest factor of a bandwidth in one iteration."""
_LEAST_MBIT: Final = 1e-3


class Path(NamedTuple):
    """Properties of a link that are fitted."""

    up: float = math.inf
    """Mbit/s from the node."""
    down: float = math.inf
    """Mbit/s to the node."""
    loss: float = 0.0


@dataclass(frozen=True, slots=True)
class TransferTimes:
    """Sorted seconds of a node's transfers, by direction, as the coordinator sees them."""

    up: Sequence[float]
    down: Sequence[float]

    def distance(self, other: "TransferTimes") -> float:
        """Return how far the distributions are apart: mean distance of the logarithms at the same quantiles."""
        return sum(_distance(getattr(self, way), getattr(other, way)) for way in _WAYS)


class HeldDecisions(ReplayedDecisions):
    """An adaptation that plans as the last rounds of a run did, again and again."""

    def __init__(self, state: RunState, rounds: int) -> None:
        count = len(state.rows)
        rows = [dict(state.rows[number % count]) | {"round": number + 1} for number in range(rounds)]
        super().__init__(rows, state.config.orchestrator.policy)


def fit_paths(state: RunState, scenario: Scenario, compute: Compute) -> dict[str, Path]:
    """Return the path of each node with which its transfers take the time that they took.

    Args:
        state: of the run, with its last rounds.
        scenario: the fork, whose links have round trips and no other limit.
        compute: compute times of the nodes.
    """
    wanted = _times(state.rows)
    best: dict[str, tuple[float, Path]] = {}
    for loss in _LOSSES:
        paths, times = _fitted(state, scenario, compute, wanted, loss)
        for node in state.nodes:
            distance = times[node].distance(wanted[node]) if node in times else math.inf
            if node not in best or distance < _BETTER * best[node][0]:
                best[node] = distance, paths[node]
    return {node: path for node, (_, path) in best.items()}


def _fitted(
    state: RunState, scenario: Scenario, compute: Compute, wanted: Mapping[str, TransferTimes], loss: float
) -> tuple[dict[str, Path], dict[str, TransferTimes]]:
    """Return the paths of that loss that fit best, and the times of transfers on them."""
    paths = {node: Path(loss=loss) for node in state.nodes}
    unlimited = times = _paced(state, with_paths(scenario, paths), compute)
    paths = {node: _first_guess(state, node, wanted[node], unlimited.get(node), loss) for node in state.nodes}
    for _ in range(_ITERATIONS):
        times = _replayed(state, with_paths(scenario, paths), compute)
        paths = {
            node: _corrected(path, wanted[node], times[node], unlimited[node])
            if node in times and node in unlimited
            else path
            for node, path in paths.items()
        }
    return paths, times


def with_paths(scenario: Scenario, paths: Mapping[str, Path]) -> Scenario:
    """Return the scenario with other links; each node has a profile of its own name."""
    profiles: dict[str, Any] = {}
    for name, profile in scenario.profiles.items():
        path = paths[name]
        ways = {way: {"bandwidth_mbit": mbit} for way in _WAYS if (mbit := getattr(path, way)) < math.inf}
        profiles[name] = profile.model_dump(exclude_unset=True) | ways | {"loss": path.loss}
    return scenario.changed(profiles=profiles)


def _paced(state: RunState, scenario: Scenario, compute: Compute) -> dict[str, TransferTimes]:
    """Replay the rounds with a pause after each, so that they begin as far apart as they did.

    Without the waiting for slow links, connections would not be idle for long enough to lose their congestion windows.
    """
    rounds = len(state.rows)
    rows = rows_of(scenario.changed(rounds=rounds), compute, HeldDecisions(state, rounds))
    pause = max(0.0, state.figures.seconds_per_round - figures_of(rows).seconds_per_round)
    return _replayed(state, scenario.changed(evaluation_seconds=scenario.evaluation_seconds + pause), compute)


def _replayed(state: RunState, scenario: Scenario, compute: Compute) -> dict[str, TransferTimes]:
    rounds = len(state.rows)
    return _times(rows_of(scenario.changed(rounds=rounds), compute, HeldDecisions(state, rounds)))


def rows_of(scenario: Scenario, compute: Compute, adaptation: Adaptation | None = None) -> list[dict[str, Any]]:
    """Run a scenario in virtual time; return its rounds, as a coordinator records them."""
    with tempfile.TemporaryDirectory(prefix="hypergpu-") as directory:
        out = FilePath(directory) / "run"
        simulate(scenario, out, compute=compute, adaptation=adaptation)
        return read_rounds(out)


def _times(rows: Sequence[Row]) -> dict[str, TransferTimes]:
    """Return the transfer times of each node that contributed."""
    ups: dict[str, list[float]] = {}
    downs: dict[str, list[float]] = {}
    for row in rows:
        for node in row["contributors"]:
            up = row["upload_seconds"][node]
            ups.setdefault(node, []).append(up)
            downs.setdefault(node, []).append(max(0.0, row["waiting_seconds"][node] - up))
    return {node: TransferTimes(sorted(ups[node]), sorted(downs[node])) for node in ups}


def _distance(ours: Sequence[float], theirs: Sequence[float]) -> float:
    first, second = (np.log(np.maximum(np.quantile(values, _QUANTILES), SMALLEST)) for values in (ours, theirs))
    return float(np.abs(first - second).mean())


def _first_guess(
    state: RunState, node: str, wanted: TransferTimes, unlimited: TransferTimes | None, loss: float
) -> Path:
    """Return the rates that transfers would have in the time that is left of them."""
    rates = {}
    for way in _WAYS:
        moved = [row[f"bytes_{way}"][node] for row in state.rows if node in row[f"bytes_{way}"]]
        left = _left(wanted, unlimited, way)
        rates[way] = max(8e-6 * median(moved) / left, _LEAST_MBIT) if left > 0 and moved else math.inf
    return Path(**rates, loss=loss)


def _left(times: TransferTimes, unlimited: TransferTimes | None, way: str) -> float:
    """Return the part of a usual transfer's time that its bandwidth takes; 0 if that is too small to tell."""
    whole = median(getattr(times, way))
    left = whole - (median(getattr(unlimited, way)) if unlimited is not None else 0.0)
    return left if left > _LEAST_SHARE * whole else 0.0


def _corrected(now: Path, wanted: TransferTimes, times: TransferTimes, unlimited: TransferTimes) -> Path:
    rates = {}
    for way in _WAYS:
        mbit, ours, theirs = getattr(now, way), _left(times, unlimited, way), _left(wanted, unlimited, way)
        if mbit < math.inf and ours and theirs:
            mbit *= min(max(ours / theirs, 1 / _MOST_CHANGE), _MOST_CHANGE)
        rates[way] = max(mbit, _LEAST_MBIT)
    return Path(**rates, loss=now.loss)
