"""Construction of the adaptive stack from the configuration."""

from hypergpu.common.clock import Clock, monotonic
from hypergpu.common.config import SystemConfig
from hypergpu.coordinator.core.adaptation.orchestrator import AdaptiveOrchestrator
from hypergpu.coordinator.core.batching import AdaptiveBatchController
from hypergpu.coordinator.core.links import NetworkQualityMonitor
from hypergpu.coordinator.core.selection import DynamicNodeSelector

_OFFLINE_AFTER_LOST = 3.0
"""Silence after which a link counts as offline, in times of that after which a node is lost."""


def build_orchestrator(
    config: SystemConfig, *, clock: Clock = monotonic, model_bytes: int | None = None
) -> AdaptiveOrchestrator:
    """Return an orchestrator with its monitor, batch controller and selector, as configured.

    With `model_bytes`, the size of the parameters, the cost of a transfer that was never finished follows from the rate
    of the link, and so do codecs.
    """
    links = config.monitor
    if model_bytes is not None:  # those that a round transfers
        model_bytes = -(-model_bytes // config.training.fragments)
    if "offline_after_seconds" not in links.model_fields_set:  # rare heartbeats are no silence
        offline_after = max(links.offline_after_seconds, _OFFLINE_AFTER_LOST * config.server.lost_after_seconds)
        links = links.model_copy(update={"offline_after_seconds": offline_after})
    monitor = NetworkQualityMonitor(config=links, clock=clock, model_bytes=model_bytes)
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
    is_local = config.training.data_is_local
    selector = DynamicNodeSelector(monitor, chosen.strategy, config=chosen, clock=clock, data_is_local=is_local)
    return AdaptiveOrchestrator(
        config, monitor, batches, selector, config.orchestrator.policy, clock=clock, model_bytes=model_bytes
    )
