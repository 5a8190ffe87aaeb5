"""When and how boldly the parts adapt, and the way back when it does not pay."""

from coordinator.core.orchestration.build import build_orchestrator
from coordinator.core.orchestration.orchestrator import AdaptiveOrchestrator
from coordinator.core.orchestration.phases import Phase
from coordinator.core.orchestration.plan import RoundDecisions
from coordinator.core.orchestration.policy import AdaptationPolicy

__all__ = ["AdaptationPolicy", "AdaptiveOrchestrator", "Phase", "RoundDecisions", "build_orchestrator"]
