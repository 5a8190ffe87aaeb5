"""When and how boldly the parts adapt, and the way back when it does not pay."""

from hypergpu.coordinator.core.orchestration.build import build_orchestrator
from hypergpu.coordinator.core.orchestration.orchestrator import AdaptiveOrchestrator
from hypergpu.coordinator.core.orchestration.phases import Phase
from hypergpu.coordinator.core.orchestration.plan import RoundDecisions
from hypergpu.coordinator.core.orchestration.policy import AdaptationPolicy

__all__ = ["AdaptationPolicy", "AdaptiveOrchestrator", "Phase", "RoundDecisions", "build_orchestrator"]
