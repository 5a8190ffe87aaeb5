"""Planned run: its nodes, its model and what is to be reached, and the scenario that they make.

How fast the model learns is a curve (`convergence`). Without one, only work can be planned: a thousand rounds of the
setting that was given, in samples, so that a plan with fewer nodes needs more rounds. A codec's noise ε is paid in
samples then, 1 + ε times as many.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hypergpu.common.config.loading import parse
from hypergpu.common.metric import ACCURACY, MetricSpec
from hypergpu.node.core.gpu import FASTEST_TFLOPS, PRESETS
from hypergpu.simulation.planning.links_file import PlannedNode
from hypergpu.simulation.run import Outcome
from hypergpu.simulation.scenario import Scenario

DRIFT_STEPS: Final = 400.0
"""Local steps at which half of their worth is lost, where the curve does not say: ten times the policy's own guess for
ten of them, since 500 steps of AdamW were found to cost little (Douillard et al., "DiLoCo", 2023)."""
ROUNDS_OF_WORK: Final = 1000
"""Rounds that a plan without a curve is made for."""
_SIMULATED_ROUNDS: Final = 8
"""Rounds that are simulated for them."""
_MOST_ROUNDS: Final = 2000
"""Most rounds of a run with a curve."""
_CARD: Final = "H100"
"""Card of all nodes, which has most memory. The measured step times are reached by `speed`."""
_NOISE_SCALE: Final = 1e9
"""Gradient noise scale of work without a curve, in samples: so large that every sample counts alike."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Learning of the model."""

    constants: Mapping[str, float]
    """Those of `convergence`."""
    target: float
    """Value of the metric to reach."""
    metric: MetricSpec = ACCURACY
    name: str = ""
    """Name of the task that it was fitted to, or of its file."""


@dataclass(frozen=True, slots=True)
class Request:
    """Planned run."""

    nodes: Sequence[PlannedNode]
    model_bytes: int
    batch_size: int = 64
    """Samples of a local step, to which the nodes' step times belong."""
    local_steps: int = 10
    """Local steps of a round; with a curve, others are tried too."""
    curve: Curve | None = None
    price_per_gb: float = 0.0
    """Price of 10⁹ bytes on any link, in either direction."""
    by_money: bool = False
    """Look for the cheapest setting instead of the fastest."""
    seed: int = 0

    @property
    def scale(self) -> float:
        """Return the planned work in units of the simulated one: 1 with a curve, whose target is simulated."""
        return 1.0 if self.curve else ROUNDS_OF_WORK / _SIMULATED_ROUNDS

    def share(self, outcome: Outcome) -> float:
        """Return the simulated work in units of what a run did.

        Without a curve, a run ends with the first round in which its work is done. What it did is m / (1 - m) times
        that, by the value m of the metric that it ended with.
        """
        if self.curve or not outcome.final_metric:
            return 1.0
        return (1 - outcome.final_metric) / outcome.final_metric

    @property
    def names(self) -> list[str]:
        """Names of the nodes."""
        return [node.name for node in self.nodes]

    def price_per_hour(self, names: Collection[str]) -> float:
        """Return the price of an hour of these nodes."""
        return sum(node.price_per_hour for node in self.nodes if node.name in names)


def scenario_of(request: Request) -> Scenario:
    """Return the scenario of all nodes of a plan."""
    fastest = min(node.step_seconds for node in request.nodes)
    scale = FASTEST_TFLOPS / PRESETS[_CARD].tflops
    curve = request.curve or _work_curve(request)
    constants = {"drift_steps": DRIFT_STEPS} if request.curve else {}
    constants |= dict(curve.constants) | {"model_bytes": request.model_bytes}
    tree = {
        "name": "plan",
        "learning": "model",
        "task": curve.name if request.curve else "digits",
        "rounds": _MOST_ROUNDS if request.curve else 50 * _SIMULATED_ROUNDS,
        "target_accuracy": curve.target,
        "metric": curve.metric,
        "convergence": constants,
        "profiles": {node.name: _profile(node) for node in request.nodes},
        "nodes": [
            {"id": node.name, "profile": node.name, "gpu": _CARD, "speed": scale * fastest / node.step_seconds}
            for node in request.nodes
        ],
        "compute": {"seconds_per_step": 0.0, "seconds_per_sample": fastest / request.batch_size},
        "seed": request.seed,
        "config": {
            "batch": {"max_learning_rate_factor": 1.0},  # the curve is one of its own rate, and knows no divergence
            "training": {
                "batch_size": request.batch_size,
                "local_steps": request.local_steps,
                "learning_rate": constants.get("learning_rate", 0.1),
                "evaluate_every": 1,
            },
        },
    }
    return parse(Scenario, tree, where="plan")


def _work_curve(request: Request) -> Curve:
    """Return a curve on which the way to the target is the work of some rounds of all nodes, in samples."""
    samples = _SIMULATED_ROUNDS * len(request.nodes) * request.batch_size * request.local_steps
    path = samples / _NOISE_SCALE
    constants = {
        "learning_rate": 0.1,
        "noise_scale": _NOISE_SCALE,
        "metric_start": 0.0,
        "metric_limit": 1.0,
        "metric_scale": path,
        "metric_power": 1.0,
    }
    return Curve(constants, 0.5 * (1 - 1e-6))


def _profile(node: PlannedNode) -> dict[str, Any]:
    # Each direction takes half of the mean. Two halves vary less than the whole by √2, which makes up for that.
    spread = {"std": math.sqrt(2) * node.jitter_ms, "floor": max(0.0, node.rtt_ms - 2 * node.jitter_ms)}
    profile: dict[str, Any] = {
        "rtt_ms": {"distribution": "normal", "mean": node.rtt_ms, **spread},
        "loss": node.loss,
    }
    for way, mbit in (("up", node.up_mbit), ("down", node.down_mbit)):
        if mbit < math.inf:
            profile[way] = {"bandwidth_mbit": mbit}
    return profile
