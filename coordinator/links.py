"""What is heard of each node's network, handed to the adaptation that judges it; and its judgement, read."""

import math
from collections.abc import Mapping
from typing import Any

from common.errors import HyperGPUError
from coordinator.core.orchestration import AdaptiveOrchestrator
from coordinator.core.selection import NodeState


class NodeLinks:
    """Feeds an orchestrator's monitor, and tells what is known of a node."""

    def __init__(self, orchestrator: AdaptiveOrchestrator) -> None:
        self._orchestrator = orchestrator
        self._monitor = orchestrator.monitor

    def register(self, node: str, largest_batch: int) -> None:
        """A node joined; 0 = how much it can hold is not known."""
        self._orchestrator.register_node(node, largest_batch or None)

    def communication(self, node: str, latency_ms: float, success: bool) -> None:
        """One RPC ended."""
        if 0 <= latency_ms < math.inf:
            self._monitor.record_communication(node, latency_ms, success)

    def heard(self, node: str, report: Mapping[str, Any], rtt_ms: float) -> None:
        """A heartbeat: its own round trip, and what the node counted itself."""
        if 0 < rtt_ms < math.inf:
            self._monitor.record_communication(node, rtt_ms, True)
        network = report.get("network")
        if isinstance(network, Mapping):
            self.counted(node, network.get("attempts"), network.get("failures"), source="report")

    def counted(self, node: str, attempts: object, failures: object, source: str) -> None:
        """Totals of a node's own RPCs; what cannot be is passed over."""
        if isinstance(attempts, int) and isinstance(failures, int) and 0 <= failures <= attempts:
            self._monitor.observe_counters(node, attempts=attempts, failures=failures, source=source)

    def describe(self, node: str) -> dict[str, Any]:
        """latency_ms, loss_rate, score, quality, and where the selector holds the node back: state and reason."""
        try:
            profile = self._monitor.get_node_profile(node)
            state = self._orchestrator.selector.get_node_state(node)
            details = self._orchestrator.selector.get_node_details(node)
        except HyperGPUError:
            return {}
        known: dict[str, Any] = {
            "latency_ms": profile.latency_ms if math.isfinite(profile.latency_ms) else None,
            "loss_rate": profile.loss_rate if math.isfinite(profile.loss_rate) else None,
            "score": profile.score,
            "quality": str(profile.quality),
            "reason": details["reason"],
        }
        if state is not NodeState.ACTIVE:
            known["state"] = str(state)
        return known
