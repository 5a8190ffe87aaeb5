"""Records of a run as rows, shared by real and simulated runs."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from types import MappingProxyType
from typing import Any

from hypergpu.common import strict_json
from hypergpu.common.metric import MetricSpec
from hypergpu.coordinator.core.overrides import NodeOverride
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.coordinator.core.rounds.membership import RESTORED, Member
from hypergpu.coordinator.core.rounds.node_time import time_of_round
from hypergpu.coordinator.core.rounds.traffic import Traffic


@dataclass(frozen=True, slots=True)
class RunEvent:
    """A run event with its time, as watchers and the run directory receive it."""

    seconds: float
    round: int
    kind: str
    text: str
    fields: Mapping[str, Any]

    def row(self) -> dict[str, Any]:
        """Return a line of events.jsonl; a field with the name of a column is left out."""
        own = {"seconds": round(self.seconds, 6), "round": self.round, "kind": self.kind, "text": self.text}
        return {**own, **{name: value for name, value in self.fields.items() if name not in own}}


def round_row(
    closed: ev.CloseRound,
    loss: float | None,
    spec: MetricSpec,
    metric: float | None,
    ended_seconds: float,
    *,
    traffic: Mapping[str, Traffic],
    others: Mapping[str, float | None] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return a line of rounds.jsonl; the loss and the metric, under its name, are on held-out data.

    Both are None where the round was not evaluated, and the metric also where it is undefined. `traffic` has the bytes
    of each link since the line before.
    """
    utilisation = time_of_round(closed).utilisation
    return {
        "round": closed.round,
        "ended_seconds": round(ended_seconds, 6),
        "seconds": round(closed.seconds, 6),
        "reason": str(closed.reason),
        spec.name: metric,
        "loss": loss,
        "train_loss": closed.loss,
        **({"metrics": dict(others)} if others else {}),
        "samples": closed.samples,
        **_local_steps(closed),
        "learning_rate": closed.learning_rate,
        "local_optimizer": closed.local_optimizer,
        "contributors": [c.node for c in closed.contributions if c.success],
        "missing": [c.node for c in closed.contributions if not c.success],
        **({"late": [_late_row(each) for each in closed.late]} if closed.late else {}),
        "batch_sizes": {c.node: c.batch_size for c in closed.contributions},
        "compute_seconds": {c.node: round(c.compute_seconds, 6) for c in closed.contributions if c.success},
        "waiting_seconds": {c.node: round(c.waiting_seconds, 6) for c in closed.contributions},
        "codec": {c.node: c.codec for c in closed.contributions},
        "parameters_codec": {c.node: c.parameters_codec for c in closed.contributions},
        "connections_down": {c.node: c.connections.down for c in closed.contributions},
        "connections_up": {c.node: c.connections.up for c in closed.contributions},
        "noise": {c.node: float(f"{c.noise:.4g}") for c in closed.contributions if c.success},
        "upload_seconds": {c.node: round(c.upload_seconds, 6) for c in closed.contributions if c.success},
        **_useful_rows(closed),
        **_bytes(traffic),
        "compute_utilisation": None if utilisation is None else round(utilisation, 6),
    }


def _bytes(traffic: Mapping[str, Traffic]) -> dict[str, Any]:
    return {
        "bytes_down": {node: each.down for node, each in traffic.items() if each.down},
        "bytes_up": {node: each.up for node, each in traffic.items() if each.up},
    }


def round_leaf(row: Mapping[str, Any], line: str, metric: str, weights: str) -> dict[str, Any]:
    """Return the leaf of a closed round: figures of its row, and the SHA-256 of its line and of the model after it."""
    figures = {name: row[name] for name in ("reason", "samples", "train_loss", "loss")}
    return {**figures, "metric": row[metric], "row": sha256(line.encode()).hexdigest(), "weights": weights}


def line_of(row: Mapping[str, Any]) -> str:
    """Return a row as a line of a file, without its end."""
    return strict_json.dumps(row, separators=(",", ":"), default=str)


def _local_steps(closed: ev.CloseRound) -> dict[str, Any]:
    """Return the local steps of a round, and of the nodes that had others."""
    own = {c.node: c.local_steps for c in closed.contributions if c.local_steps != closed.local_steps}
    return {"local_steps": closed.local_steps, **({"node_steps": own} if own else {})}


def _useful_rows(closed: ev.CloseRound) -> dict[str, Any]:
    """Return the usefulness of updates by node; nothing if it was not measured."""
    if not closed.useful:
        return {}
    return {
        "share": {each.node: round(each.share, 6) for each in closed.useful},
        "cosine": {each.node: round(each.cosine, 4) for each in closed.useful},
        "points": {each.node: float(f"{each.points:.6g}") for each in closed.useful},
        "repeated": [each.node for each in closed.useful if each.repeated],
    }


def _late_row(late: ev.LateUpdate) -> dict[str, Any]:
    return {
        "node": late.node,
        "round": late.round,
        "staleness": late.staleness,
        "samples": late.samples,
        "weight": float(f"{late.weight:.6g}"),
        "train_loss": late.loss,
        "compute_seconds": round(late.compute_seconds, 6),
    }


def saved_counts(members: Iterable[Member]) -> dict[str, dict[str, float]]:
    """Return the counts of each node that outlast a process of the coordinator."""
    return {each.node_id: {name: getattr(each, name) for name in RESTORED} for each in members}


def node_row(
    member: Member,
    state: str,
    override: NodeOverride,
    links: Mapping[str, float | str] | None = None,
    *,
    samples_used: int | None = None,
    usefulness: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Return a row of nodes.json, with the figures of its link as far as they are known.

    Figures that are unknown before the node's first round are None. `samples_used` counts the node's own samples in
    accepted updates; None where nodes hold no samples of their own. `usefulness` is its share of all points, and half
    the confidence interval; None if it was not measured.
    """
    return {
        "node_id": member.node_id,
        "state": state,
        "reason": member.reason,
        "rounds_contributed": member.rounds_contributed,
        "rounds_selected": member.rounds_selected,
        "retries": member.retries,
        "late": member.late,
        "merged_late": member.merged_late,
        "batch_size": member.batch_size or None,
        "compute_seconds": member.compute_seconds or None,
        "codec": member.codecs.update if member.codecs else None,
        "parameters_codec": member.codecs.parameters if member.codecs else None,
        "noise": member.noise if member.codecs else None,
        "connections_down": member.connections.down if member.connections else None,
        "connections_up": member.connections.up if member.connections else None,
        "compute_utilisation": None if member.utilisation is None else round(member.utilisation, 6),
        "rule": str(override),
        **(links or {}),
        **_price(member),
        **_own_samples(member, samples_used),
        **_usefulness(member, usefulness),
        **_gain(member),
        **member.info,
    }


def _price(member: Member) -> dict[str, Any]:
    """Return the price of a node and what it has cost; nothing of a free one."""
    terms = member.terms
    if not terms.price_per_hour:
        return {}
    return {"price_per_hour": terms.price_per_hour, "priority": terms.priority, "spent": round(member.spent, 6)}


def _usefulness(member: Member, found: tuple[float, float] | None) -> dict[str, Any]:
    if found is None:
        return {}
    share, error = found
    return {
        "usefulness": round(share, 6),
        "usefulness_error": round(error, 6) if math.isfinite(error) else None,
        "judged_rounds": member.judged_rounds,
        "points": float(f"{member.points:.6g}"),
    }


def _gain(member: Member) -> dict[str, Any]:
    """Return the gain of a node's updates on held-out data, as far as it was measured."""
    if member.gain is None:
        return {}
    gain, error = member.gain
    return {
        "gain": gain,
        "gain_error": error if math.isfinite(error) else None,
        "gains_measured": member.measured_updates,
    }


def _own_samples(member: Member, used: int | None) -> dict[str, Any]:
    """Return the figures of the samples that a node alone holds; none where nodes hold no samples of their own."""
    if used is None:
        return {}
    data = member.data
    classes = {"classes": {str(label): samples for label, samples in data.classes.items()}} if data else {}
    return {"samples_held": data.samples if data else None, "samples_used": used, **classes}


def outcome(machine: RoundMachine, finish_reason: str, duration_seconds: float) -> dict[str, Any]:
    """Return the progress of a run: the first part of its summary.json."""
    return {
        "task": machine.config.task,
        "state": str(machine.state),
        "reason": finish_reason,
        "rounds": machine.round - 1,
        "rounds_planned": machine.config.rounds,
        "metric": machine.metric.model_dump(),
        f"final_{machine.metric.name}": machine.metric_value,
        "final_loss": machine.loss,
        "duration_seconds": round(duration_seconds, 3),
        **({"spent": round(spent, 6)} if (spent := machine.members.spent) else {}),
    }
