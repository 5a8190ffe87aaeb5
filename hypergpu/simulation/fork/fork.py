"""Fork of a run: the scenario that goes on from its state, and what is not known of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from hypergpu.common.config import SystemConfig, TrainingConfig
from hypergpu.common.config.loading import parse
from hypergpu.common.metric import ACCURACY, LOSS, MetricSpec
from hypergpu.simulation.calibration import MeasuredCompute, compute_times
from hypergpu.simulation.compute import times_of
from hypergpu.simulation.convergence import FITTED, Convergence
from hypergpu.simulation.fork.links import fit_paths, with_paths
from hypergpu.simulation.fork.state import RunState
from hypergpu.simulation.scenario import NOT_MODELLED, Scenario

_STAND_IN: Final = "digits"
"""Task whose curve stands in for one without: its times and bytes are the same, and its progress is not told."""
_MOST_TAIL: Final = 1.5
"""Distance of the longest round trip from the upper quartile, in interquartile ranges, that the path itself explains.
Beyond, a packet was lost and sent again, which the fork does by itself."""


@dataclass(frozen=True)
class Fork:
    """Run in virtual time that goes on where a real or simulated one was."""

    state: RunState
    scenario: Scenario
    compute: MeasuredCompute
    learns: bool
    """True if the curve and the place on it are known, so that progress can be told."""
    unknown: tuple[str, ...]
    """Gaps in the knowledge of the fork, one sentence each."""

    @property
    def metric(self) -> MetricSpec:
        """Metric of its progress."""
        return LOSS if self.scenario.learning_curve().metric_start is None else ACCURACY

    def scenario_with(self, config: SystemConfig, rounds: int, seed: int) -> Scenario:
        """Return the fork with another configuration, for so many rounds."""
        changed = self.scenario.changed(config=modelled(config, len(self.state.nodes)), rounds=rounds)
        return changed.changed(policy=str(config.orchestrator.policy), seed=seed)


def fork(state: RunState) -> Fork:
    """Return the fork of a run, with links on which its last rounds take what they took."""
    curve, learns = _curve(state)
    tree: dict[str, Any] = {
        "name": state.name,
        "learning": "model",
        "rounds": len(state.rows),
        "convergence": {name: value for name, value in curve.model_dump().items() if value is not None},
        "profiles": {node: _profile(state, node) for node in state.nodes},
        "nodes": [{"id": node, "profile": node} for node in state.nodes],
        "evaluation_seconds": state.evaluation_seconds,
        "loss_model": "transport",
        "seed": state.config.training.seed,
        "policy": str(state.config.orchestrator.policy),
        "config": modelled(state.config, len(state.nodes)),
    }
    scenario = parse(Scenario, tree, where=f"fork of {state.name}")
    compute = MeasuredCompute(compute_times(state.rows, times_of(scenario), dict.fromkeys(state.nodes, 1.0)))
    scenario = with_paths(scenario, fit_paths(state, scenario, compute))
    return Fork(state, scenario, compute, learns, tuple(_unknown(state, learns)))


def modelled(config: SystemConfig, nodes: int) -> SystemConfig:
    """Return a configuration without what the model of convergence refuses, and without a reason to stop early."""
    plain = TrainingConfig()
    update: dict[str, Any] = {name: getattr(plain, name) for name in (*NOT_MODELLED, "partition", "recipe")}
    update |= {"target_accuracy": None, "patience": 0, "min_nodes": nodes, "server_nesterov": False}
    if config.training.task not in FITTED:
        update["task"] = _STAND_IN
    return config.model_copy(update={"training": config.training.model_copy(update=update)})


def _profile(state: RunState, node: str) -> dict[str, Any]:
    measured = state.round_trips_ms.get(node)
    if not measured:
        return {"rtt_ms": 0.0}
    # Each direction draws half of a round trip for itself. The sum of two halves varies less than the whole, by √2.
    _, low, middle, high, most = measured
    measured = [*measured[:4], min(most, high + _MOST_TAIL * (high - low))]
    values = [max(0.0, middle + math.sqrt(2) * (value - middle)) for value in measured]
    return {"rtt_ms": {"distribution": "empirical", "values": values}}


def _curve(state: RunState) -> tuple[Convergence, bool]:
    """Return the rest of the task's curve, from the run's place on it; False if either is unknown."""
    task = state.config.training.task
    curve = FITTED.get(task, FITTED[_STAND_IN]).model_copy(update={"model_bytes": state.model_bytes})
    last = next((row for row in reversed(state.rows) if row.get("loss") is not None), None)
    if task not in FITTED or last is None:
        return curve, False
    path = _place(curve, last)
    return (curve if path is None else rest_of(curve, path)), path is not None


def _place(curve: Convergence, row: Mapping[str, Any]) -> float | None:
    """Return the path, in full steps, on which a curve has the metric of a round, or its loss; None if it never has."""
    value, share = row.get("accuracy", row["loss"]), curve.metric_start is not None and "accuracy" in row
    start, limit = (curve.metric_start, curve.metric_limit) if share else (curve.loss_start, curve.loss_floor)
    scale, power = (curve.metric_scale, curve.metric_power) if share else (curve.loss_scale, curve.loss_power)
    if start is None or limit is None or value is None:
        return None
    left = (limit - value) / (limit - start)
    return None if left <= 0 else max(0.0, scale * (math.pow(left, -1 / power) - 1))


def rest_of(curve: Convergence, path: float) -> Convergence:
    """Return the curve from a place on it on: (1 + (s₀ + s)/τ) = (1 + s₀/τ) · (1 + s/(τ + s₀))."""
    update = {"loss_start": curve.loss(path), "loss_scale": curve.loss_scale + path}
    if curve.metric_start is not None:
        update |= {"metric_start": curve.metric(path) or 0.0, "metric_scale": curve.metric_scale + path}
    return curve.model_copy(update=update)


def _unknown(state: RunState, learns: bool) -> list[str]:
    training, found = state.config.training, []
    if not learns:
        name = training.metric or LOSS.name
        found.append(
            f"progress: no learning curve of task {training.task!r} reaches the run's {name}; see `hypergpu fit`"
        )
    else:
        found.append("progress is by the task's fitted curve, of plain SGD at the configured rate")
    without = [node for node in state.nodes if node not in state.round_trips_ms]
    if without:
        found.append(f"round trips of {', '.join(without)}: their whole transfers are put down to bandwidth")
    if state.silent:
        found.append(f"{', '.join(state.silent)}: contributed to none of these rounds, and the fork is without them")
    counts = {count for row in state.rows for way in ("up", "down") for count in row[f"connections_{way}"].values()}
    if len(counts) < 2:
        found.append("what other numbers of connections would bring: packet loss is not seen from outside of TCP")
    if training.partition != "iid":
        found.append(f"what {training.partition} shards do to learning")
    found.append("what links and nodes will do from now on: the last rounds are taken to go on")
    return found
