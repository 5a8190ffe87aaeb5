"""Optimizer of a node's local steps."""

from typing import Final, Literal, NamedTuple, get_args

LocalOptimizerName = Literal["sgd", "adamw"]
LOCAL_OPTIMIZERS: Final[tuple[LocalOptimizerName, ...]] = get_args(LocalOptimizerName)
"""Names of the optimizers that a node has."""


class LocalOptimizer(NamedTuple):
    """Optimizer of a node's local steps."""

    name: str
    """One of `LOCAL_OPTIMIZERS`."""
    learning_rate: float


ADAMW: Final = LocalOptimizer("adamw", 0.001)
"""AdamW with its default rate (Loshchilov & Hutter, ICLR 2019)."""
