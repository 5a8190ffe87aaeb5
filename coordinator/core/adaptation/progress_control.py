"""Control of the learning rate, of momentum and of the model by what each round was worth."""

from collections.abc import Mapping, Sequence

from hypergpu.common.config import SystemConfig
from hypergpu.common.local_optimizer import LocalOptimizer
from hypergpu.common.strategies import AdaptationPolicy
from hypergpu.coordinator.core.adaptation.optimizer_search import OptimizerChange, OptimizerSearch
from hypergpu.coordinator.core.adaptation.policy import PARAMETERS
from hypergpu.coordinator.core.adaptation.progress import ModelProgress, Regression
from hypergpu.coordinator.core.adaptation.rate_search import RateChange
from hypergpu.coordinator.core.adaptation.state import ConfigurationSnapshot, ControlState
from hypergpu.coordinator.core.rounds.events import Contribution

_FACTOR_BESIDE_OWN = 0.5
"""Factor of the momentum where the nodes' updates have momentum of their own in them."""
_PATIENCE = 5
"""Evaluations without a better model after which the learning rate is lowered."""


class ProgressControl:
    """Finds the learning rate, keeps the configuration of the best model, and gives up what diverges.

    Args:
        config: Configuration of the whole system.
        policy: Policy of the adaptation.
        model_bytes: Size of the parameters as float32; None if unknown.
    """

    def __init__(self, config: SystemConfig, policy: AdaptationPolicy, model_bytes: int | None = None) -> None:
        self.progress = ModelProgress()
        self.rollbacks = 0
        self.snapshot: ConfigurationSnapshot | None = None
        """Configuration of the best model so far."""
        self.optimizer = config.training.first_optimizer
        """Optimizer of the latest round for all nodes that tried nothing."""
        self._config = config
        self._momentum_factor = 1.0
        self._policy = policy
        bound = config.batch.max_learning_rate_factor
        self.search = OptimizerSearch(config.training, self._rate_step, bound, model_bytes)

    def set_policy(self, policy: AdaptationPolicy) -> None:
        """Search on by the parameters of a policy, from the present learning rate."""
        self._policy = policy
        self.search.set_step(self._rate_step)

    def state(self) -> ControlState:
        """Return the state for a checkpoint."""
        return ControlState(
            search=self.search.state(),
            progress=self.progress.state(),
            momentum_factor=self._momentum_factor,
            rollbacks=self.rollbacks,
            snapshot=self.snapshot,
        )

    def restore(self, state: ControlState, policy: AdaptationPolicy) -> None:
        """Go on from the state of an earlier process with `policy`; with another one, the search starts anew there."""
        self.search.restore(state.search)
        if policy is not self._policy:
            self.search.set_step(self._rate_step)
        self.progress.restore(state.progress)
        self._momentum_factor, self.rollbacks = state.momentum_factor, state.rollbacks
        self.snapshot = state.snapshot

    @property
    def _rate_step(self) -> float:
        training = self._config.training
        # With one local step, no node takes a step that could try a rate. What a trial shows is of its own round, which
        # a buffered update is not of; and it is not applied, so that it leaves out the data that its node alone holds.
        tries = training.local_steps > 1 and not training.is_buffered and not training.data_is_local
        return PARAMETERS[self._policy].rate_step if tries else 1.0

    @property
    def momentum(self) -> float | None:
        """Momentum of the server's step; None where the user has chosen the optimizer, or nodes send gradients.

        In buffered rounds the adaptation adds none: stale updates are like momentum themselves (Mitliagkas et al.,
        "Asynchrony begets momentum", 2016).
        """
        training = self._config.training
        if training.server_is_chosen or training.local_steps == 1 or self._policy is AdaptationPolicy.NONE:
            return None
        if training.is_buffered:
            return None
        has_own = self.search.optimizer.has_momentum or training.local_momentum > 0
        factor = self._momentum_factor * (_FACTOR_BESIDE_OWN if has_own else 1.0)
        return PARAMETERS[self._policy].momentum * factor

    def begin(self, nodes: Sequence[str]) -> OptimizerChange | None:
        """Choose the optimizer to begin with; return the change if it is not the configured one."""
        return None if self._policy is AdaptationPolicy.NONE else self.search.begin(len(nodes))

    def plan(self, nodes: Sequence[str]) -> Mapping[str, LocalOptimizer]:
        """Set the optimizer of the coming round, and return those of the nodes that try another one."""
        if self._policy is AdaptationPolicy.NONE:
            self.optimizer = self._config.training.first_optimizer
            return {}
        self.optimizer, trials = self.search.plan(nodes)
        return trials

    def settle(self) -> RateChange | None:
        """Lower the rate if no model was better for some time; return the change.

        Training goes on from the best model: at a rate that no longer helps, each round fits the noise of its samples.
        """
        if self.progress.since_best < _PATIENCE:
            return None
        change = self.search.settle()
        if change is not None:
            self.progress.return_to_best()
        return change

    def missing(self, contributions: Sequence[Contribution]) -> list[str]:
        """Return the nodes of the best model's round that did not contribute, where each node holds its own data."""
        if self.snapshot is None or not self._config.training.data_is_local:
            return []
        came = {each.node for each in contributions if each.success}
        return [node for node in self.snapshot.batch_sizes if node not in came]

    def roll_back(self, regression: Regression) -> tuple[Mapping[str, float | int | str], RateChange] | None:
        """Lower the learning rate and momentum; return the figures behind it and the change, None if none is left."""
        before = self.search.rates.factor
        change = self.search.rates.retreat()
        if change is None:
            return None
        self.rollbacks += 1
        self._momentum_factor *= 0.5
        self.progress.return_to_best()
        return {**regression.figures, "learning_rate_factor": before}, change
