"""Decisions before a round."""

from typing import TypedDict

from hypergpu.coordinator.core.decisions import Decision


class RoundDecisions(TypedDict):
    """Decisions before a round. Steps, learning rate and optimizer hold for every node that tries no other ones."""

    round: int
    phase: str
    policy: str
    selected_nodes: list[str]
    batch_sizes: dict[str, int]
    local_steps: int
    learning_rate: float
    local_optimizer: str
    decisions: list[Decision]
    """Changes since the last round with their reasons."""
    overhead_seconds: float
