"""Batch controller: chooses the batch size of each node and the local steps of a round."""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hypergpu.common.config import BatchConfig
from hypergpu.common.errors import InvalidInput
from hypergpu.common.statistics import quantiles
from hypergpu.common.step_times import StepTimes
from hypergpu.common.strategies import BatchSizeStrategy
from hypergpu.coordinator.core.batching import goodput as gp
from hypergpu.coordinator.core.batching.costs import ComputeCosts
from hypergpu.coordinator.core.batching.strategies import (
    CODE,
    REASONS,
    BatchReason,
    by_latency,
    by_throughput,
)
from hypergpu.coordinator.core.batching.update_statistics import UpdateStatistics
from hypergpu.coordinator.core.checks import parse_enum, require_non_negative
from hypergpu.coordinator.core.links import NetworkQualityMonitor
from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints, NodeIndex, grow_column

_HISTORY = 50
_IDLE_SHARE = 0.02
"""Share of a round: the others wait for a node that idles for less than this at the barrier."""
_LATENCY_SHARE = 0.6
"""Weight of the size by latency in HYBRID; the rest is the size by throughput."""
_CLIMB_STEP = 1.25
"""Largest factor of a hill-climbing step; a larger one overshoots the best size."""
_UNBOUNDED_STEP = 1e9
_DRIFT_PRIOR = 4.0
"""Local steps at which half of their worth is lost, in multiples of the configured ones, until it is measured."""


@dataclass(frozen=True, slots=True)
class BatchChange:
    """Change of a node's batch size."""

    node_id: str
    old: int
    new: int
    reason: BatchReason
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class AdaptationLimits:
    """Limits of a change, set by the policy."""

    step: float = 1.5
    """Largest factor of a change."""
    gain: float = 0.03
    """Smallest relative gain in goodput for which the plan changes."""
    horizon: float = 0.0
    """Forecast horizon of the links in observations."""
    window: int = 8
    """Number of latest round communications used per link."""
    local_steps: int | None = None
    """Local steps that are held; None lets GOODPUT choose them."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """Proposal of a strategy for some nodes. It changes nothing until it is applied."""

    sizes: Floats
    """Proposed batch sizes before bounds are applied."""
    reasons: Ints
    """Code of each reason (`strategies.CODE`)."""
    local_steps: int
    figures: Mapping[str, Floats] = field(default_factory=dict)
    """Figures behind the reasons, by name."""
    plan: gp.RoundPlan | None = None
    """Plan of the round; GOODPUT only."""
    directions: Floats | None = None
    """Directions of hill climbing, +1 or −1."""
    climbs: Bools | None = None
    """Mask of the nodes whose size hill climbing changes."""


class AdaptiveBatchController:
    """Controller that chooses batch sizes from measurements of links and nodes.

    Unequal batches keep the step unbiased, since the mean of the updates is weighted by samples. `local_steps` holds
    for all nodes of a round. Only GOODPUT changes it, and only if the configured number is above 1, since a single step
    exchanges plain gradients. `learning_rate_factor` is set from outside.

    Args:
        network_monitor: Source of latencies and round communication. Every node must be registered there, too.
        baseline_batch_size: Samples per step without adaptation.
        strategy: Strategy that chooses the sizes.
        config: Bounds of the sizes; None for the defaults.
        local_steps: Local steps per round without adaptation.

    Raises:
        InvalidInput: The batch size or the number of steps is below 1.
        UnknownName: There is no such strategy.
    """

    def __init__(
        self,
        network_monitor: NetworkQualityMonitor,
        baseline_batch_size: int = 64,
        strategy: BatchSizeStrategy = BatchSizeStrategy.HYBRID,
        *,
        config: BatchConfig | None = None,
        local_steps: int = 1,
    ) -> None:
        self.config = config or BatchConfig()
        if baseline_batch_size < 1 or local_steps < 1:
            raise InvalidInput(
                f"baseline_batch_size ({baseline_batch_size}) and local_steps ({local_steps}) must be at least 1"
            )
        self.strategy = parse_enum(BatchSizeStrategy, strategy, "batch size strategy")
        self.baseline_batch_size = baseline_batch_size
        self.baseline_local_steps = local_steps
        self.local_steps = local_steps
        self.learning_rate_factor = 1.0
        self.updates = UpdateStatistics()
        self._monitor = network_monitor
        self._index = NodeIndex()
        self.costs = ComputeCosts()
        self._sizes: Ints = np.zeros(0, np.int64)
        self._largest: Ints = np.zeros(0, np.int64)
        self._directions: Floats = np.zeros(0)
        self._history: dict[str, deque[int]] = {}
        self._changes = 0
        self._evaluations = 0
        self._last: gp.RoundPlan | None = None

    # ------------------------------------------------------------ feeding

    def register_node(
        self, node_id: str, largest_batch: int | None = None, step_times: StepTimes | None = None
    ) -> None:
        """Register a node. A repeated registration updates the limit.

        Args:
            node_id: Id of the node.
            largest_batch: Largest batch that the node's memory or data allows; None for the configured maximum.
            step_times: Time of its steps by its own account, until steps of several sizes were measured.
        """
        row = self._index.add(node_id)
        if row is None:
            row = self._index.row(node_id)
        else:
            self.costs.grow(row + 1)
            self._sizes = grow_column(self._sizes, row + 1, self.baseline_batch_size)
            self._largest = grow_column(self._largest, row + 1, self.config.max_batch_size)
            self._directions = grow_column(self._directions, row + 1, 0.0)
            self._history[node_id] = deque([self.baseline_batch_size], maxlen=_HISTORY)
        if largest_batch:
            self._largest[row] = max(1, min(largest_batch, self.config.max_batch_size))
            self._sizes[row] = min(self._sizes[row], self._largest[row])
        if step_times is not None:
            self.costs.announce(row, step_times)

    def record_performance(
        self, node_id: str, samples: int, time_spent: float, *, steps: int = 1, compute_seconds: float | None = None
    ) -> None:
        """Record the work of a node in a round.

        Args:
            node_id: A registered node.
            samples: Number of samples of all steps. A call without samples or steps is ignored.
            time_spent: Seconds of computing and communication.
            steps: Number of local steps.
            compute_seconds: Seconds of computing. None estimates it as `time_spent` without the expected communication.

        Raises:
            UnknownName: The node is not registered.
            InvalidInput: A figure is negative or not finite.
        """
        rows = np.array([self._index.row(node_id)])
        taken = require_non_negative(samples, "samples")
        spent = require_non_negative(time_spent, "time_spent")
        if compute_seconds is None:
            # If communication seems to have taken all of the time, assume that a tenth was computing.
            communication = np.nan_to_num(self._round_communication([node_id], AdaptationLimits())[0])
            compute = max(spent - float(communication), 0.1 * spent)
        else:
            compute = require_non_negative(compute_seconds, "compute_seconds")
        if taken > 0 and steps >= 1:
            self.record_performances(rows, np.array([taken]), np.array([spent]), np.array([steps]), np.array([compute]))

    def record_performances(
        self, rows: Ints, samples: Floats, time_spent: Floats, steps: Ints, compute_seconds: Floats
    ) -> None:
        """Record the work of several nodes in a round; see `record_performance`.

        The rows must be distinct, and samples and steps must be positive.
        """
        timed = time_spent > 1e-9  # the clock may not have advanced
        self.costs.observe_rate(rows[timed], samples[timed] / time_spent[timed])
        self.costs.observe(rows, samples / steps, compute_seconds / steps)

    def record_step(self, node_id: str, batch_size: int, step_seconds: float) -> None:
        """Record the mean duration of a step of work that did not count in its round.

        Raises:
            UnknownName: The node is not registered.
        """
        row = np.array([self._index.row(node_id)])
        self.costs.observe(row, np.array([float(batch_size)]), np.array([step_seconds]))

    def rows(self, nodes: Iterable[str]) -> Ints:
        """Return the rows of nodes, for `record_performances`.

        Raises:
            UnknownName: A node is not registered.
        """
        return self._index.rows(nodes)

    def set_baseline_steps(self, local_steps: int) -> None:
        """Set the local steps of a round without adaptation.

        Raises:
            InvalidInput: The number is below 1.
        """
        if local_steps < 1:
            raise InvalidInput(f"local_steps must be at least 1, not {local_steps}")
        self.baseline_local_steps = self.local_steps = local_steps

    # ------------------------------------------------------------ deciding

    def evaluate_and_adapt(
        self,
        nodes: Sequence[str] | None = None,
        *,
        reference_nodes: int | None = None,
        limits: AdaptationLimits | None = None,
    ) -> dict[str, BatchChange]:
        """Choose new batch sizes, local steps and learning rate with the configured strategy.

        Args:
            nodes: Nodes of the coming round; None for all registered nodes.
            reference_nodes: Number of nodes of the fixed baseline, to which the learning rate is relative.
            limits: Limits of a change; None for the defaults.

        Returns:
            Changed batch sizes by node id.

        Raises:
            UnknownName: A node is not registered.
        """
        ids = list(self._index.ids if nodes is None else nodes)
        if not ids:
            return {}
        limits = limits or AdaptationLimits()
        rows = self._index.rows(ids)
        reference = self.baseline_batch_size * (reference_nodes or len(ids))
        before = self._sizes[rows]
        proposal = self._propose(self.strategy, ids, rows, reference, limits)
        self._evaluations += 1
        self.local_steps = proposal.local_steps
        self._last = proposal.plan or self._last
        if proposal.directions is not None and proposal.climbs is not None:
            self._directions[rows] = proposal.directions
            self.costs.used(rows[proposal.climbs])
        self._sizes[rows] = self._bounded(self.strategy, proposal.sizes, before, rows, self._step(limits))
        return self._changes_since(ids, before, proposal.reasons, proposal.figures)

    def reset(self, nodes: Sequence[str]) -> dict[str, BatchChange]:
        """Reset batch sizes, local steps and learning rate to the baseline, and return the changed sizes."""
        baseline = dict.fromkeys(nodes, self.baseline_batch_size)
        return self.restore(baseline, self.baseline_local_steps, 1.0, BatchReason.BASELINE)

    def restore(
        self, sizes: Mapping[str, int], local_steps: int, learning_rate_factor: float, reason: BatchReason
    ) -> dict[str, BatchChange]:
        """Restore batch sizes, local steps and learning rate of a snapshot, and return the changed sizes."""
        ids = [node_id for node_id in sizes if node_id in self._index]
        rows = self._index.rows(ids)
        before = self._sizes[rows]
        wanted = np.array([sizes[node_id] for node_id in ids], dtype=np.int64)
        self._sizes[rows] = np.minimum(wanted, self._largest[rows])
        self.local_steps, self.learning_rate_factor = local_steps, learning_rate_factor
        return self._changes_since(ids, before, np.full(len(ids), CODE[reason]), {})

    # ------------------------------------------------------------ queries

    @property
    def nodes(self) -> Sequence[str]:
        """Registered nodes."""
        return list(self._index.ids)

    def get_batch_size(self, node_id: str) -> int:
        """Return the batch size of a node: samples per step.

        Raises:
            UnknownName: The node is not registered.
        """
        return int(self._sizes[self._index.row(node_id)])

    def get_batch_sizes(self, nodes: Iterable[str]) -> dict[str, int]:
        """Return the batch sizes of several nodes by id.

        Raises:
            UnknownName: A node is not registered.
        """
        ids = list(nodes)
        return dict(zip(ids, self._sizes[self._index.rows(ids)].tolist(), strict=True))

    def compute_seconds(self, nodes: Sequence[str]) -> Floats:
        """Return the expected computing time of each node in a round with its present batch and local steps."""
        rows = self._index.rows(nodes)
        return self.local_steps * self.costs.fit(rows).seconds(self._sizes[rows])

    @property
    def expected_seconds(self) -> float | None:
        """Expected duration of a round by the latest plan, overhead included; None before the first."""
        return self._last.seconds if self._last else None

    def noise_scale(self, reference_batch: float) -> float:
        """Return the gradient noise scale φ in samples, or `reference_batch` before update norms were reported.

        This prior assumes that the user's cluster is sized so that every node counts.
        """
        return self.updates.noise.value(prior=max(reference_batch, 1.0))

    @property
    def drift_steps(self) -> float:
        """Local steps at which half of their worth is lost."""
        return self.updates.drift.value(prior=_DRIFT_PRIOR * self.baseline_local_steps)

    def worthwhile_steps(self, nodes: Sequence[str]) -> float:
        """Return the local steps of these nodes at which half of their worth is lost, as GOODPUT takes it.

        Raises:
            UnknownName: A node is not registered.
        """
        rows = self._index.rows(nodes)
        communication = self._round_communication(nodes, AdaptationLimits()) + self.costs.overhead.seconds
        return self._worthwhile_steps(communication, self.costs.fit(rows).seconds(self._sizes[rows]))

    def get_adaptation_summary(self) -> dict[str, Any]:
        """Return a summary of the batch sizes.

        Returns:
            `strategy`, `baseline_batch_size`, `nodes`, `batch_sizes`, `mean_batch_size`, `changes` (a count),
            `local_steps`, `learning_rate_factor`, `history` (sizes by node) and, with GOODPUT, `expected_round_seconds`
            and `expected_goodput` (progress per second).
        """
        sizes = self._sizes[: len(self._index)]
        return {
            "strategy": str(self.strategy),
            "baseline_batch_size": self.baseline_batch_size,
            "nodes": len(self._index),
            "batch_sizes": dict(zip(self._index.ids, sizes.tolist(), strict=True)),
            "mean_batch_size": float(sizes.mean()) if len(sizes) else 0.0,
            "changes": self._changes,
            "local_steps": self.local_steps,
            "learning_rate_factor": self.learning_rate_factor,
            "expected_round_seconds": self._last.seconds if self._last else None,
            "expected_goodput": self._last.goodput if self._last else None,
            "history": {node_id: list(history) for node_id, history in self._history.items()},
        }

    def compare_strategies(self, node_id: str) -> dict[str, dict[str, float | None]]:
        """Return the next proposal of each strategy for a node, without changing anything.

        Returns:
            For each strategy `batch_size`, `local_steps`, and the expected `round_seconds` and `samples_per_second`.
            The latter two are None for a node whose communication or computing was never measured.

        Raises:
            UnknownName: The node is not registered.
        """
        rows = np.array([self._index.row(node_id)])
        communication, cost = self._round_communication([node_id], AdaptationLimits()), self.costs.fit(rows)
        is_measured = (
            self._monitor.rounds_measured(self._monitor.rows([node_id]))[0] > 0 and self.costs.measured(rows)[0]
        )
        answers: dict[str, dict[str, float | None]] = {}
        for strategy in BatchSizeStrategy:
            proposal = self._propose(strategy, [node_id], rows, self.baseline_batch_size, AdaptationLimits())
            size = self._bounded(strategy, proposal.sizes, self._sizes[rows], rows, _UNBOUNDED_STEP)
            steps = proposal.local_steps
            seconds = float((communication + steps * cost.seconds(size))[0])
            answers[str(strategy)] = {
                "batch_size": int(size[0]),
                "local_steps": steps,
                "round_seconds": seconds if is_measured else None,
                "samples_per_second": float(size[0]) * steps / seconds if is_measured and seconds > 0 else None,
            }
        return answers

    # ------------------------------------------------------------ inside

    def _propose(
        self, strategy: BatchSizeStrategy, ids: Sequence[str], rows: Ints, reference: int, limits: AdaptationLimits
    ) -> Proposal:
        """Return the proposal of a strategy for these nodes, without changing anything."""
        base, steps = self.baseline_batch_size, self.local_steps
        sizes = self._sizes[rows].astype(np.float64)
        if strategy is BatchSizeStrategy.FIXED:
            return Proposal(np.full(len(rows), float(base)), np.full(len(rows), CODE[BatchReason.BASELINE]), steps)
        if strategy is BatchSizeStrategy.GOODPUT:
            return self._goodput(ids, rows, reference, limits)
        latency = self._monitor.latencies_ms(self._monitor.rows(ids), limits.horizon)
        rates = self.costs.rates(rows)
        figures = {"latency_ms": latency, "samples_per_second": rates[0], "samples_per_second_before": rates[1]}
        near = by_latency(base, latency)
        if strategy is BatchSizeStrategy.LATENCY_BASED:
            higher = near >= sizes
            reasons = np.where(higher, CODE[BatchReason.LATENCY_HIGH], CODE[BatchReason.LATENCY_LOW])
            return Proposal(near, reasons, steps, figures)
        step = 2.0 if self.config.powers_of_two else min(limits.step, _CLIMB_STEP)
        climbed, turned, reasons = by_throughput(sizes, self._directions[rows], rates, step)
        if strategy is BatchSizeStrategy.HYBRID:
            reasons = np.full(len(rows), CODE[BatchReason.HYBRID])
            wanted = _LATENCY_SHARE * near + (1.0 - _LATENCY_SHARE) * climbed
            return Proposal(wanted, reasons, steps, figures, directions=turned, climbs=climbed != sizes)
        return Proposal(climbed, reasons, steps, figures, directions=turned, climbs=climbed != sizes)

    def _goodput(self, ids: Sequence[str], rows: Ints, reference: int, limits: AdaptationLimits) -> Proposal:
        communication, cost = self._round_communication(ids, limits) + self.costs.overhead.seconds, self.costs.fit(rows)
        sizes = self._sizes[rows]
        phi, drift = self.noise_scale(reference), self._worthwhile_steps(communication, cost.seconds(sizes))
        now = gp.evaluate(self.local_steps, sizes, communication, cost, noise_scale=phi, drift_steps=drift)
        if now.seconds <= 0:  # nothing was measured yet
            reasons = np.full(len(rows), CODE[BatchReason.BASELINE])
            return Proposal(sizes.astype(np.float64), reasons, self.local_steps)
        step = self._step(limits)
        least = np.maximum(np.ceil(sizes / step), self.config.min_batch_size).astype(np.int64)
        most = np.minimum((sizes * step).astype(np.int64), self._largest[rows])
        plan = gp.best_plan(
            now,
            communication,
            cost,
            least=np.minimum(least, most),
            most=most,
            steps=self._step_bounds(limits),
            noise_scale=phi,
            drift_steps=drift,
            rounds=1 + self._evaluations,
        )
        if plan.goodput < (1.0 + limits.gain) * now.goodput:
            plan = now
        idle = now.seconds - cost.expected(communication + now.steps * cost.seconds(sizes))
        every = np.ones(len(rows))
        figures = {
            "communication_seconds": communication - self.costs.overhead.seconds,
            "idle_seconds": np.maximum(idle, 0.0),
            "round_seconds": every * now.seconds,
            "planned_round_seconds": every * plan.seconds,
            "goodput_gain": every * (plan.goodput / now.goodput - 1.0 if now.goodput > 0 else 0.0),
        }
        reasons = _goodput_reasons(plan.batches, sizes, idle > _IDLE_SHARE * now.seconds)
        return Proposal(plan.batches.astype(np.float64), reasons, plan.steps, figures, plan)

    def _worthwhile_steps(self, communication: Floats, step_seconds: Floats) -> float:
        """Return the local steps at which half of their worth is lost.

        It is the measured drift, at least so many steps as take as long as communication: updates of few steps differ
        mostly by noise, which more steps average out. It is no more than what a node learns from its own samples, or
        than the user chose, if that is more: with few classes on a node, its own loss falls at once.
        """
        step = float(np.median(step_seconds))
        balanced = float(np.median(communication)) / step if step > 0 else 0.0
        limit = max(self.updates.saturation.value(), min(balanced, float(self.baseline_local_steps)))
        return max(min(max(self.drift_steps, balanced), limit), 1.0)

    def _round_communication(self, ids: Sequence[str], limits: AdaptationLimits) -> Floats:
        """Return the third quartile of each node's expected communication: the median and a margin of about one MAD."""
        samples = self._monitor.round_communication_samples(self._monitor.rows(ids), limits.window, limits.horizon)
        quartile: Floats = quantiles(samples, [0.75])[0]
        return quartile

    def _step(self, limits: AdaptationLimits) -> float:
        """Return the largest factor of a change; powers of two need at least 2."""
        return max(limits.step, 2.0) if self.config.powers_of_two else limits.step

    def _step_bounds(self, limits: AdaptationLimits) -> tuple[int, int]:
        base, bound = self.baseline_local_steps, self.config.max_local_steps_factor
        if base == 1:
            return 1, 1
        if limits.local_steps is not None:
            return limits.local_steps, limits.local_steps
        least, most = max(2, round(base / bound)), max(2, int(base * bound))
        low = min(max(least, int(self.local_steps / limits.step)), most)
        return low, max(min(most, round(self.local_steps * limits.step)), low)

    def _bounded(self, strategy: BatchSizeStrategy, wanted: Floats, before: Ints, rows: Ints, step: float) -> Ints:
        most = self._largest[rows]
        # FIXED is the user's own number, even outside the bounds of adaptation.
        if strategy is BatchSizeStrategy.FIXED:
            return np.minimum(wanted, np.maximum(most, self.baseline_batch_size)).astype(np.int64)
        gradual = np.clip(wanted, before / step, before * step)
        least = np.minimum(self.config.min_batch_size, most)
        if not self.config.powers_of_two:
            return np.clip(np.rint(gradual), least, most).astype(np.int64)
        highest = np.floor(np.log2(most))
        lowest = np.minimum(np.ceil(np.log2(least)), highest)
        return np.exp2(np.clip(np.round(np.log2(gradual)), lowest, highest)).astype(np.int64)

    def _changes_since(
        self, ids: Sequence[str], before: Ints, reasons: Ints, figures: Mapping[str, Floats]
    ) -> dict[str, BatchChange]:
        after = self._sizes[self._index.rows(ids)]
        changed: dict[str, BatchChange] = {}
        moved = np.flatnonzero(after != before)
        columns = [values[moved].tolist() for values in figures.values()]
        rows = zip(*columns, strict=True) if columns else ((),) * len(moved)
        each = zip(
            moved.tolist(), before[moved].tolist(), after[moved].tolist(), reasons[moved].tolist(), rows, strict=True
        )
        for at, old, new, reason, own in each:
            node_id = ids[at]
            known = {name: value for name, value in zip(figures, own, strict=True) if math.isfinite(value)}
            changed[node_id] = BatchChange(node_id, old, new, REASONS[reason], known)
            self._history[node_id].append(new)
        self._changes += len(changed)
        return changed


def _goodput_reasons(batches: Ints, sizes: Ints, waits: Bools) -> Ints:
    """Return the reason codes of GOODPUT: an idle node gets more samples, a node that others wait for gets fewer."""
    reasons = np.full(len(sizes), CODE[BatchReason.MORE_PROGRESS_PER_SECOND])
    reasons[(batches > sizes) & waits] = CODE[BatchReason.FILLS_IDLE_TIME]
    reasons[(batches < sizes) & ~waits] = CODE[BatchReason.SHORTENS_ROUND]
    return reasons
