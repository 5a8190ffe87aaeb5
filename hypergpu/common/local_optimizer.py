"""Optimizer of a node's local steps."""

from typing import NamedTuple

LOCAL_OPTIMIZERS = ("sgd", "adamw")
"""Names of the optimizers that a node has."""


class LocalOptimizer(NamedTuple):
    """Optimizer of a node's local steps."""

    name: str
    """One of `LOCAL_OPTIMIZERS`."""
    learning_rate: float
