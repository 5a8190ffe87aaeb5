"""Local steps of a work unit."""

from typing import NamedTuple

from hypergpu.common.local_optimizer import PLAIN, LocalOptimizer, LocalSettings
from hypergpu.node.optimizers.state import OptimizerState


class LocalTraining(NamedTuple):
    """Way in which the local steps of a work unit change the parameters. With one step, only the clipping is used."""

    optimizer: LocalOptimizer
    settings: LocalSettings = PLAIN
    state: OptimizerState | None = None
    """State that the optimizer begins with, and leaves in the same object; None for an empty one."""
