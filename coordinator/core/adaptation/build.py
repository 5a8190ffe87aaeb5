"""Construction of the adaptive stack from the configuration."""

from hypergpu.common.clock import Clock, monotonic
from hypergpu.common.config import SystemConfig
from hypergpu.coordinator.core.adaptation.orchestrator import AdaptiveOrchestrator
from hypergpu.coordinator.core.batching import AdaptiveBatchController
from hypergpu.coordinator.core.links import NetworkQualityMonitor
from hypergpu.coordinator.core.selection import DynamicNodeSelector


def build_orchestrator(
    config: SystemConfig, *, clock: Clock = monotonic, model_bytes: int | None = None
) -> AdaptiveOrchestrator:
    """Return an orchestrator with its monitor, batch controller and selector, as configured.

    With `model_bytes`, the size of the parameters and of an update, the cost of a transfer that was never finished
    follows from the rate of the link.
    """
    monitor = NetworkQualityMonitor(config=config.monitor, clock=clock, model_bytes=model_bytes)
    batches = AdaptiveBatchController(
        monitor,
        config.training.batch_size,
        config.batch.strategy,
        config=config.batch,
        local_steps=config.training.local_steps,
    )
    chosen = config.selector
    if not config.training.shards_are_alike:  # no other node has a slow node's data, so its turn is worth the time
        chosen = chosen.model_copy(update={"slow_time_share": max(chosen.slow_time_share, 1.0)})
    selector = DynamicNodeSelector(monitor, chosen.strategy, config=chosen, clock=clock)
    return AdaptiveOrchestrator(config, monitor, batches, selector, config.orchestrator.policy, clock=clock)
