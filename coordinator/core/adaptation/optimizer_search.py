"""Choice of the optimizer of local steps, and the search for its learning rate.

A rate of SGD fits one model and one loss. AdamW and Muon scale their own steps, so that one rate is a fair start for
most models, and a run that reaches its target within a few rounds has no time to search for a better one. Where trials
can correct a bad start, training therefore begins with one of them, and nodes try SGD at the configured rate beside it.

Muon learns most by each step, but its time grows with the product of the sides of a matrix and the shorter one. A small
model begins with it. A larger one begins with AdamW, and nodes try Muon, which is taken if it learns more in the time
of a round.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean
from typing import Final

from hypergpu.common.config import TrainingConfig
from hypergpu.common.local_optimizer import ADAMW, MUON, LocalOptimizer
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
_NO_HIGHER = 1.2
"""Bound of the factor of Muon's rate with fewer nodes: too near for a higher trial, and above 1 for a lower one."""
_SHARE = 0.125
"""Share of the nodes that try a rival in the first round."""
_NODES_FOR_TWO = 6
"""Fewest nodes of which some try one rival and others another in the same round."""
_SMALL_BYTES = 200_000
"""Size of the parameters, as float32, up to which training begins with Muon: one square matrix of that size, the worst
case, takes it 10 ms on one core."""
_MIN_GAINS: Final = {"sgd": 2.0, "muon": 1.1}
"""Ratios of the decreases of the logarithm of the loss, in the same time, for which a rival has won. The first steps of
AdamW are its slowest: at ratios of 1.2 to 1.5, training with SGD took up to three times as long."""
_LARGEST_SHARE = 0.99
"""Largest share of the computing that an optimizer is taken to have."""


class OptimizerReason(StrEnum):
    """Reason for a change of the optimizer."""

    FAIR_START = "fair_start"
    """It needs no rate that fits the model, and enough nodes are there for a comparison."""
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
        model_bytes: Size of the parameters as float32; None if unknown.
    """

    def __init__(self, training: TrainingConfig, step: float, bound: float, model_bytes: int | None = None) -> None:
        self._is_buffered = training.is_buffered
        """True if no trial can correct the start: it is then at the optimizer's default rate."""
        self._is_small = model_bytes is not None and model_bytes <= _SMALL_BYTES
        self._is_alike = training.shards_are_alike
        self.rates = self._rate_search(step, bound)
        self._configured = self._base = training.first_optimizer
        self._step, self._bound = step, bound
        self._may_choose = _may_choose(training)
        self._rivals: list[LocalOptimizer] = []
        """Optimizers that are still to be tried."""
        self._tried: dict[str, LocalOptimizer] = {}
        """Rivals that nodes try in the open round."""

    @property
    def optimizer(self) -> LocalOptimizer:
        """Optimizer of all nodes that try nothing."""
        return self._at(self.rates.factor)

    def state(self) -> OptimizerSearchState:
        """Return the state for a checkpoint."""
        rivals = tuple(OptimizerState(*rival) for rival in self._rivals)
        return OptimizerSearchState(OptimizerState(*self._base), self._may_choose, rivals, self.rates.state())

    def restore(self, state: OptimizerSearchState) -> None:
        """Go on from the state of an earlier process."""
        self._base = LocalOptimizer(state.base.name, state.base.learning_rate)
        self._rivals = [LocalOptimizer(rival.name, rival.learning_rate) for rival in state.rivals]
        self._may_choose = state.may_choose
        self.rates = self._rate_search(self._step, self._bound)
        self.rates.restore(state.rates)

    def set_step(self, step: float) -> None:
        """Search on from the present rate, with another factor of a first trial; 1 ends the search."""
        self._step = step
        self.rates = self._rate_search(step, self.rates.bound, self.rates.factor)

    def begin(self, nodes: int) -> OptimizerChange | None:
        """Begin with Muon or AdamW, once, if a first round of so many nodes can try SGD too; return the change.

        In buffered rounds nobody tries anything, and training begins at the lower of the rates.
        """
        if not self._may_choose or not nodes:
            return None
        self._may_choose = False
        if nodes < _LEAST_NODES or (self._step <= 1.0 and not self._is_buffered):
            return None
        before, self._base = self._base, MUON if self._is_small else ADAMW
        self._rivals = [before] if self._is_small else [MUON, before]
        first = 1.0 if self._is_small else _FIRST_FACTOR
        if self._is_buffered:
            self._rivals, first = [], 1.0
        self.rates = self._rate_search(self._step, self._bound_of(self._base, nodes), first)
        return OptimizerChange(OptimizerReason.FAIR_START, before, self.optimizer, {"nodes": nodes})

    def plan(self, nodes: Sequence[str]) -> tuple[LocalOptimizer, dict[str, LocalOptimizer]]:
        """Return the optimizer of the coming round, and those of the nodes that try another one."""
        factor, rates = self.rates.plan(nodes)
        trials = {node: self._at(tried) for node, tried in rates.items()}
        self._tried = {}
        if len(nodes) >= _LEAST_NODES:  # of two nodes, one says little of the other
            free = [node for node in nodes if node not in trials]
            count = max(1, int(_SHARE * len(nodes)))
            for rival in self._rivals[: 2 if len(nodes) >= _NODES_FOR_TWO else 1]:
                if len(free) > count:
                    self._tried |= dict.fromkeys(free[-count:], rival)
                    del free[-count:]
        return self._at(factor), trials | self._tried

    def observe(self, contributions: Sequence[Contribution]) -> RateChange | OptimizerChange | None:
        """Judge the trials of a round, and return the change that follows."""
        others = [each for each in contributions if each.node not in self._tried]
        usual = [each for each in others if each.samples]  # updates of trials count none
        change = self.rates.observe(others)
        if not _decreases(usual):
            return change
        won = [found for rival in list(self._rivals) if (found := self._judge(rival, contributions, usual)) is not None]
        if not won:
            return change
        _, after, figures = max(won, key=lambda found: found[0])
        before, nodes = self.optimizer, len(contributions)
        self._base, self.rates = after, self._rate_search(self._step, self._bound_of(after, nodes))
        return OptimizerChange(OptimizerReason.FASTER, before, after, figures, ruinous=fmean(_decreases(usual)) < 0.0)

    def _judge(
        self, rival: LocalOptimizer, contributions: Sequence[Contribution], usual: Sequence[Contribution]
    ) -> tuple[float, LocalOptimizer, Mapping[str, float | int | str]] | None:
        """Return by how much a rival has won, with its figures; None if it has not, or nobody who tried it answered."""
        trials = [each for each in contributions if self._tried.get(each.node) == rival]
        decreases = _decreases(trials)
        if not decreases:
            return None
        self._rivals.remove(rival)
        gain, reference = fmean(decreases), fmean(_decreases(usual))
        time_factor = _time_factor(trials, usual)
        if gain <= max(_MIN_GAINS[rival.name] * time_factor * reference, 0.0):
            return None
        figures = {
            "decrease": gain,
            "usual_decrease": reference,
            "time_factor": time_factor,
            "nodes": len(decreases),
        }
        return gain / time_factor, rival, figures

    def _bound_of(self, optimizer: LocalOptimizer, nodes: int) -> float:
        """Return the largest factor of the optimizer's own rate that is tried."""
        if optimizer == self._configured:
            return self._bound
        first = _FIRST_FACTOR if optimizer == ADAMW else _NO_HIGHER
        return self._bound if nodes >= _MANY_NODES else min(self._bound, first)

    def settle(self) -> RateChange | None:
        """End the search and halve the rate, down to the configured one, or to `_LEAST_FACTOR` of AdamW's default."""
        return self.rates.settle(1.0 if self._base == self._configured else _LEAST_FACTOR)

    def _rate_search(self, step: float, bound: float, factor: float = 1.0) -> RateSearch:
        return RateSearch(step, bound, factor, alike=self._is_alike)

    def _at(self, factor: float) -> LocalOptimizer:
        return self._base._replace(learning_rate=self._base.learning_rate * factor)


def _may_choose(training: TrainingConfig) -> bool:
    """Return whether the user left the optimizer open, and losses of single nodes tell what is better for all.

    With unlike data they do not: a node's loss falls fastest where its update suits no other node.
    """
    open_choice = training.local_optimizer == "auto" and training.local_steps > 1 and not training.server_is_chosen
    return open_choice and training.shards_are_alike


def _time_factor(trials: Sequence[Contribution], usual: Sequence[Contribution]) -> float:
    """Return how many times as long a round takes with the optimizer of the trials.

    The share of the optimizer in the computing tells it: nodes with faster or slower cards have the same one.
    """
    computing, waiting = (
        fmean(getattr(each, name) for each in usual) for name in ("compute_seconds", "waiting_seconds")
    )
    if not computing + waiting > 0.0:
        return 1.0
    share, usual_share = (fmean(min(each.optimizer_share, _LARGEST_SHARE) for each in some) for some in (trials, usual))
    return (waiting + computing * (1.0 - usual_share) / (1.0 - share)) / (waiting + computing)


def _decreases(contributions: Iterable[Contribution]) -> list[float]:
    """Return the decreases of the logarithm of the loss of the first batches, where they were measured."""
    return [-math.log(max(1.0 - gain, 1e-9)) for gain in relative_decreases(contributions)]
