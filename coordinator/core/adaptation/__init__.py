"""Adaptation of a run: phases, policies, decisions and rollback."""

from hypergpu.common.strategies import AdaptationPolicy
from hypergpu.coordinator.core.adaptation.build import build_orchestrator
from hypergpu.coordinator.core.adaptation.orchestrator import AdaptiveOrchestrator
from hypergpu.coordinator.core.adaptation.phases import Phase
from hypergpu.coordinator.core.adaptation.plan import RoundDecisions

__all__ = ["AdaptationPolicy", "AdaptiveOrchestrator", "Phase", "RoundDecisions", "build_orchestrator"]
