"""Optimizers of local steps, on flat buffers, and the state that they keep between work units."""

from hypergpu.node.optimizers.kept_state import KeptState
from hypergpu.node.optimizers.local_training import LocalTraining
from hypergpu.node.optimizers.state import OptimizerState
from hypergpu.node.optimizers.steps import ApplyStep, step_of

__all__ = ["ApplyStep", "KeptState", "LocalTraining", "OptimizerState", "step_of"]
