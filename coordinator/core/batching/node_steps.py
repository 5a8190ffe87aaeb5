"""Local steps of single nodes in proportion to their speed, for rounds that wait for no certain node.

Source: Liu et al., "Asynchronous local-SGD training for language modeling", 2024 (dynamic local updates).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hypergpu.coordinator.core.node_arrays import Floats, Ints

LEAST_SHARE = 0.25
"""Smallest share of the steps of the fastest node. The bound of norms is one per step, and the steps of short work are
the longest: with fewer, an honest node would come close to it."""
_LEAST_CHANGE = 0.2
"""Smallest relative change: measured times vary, and each change is a decision on record."""


@dataclass(frozen=True, slots=True)
class StepsChange:
    """Change of a node's local steps."""

    node_id: str
    old: int
    new: int
    step_seconds: float
    communication_seconds: float
    fastest_seconds: float
    """Time that the fastest node takes for its work and its transfers."""


def steps_by_speed(step_seconds: Floats, communication: Floats, local_steps: int) -> tuple[Ints, float]:
    """Return the local steps with which each node takes as long as the fastest one does for `local_steps`.

    The second value is that time, in seconds.

    Args:
        step_seconds: Time of a local step on each node.
        communication: Time of the transfers of a round of each node, in seconds.
        local_steps: Steps of the fastest node, 2 or more.
    """
    fastest = float((communication + local_steps * step_seconds).min())
    matching = (fastest - communication) / np.maximum(step_seconds, 1e-12)
    least = max(2.0, LEAST_SHARE * local_steps)
    return np.clip(np.rint(matching), np.ceil(least), local_steps).astype(np.int64), fastest


class NodeSteps:
    """Local steps of each node, which change only where they differ by enough."""

    def __init__(self) -> None:
        self._steps: dict[str, int] = {}

    def of(self, nodes: Sequence[str], local_steps: int) -> dict[str, int]:
        """Return the steps of nodes that have others than `local_steps`."""
        known = ((node, self._steps.get(node, local_steps)) for node in nodes)
        return {node: steps for node, steps in known if steps != local_steps}

    def choose(
        self, nodes: Sequence[str], step_seconds: Floats, communication: Floats, local_steps: int
    ) -> list[StepsChange]:
        """Choose the steps of nodes by their speed, and return what changed; see `steps_by_speed`."""
        changes = []
        wanted, fastest = steps_by_speed(step_seconds, communication, local_steps)
        rows = zip(nodes, wanted.tolist(), step_seconds.tolist(), communication.tolist(), strict=True)
        for node, new, step, waiting in rows:
            old = self._steps.get(node, local_steps)
            if abs(new - old) > _LEAST_CHANGE * old:
                self._steps[node] = new
                changes.append(StepsChange(node, old, new, step, waiting, fastest))
        return changes
