"""Log of decisions: every change once, with its reason."""

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

import numpy as np

from hypergpu.coordinator.core.adaptation.codecs.decisions import CodecDecision
from hypergpu.coordinator.core.adaptation.connections.control import ConnectionDecision
from hypergpu.coordinator.core.adaptation.optimizer_search import OptimizerChange
from hypergpu.coordinator.core.adaptation.rate_search import RateChange
from hypergpu.coordinator.core.batching.controller import BatchChange
from hypergpu.coordinator.core.batching.node_steps import StepsChange
from hypergpu.coordinator.core.batching.strategies import LocalStepsReason
from hypergpu.coordinator.core.decisions import CLUSTER, Decision, DecisionKind, DecisionLog, Figures
from hypergpu.coordinator.core.links.profile import LinkProfile
from hypergpu.coordinator.core.node_arrays import Floats
from hypergpu.coordinator.core.selection import SelectionReason
from hypergpu.coordinator.core.selection.context import Selection
from hypergpu.coordinator.core.selection.quarantine import NodeStateChange

LISTED = 50
"""Largest number of changes of one kind and round that are recorded singly; more are recorded as count and means."""


class ClusterReason(StrEnum):
    """Reason for a decision about the whole cluster."""

    NO_NODES = "no_nodes"
    NODES_CHANGED = "nodes_changed"
    CLASS_CHANGED = "class_changed"
    SET_BY_USER = "set_by_user"
    WAITING_PAYS = "waiting_pays"
    """Every update is worth waiting for."""
    WAITING_COSTS_MORE = "waiting_costs_more"
    """The last nodes would add less progress than the time until they answer is worth."""


class AdaptationLog(DecisionLog):
    """Log of an adaptation: every change once, with its reason, kept until it is drained."""

    def __init__(self, keep: int) -> None:
        super().__init__(keep)
        self._pending: list[Decision] = []
        self._reasons: dict[str, SelectionReason] = {}
        self._probed: set[str] = set()
        """Nodes that were probed and have not come back."""
        self._close_share = 1.0

    def add(self, decision: Decision) -> None:
        """Record a decision, and keep it until it is drained."""
        super().add(decision)
        self._pending.append(decision)

    def drain(self) -> list[Decision]:
        """Return the decisions since the last call, in order."""
        drained, self._pending = self._pending, []
        return drained

    def classes(self, changed: Iterable[LinkProfile], counts: Figures | None = None) -> None:
        """Record links whose quality class changed and, if given, the number of links in each class."""
        for profile in changed:
            figures: dict[str, float | int | str] = {"quality": str(profile.quality), "score": profile.score}
            if math.isfinite(profile.latency_ms):
                figures |= {"latency_ms": profile.latency_ms, "loss_rate": profile.loss_rate}
            self.decide(DecisionKind.QUALITY, profile.node_id, ClusterReason.CLASS_CHANGED, figures)
        if counts:
            self.decide(DecisionKind.QUALITY, CLUSTER, ClusterReason.CLASS_CHANGED, counts)

    def standings(self, changes: Iterable[tuple[str, NodeStateChange]]) -> None:
        """Record changes of node states."""
        for node_id, change in changes:
            figures = {"state": str(change.state), **change.figures}
            self.decide(DecisionKind.QUARANTINE, node_id, change.reason, figures)

    def selection(self, last: Selection | None) -> None:
        """Record the nodes whose selection reason changed, and those that are probed from now on."""
        if last is None:
            return
        probe = SelectionReason.RECOVERY_PROBE
        changed = [(node_id, why) for node_id, why in last.reasons.items() if self._reasons.get(node_id) is not why]
        new = [(node_id, why) for node_id, why in changed if why is not probe]
        trial = SelectionReason.ON_PROBATION
        probed = [node for node in last.probes if node not in self._probed and last.reasons[node] is not trial]
        for node_id, why in new[:LISTED]:
            self.decide(DecisionKind.SELECTION, node_id, why, last.figures_of(node_id))
        for node_id in probed[:LISTED]:
            self.decide(DecisionKind.SELECTION, node_id, probe, last.probes[node_id])
        if new or probed:
            figures = {"selected": len(last.selected), "available": len(last.reasons), "changed": len(new)}
            self.decide(DecisionKind.SELECTION, CLUSTER, ClusterReason.NODES_CHANGED, figures)
        self._probed.update(probed)
        self._probed.difference_update(last.selected)
        self._reasons.update(new)

    def batches(self, changes: Mapping[str, BatchChange]) -> None:
        """Record changed batch sizes."""
        if len(changes) <= LISTED:
            for node_id, change in changes.items():
                figures = {"from": change.old, "to": change.new, **change.figures}
                self.decide(DecisionKind.BATCH_SIZE, node_id, change.reason, figures)
            return
        for reason in dict.fromkeys(change.reason for change in changes.values()):
            same = [change for change in changes.values() if change.reason is reason]
            figures = {
                "nodes": len(same),
                "mean_from": sum(change.old for change in same) / len(same),
                "mean_to": sum(change.new for change in same) / len(same),
            }
            self.decide(DecisionKind.BATCH_SIZE, CLUSTER, reason, figures)

    def local_steps(self, before: int, after: int, drift_steps: float, communication_seconds: float) -> None:
        """Record changed local steps."""
        if before == after:
            return
        more = after > before
        reason = LocalStepsReason.AMORTISES_COMMUNICATION if more else LocalStepsReason.SHORTER_ROUNDS_PAY
        figures = {
            "from": before,
            "to": after,
            "communication_seconds": communication_seconds,
            "drift_steps": drift_steps,
        }
        self.decide(DecisionKind.LOCAL_STEPS, CLUSTER, reason, figures)

    def node_steps(self, changes: Sequence[StepsChange]) -> None:
        """Record changed local steps of single nodes."""
        if len(changes) > LISTED:
            self.decide(DecisionKind.LOCAL_STEPS, CLUSTER, LocalStepsReason.MATCHES_SPEED, {"nodes": len(changes)})
            return
        for change in changes:
            figures = {
                "from": change.old,
                "to": change.new,
                "step_seconds": change.step_seconds,
                "communication_seconds": change.communication_seconds,
                "fastest_seconds": change.fastest_seconds,
            }
            self.decide(DecisionKind.LOCAL_STEPS, change.node_id, LocalStepsReason.MATCHES_SPEED, figures)

    def close_share(self, share: float, nodes: int, seconds: Floats) -> None:
        """Record a changed share of the nodes that closes a round, with the longest times that nodes took lately."""
        if share == self._close_share:
            return
        self._close_share = share
        slowest = np.sort(seconds)
        enough = round(share * nodes)
        reason = ClusterReason.WAITING_PAYS if enough == nodes else ClusterReason.WAITING_COSTS_MORE
        figures = {"enough": enough, "nodes": nodes, "seconds": float(slowest[enough - 1])}
        self.decide(DecisionKind.DEADLINE, CLUSTER, reason, figures | {"seconds_for_all": float(slowest[-1])})

    def codecs(self, decisions: Sequence[CodecDecision]) -> None:
        """Record changes of codecs, and verdicts on them."""
        self._transfers(DecisionKind.COMPRESSION, decisions)

    def connections(self, decisions: Sequence[ConnectionDecision]) -> None:
        """Record changes of the connections of transfers, and verdicts on them."""
        self._transfers(DecisionKind.CONNECTIONS, decisions)

    def _transfers(self, kind: DecisionKind, decisions: Sequence[CodecDecision] | Sequence[ConnectionDecision]) -> None:
        if len(decisions) <= LISTED:
            for each in decisions:
                self.decide(kind, each.node, each.reason, each.figures)
            return
        for reason in dict.fromkeys(each.reason for each in decisions):
            same = [each.figures for each in decisions if each.reason is reason]
            figures: dict[str, float | int | str] = {"nodes": len(same)}
            for name, value in same[0].items():
                if not isinstance(value, str):
                    figures[f"mean_{name}"] = sum(float(each.get(name, 0.0)) for each in same) / len(same)
            self.decide(kind, CLUSTER, reason, figures)

    def optimizer(self, change: RateChange | OptimizerChange | None) -> None:
        """Record a changed optimizer of the local steps, or its changed learning-rate factor."""
        if isinstance(change, OptimizerChange):
            names: Figures = {
                "from": change.before.name,
                "to": change.after.name,
                "learning_rate": change.after.learning_rate,
            }
            self.decide(DecisionKind.OPTIMIZER, CLUSTER, change.reason, {**names, **change.figures})
        elif change is not None:
            figures = {"from_factor": change.before, "to_factor": change.after, **change.figures}
            self.decide(DecisionKind.LEARNING_RATE, CLUSTER, change.reason, figures)
