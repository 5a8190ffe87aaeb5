"""Choice of the optimizer of local steps, and the search for its learning rate.

A rate of SGD fits one model and one loss. AdamW scales its own steps, so that one rate is a fair start for most models,
and a run that reaches its target within a few rounds has no time to search for a better one. Where trials can correct
a bad start, training therefore begins with AdamW, and nodes try SGD at the configured rate beside it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

from hypergpu.common.config import TrainingConfig
from hypergpu.common.local_optimizer import ADAMW, LocalOptimizer
from hypergpu.coordinator.core.adaptation.rate_search import RateChange, RateSearch, relative_decreases
from hypergpu.coordinator.core.adaptation.state import OptimizerSearchState, OptimizerState
from hypergpu.coordinator.core.rounds.events import Contribution

_FIRST_FACTOR = 3.0
"""Factor of the default rate of AdamW to begin with. Nodes try factors from 0.2 to 12 around it in the first round."""
_LEAST_FACTOR = 0.125
"""Least factor of that rate once the loss has stalled."""
_LEAST_NODES = 4
"""Fewest nodes to begin with AdamW: one tries a lower rate and one SGD, and half try nothing."""
_MANY_NODES = 8
"""Fewest nodes to try a higher rate of AdamW than the first: two try it, and the mean of many models forgives it. What
one node gains in its first steps says little: of five, one won at 0.012, and the model overfitted for good."""
_SHARE = 0.125
"""Share of the nodes that try SGD in the first round."""
_MIN_GAIN = 2.0
"""Ratio of the decreases of the logarithm of the loss for which SGD has won. The first steps of AdamW are its slowest:
at ratios of 1.2 to 1.5, training with SGD took up to three times as long."""


class OptimizerReason(StrEnum):
    """Reason for a change of the optimizer."""

    FAIR_START = "fair_start"
    """AdamW needs no rate that fits the model, and enough nodes are there to try SGD at the configured one."""
    FASTER = "faster"
    """It decreased the loss faster on the nodes that tried it."""


@dataclass(frozen=True, slots=True)
class OptimizerChange:
    """Change of the optimizer, with the figures behind it."""

    reason: OptimizerReason
    before: LocalOptimizer
    after: LocalOptimizer
    figures: Mapping[str, float | int | str]
    ruinous: bool = False
    """The updates of the optimizer before have harmed the model."""


class OptimizerSearch:
    """Optimizer of the local steps, and the search for its learning rate.

    Args:
        training: Configuration of the training.
        step: Factor of a first trial of a higher rate; 1 tries nothing.
        bound: Largest factor of the rate.
    """

    def __init__(self, training: TrainingConfig, step: float, bound: float) -> None:
        self.rates = RateSearch(step, bound)
        self._configured = self._base = training.first_optimizer
        self._step, self._bound = step, bound
        self._may_choose = _may_choose(training)
        self._rival: LocalOptimizer | None = None
        self._rival_nodes: frozenset[str] = frozenset()

    @property
    def optimizer(self) -> LocalOptimizer:
        """Optimizer of all nodes that try nothing."""
        return self._at(self.rates.factor)

    def state(self) -> OptimizerSearchState:
        """Return the state for a checkpoint."""
        rival = None if self._rival is None else OptimizerState(*self._rival)
        return OptimizerSearchState(OptimizerState(*self._base), self._may_choose, rival, self.rates.state())

    def restore(self, state: OptimizerSearchState) -> None:
        """Go on from the state of an earlier process."""
        self._base = LocalOptimizer(state.base.name, state.base.learning_rate)
        rival = state.rival
        self._rival = None if rival is None else LocalOptimizer(rival.name, rival.learning_rate)
        self._may_choose = state.may_choose
        self.rates = RateSearch(self._step, self._bound)
        self.rates.restore(state.rates)

    def set_step(self, step: float) -> None:
        """Search on from the present rate, with another factor of a first trial; 1 ends the search."""
        self._step = step
        self.rates = RateSearch(step, self.rates.bound, self.rates.factor)

    def begin(self, nodes: int) -> OptimizerChange | None:
        """Begin with AdamW, once, if a first round of so many nodes can try the alternatives; return the change."""
        if not self._may_choose or not nodes:
            return None
        self._may_choose = False
        if nodes < _LEAST_NODES or self._step <= 1.0:
            return None
        self._rival, self._base = self._base, ADAMW
        bound = self._bound if nodes >= _MANY_NODES else min(self._bound, _FIRST_FACTOR)
        self.rates = RateSearch(self._step, bound, _FIRST_FACTOR)
        return OptimizerChange(OptimizerReason.FAIR_START, self._rival, self.optimizer, {"nodes": nodes})

    def plan(self, nodes: Sequence[str]) -> tuple[LocalOptimizer, dict[str, LocalOptimizer]]:
        """Return the optimizer of the coming round, and those of the nodes that try another one."""
        factor, rates = self.rates.plan(nodes)
        trials = {node: self._at(tried) for node, tried in rates.items()}
        self._rival_nodes = frozenset()
        if self._rival is not None and len(nodes) >= _LEAST_NODES:  # of two nodes, one says little of the other
            free = [node for node in nodes if node not in trials]
            self._rival_nodes = frozenset(free[-max(1, int(_SHARE * len(nodes))) :] if len(free) > 1 else ())
            trials |= dict.fromkeys(self._rival_nodes, self._rival)
        return self._at(factor), trials

    def observe(self, contributions: Sequence[Contribution]) -> RateChange | OptimizerChange | None:
        """Judge the trials of a round, and return the change that follows."""
        others = [each for each in contributions if each.node not in self._rival_nodes]
        rival = _decreases(each for each in contributions if each.node in self._rival_nodes)
        usual = _decreases(each for each in others if each.samples)  # updates of trials count none
        change = self.rates.observe(others)
        if self._rival is None or not rival or not usual:
            return change
        candidate, self._rival = self._rival, None
        if fmean(rival) <= max(_MIN_GAIN * fmean(usual), 0.0):
            return change
        before = self.optimizer
        self._base, self.rates = candidate, RateSearch(self._step, self._bound)
        figures = {"decrease": fmean(rival), "usual_decrease": fmean(usual), "nodes": len(rival)}
        return OptimizerChange(OptimizerReason.FASTER, before, candidate, figures, ruinous=fmean(usual) < 0.0)

    def settle(self) -> RateChange | None:
        """End the search and halve the rate, down to the configured one, or to `_LEAST_FACTOR` of AdamW's default."""
        return self.rates.settle(1.0 if self._base == self._configured else _LEAST_FACTOR)

    def _at(self, factor: float) -> LocalOptimizer:
        return self._base._replace(learning_rate=self._base.learning_rate * factor)


def _may_choose(training: TrainingConfig) -> bool:
    """Return whether the user left the optimizer open, and losses of single nodes tell what is better for all.

    With unlike data they do not: a node's loss falls fastest where its update suits no other node.
    """
    open_choice = training.local_optimizer == "auto" and training.local_steps > 1 and not training.server_is_chosen
    return open_choice and training.shards_are_alike


def _decreases(contributions: Iterable[Contribution]) -> list[float]:
    """Return the decreases of the logarithm of the loss of the first batches, where they were measured."""
    return [-math.log(max(1.0 - gain, 1e-9)) for gain in relative_decreases(contributions)]
