"""What is decided before a round."""

from typing import TypedDict

from hypergpu.coordinator.core.decisions import Decision


class RoundDecisions(TypedDict):
    """What is decided before a round. The same `local_steps` and `learning_rate` hold for every node of it."""

    round: int
    phase: str
    policy: str
    selected_nodes: list[str]
    batch_sizes: dict[str, int]
    local_steps: int
    learning_rate: float
    decisions: list[Decision]
    """What changed since the last round, each with its reason."""
    overhead_seconds: float
