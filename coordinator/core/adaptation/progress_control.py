"""Control of the learning rate, of momentum and of the model by what each round was worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hypergpu.common.config import SystemConfig
from hypergpu.common.strategies import AdaptationPolicy
from hypergpu.coordinator.core.adaptation.policy import PARAMETERS
from hypergpu.coordinator.core.adaptation.progress import ModelProgress, Regression
from hypergpu.coordinator.core.adaptation.rate_search import RateChange, RateSearch


@dataclass(frozen=True, slots=True)
class ConfigurationSnapshot:
    """Configuration of the best round so far."""

    round: int
    batch_sizes: Mapping[str, int]
    local_steps: int


class ProgressControl:
    """Finds the learning rate, keeps the configuration of the best model, and gives up what diverges.

    Args:
        config: Configuration of the whole system.
        policy: Policy of the adaptation.
    """

    def __init__(self, config: SystemConfig, policy: AdaptationPolicy) -> None:
        self.progress = ModelProgress()
        self.rollbacks = 0
        self.snapshot: ConfigurationSnapshot | None = None
        """Configuration of the best model so far."""
        self._config = config
        self._momentum_factor = 1.0
        self._policy = policy
        self.rates = self._new_search(1.0)

    def set_policy(self, policy: AdaptationPolicy) -> None:
        """Search on by the parameters of a policy, from the present learning rate."""
        self._policy = policy
        self.rates = self._new_search(self.rates.factor)

    def _new_search(self, factor: float) -> RateSearch:
        several_steps = self._config.training.local_steps > 1  # a single step has no rate of its own
        step = PARAMETERS[self._policy].rate_step if several_steps else 1.0
        return RateSearch(step, self._config.batch.max_learning_rate_factor, factor)

    @property
    def momentum(self) -> float | None:
        """Momentum of the server's step; None where the user has chosen the optimizer, or nodes send gradients."""
        training = self._config.training
        chosen = training.server_optimizer != "sgd" or training.server_momentum > 0
        if chosen or training.local_steps == 1 or self._policy is AdaptationPolicy.NONE:
            return None
        return PARAMETERS[self._policy].momentum * self._momentum_factor

    def plan(self, nodes: Sequence[str]) -> tuple[float, Mapping[str, float]]:
        """Return the factor of the learning rate, and those of the nodes that try another one."""
        return (1.0, {}) if self._policy is AdaptationPolicy.NONE else self.rates.plan(nodes)

    def roll_back(self, regression: Regression) -> tuple[Mapping[str, float | int | str], RateChange] | None:
        """Lower the learning rate and momentum; return the figures behind it and the change, None if none is left."""
        before = self.rates.factor
        change = self.rates.retreat()
        if change is None:
            return None
        self.rollbacks += 1
        self._momentum_factor *= 0.5
        self.progress.forget_last()
        return {**regression.figures, "learning_rate_factor": before}, change
