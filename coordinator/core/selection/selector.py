"""Node selector: chooses the nodes of a round and records the reasons."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from hypergpu.common.clock import Clock, monotonic
from hypergpu.common.config import SelectorConfig
from hypergpu.common.errors import InvalidInput
from hypergpu.common.node_terms import PRIORITY_CLASSES, NodeTerms
from hypergpu.common.strategies import SelectionStrategy
from hypergpu.coordinator.core.checks import parse_enum, require_non_negative
from hypergpu.coordinator.core.links import NetworkQualityMonitor
from hypergpu.coordinator.core.links.quality import FAIR, OFFLINE, UNKNOWN, ConnectionQuality
from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints, NodeIndex, scatter_rows
from hypergpu.coordinator.core.overrides import NodeOverride, Overrides
from hypergpu.coordinator.core.selection import strategies as st
from hypergpu.coordinator.core.selection.budget import affordable
from hypergpu.coordinator.core.selection.context import Selection, SelectionContext
from hypergpu.coordinator.core.selection.contributions import Contributions
from hypergpu.coordinator.core.selection.fairness import FairnessPolicy
from hypergpu.coordinator.core.selection.quarantine import NodeState, NodeStateChange, QuarantineTracker
from hypergpu.coordinator.core.selection.recovery import RecoveryProbes
from hypergpu.coordinator.core.selection.strategies import (
    CODE,
    REASONS,
    SelectionReason,
    StrategyResult,
)

_INCLUDE: Final = NodeOverride.INCLUDE
_EXCLUDE: Final = NodeOverride.EXCLUDE
_OWN_FIGURES = {
    CODE[reason]
    for reason in (
        SelectionReason.FAIRNESS_TURN,
        SelectionReason.QUARANTINED,
        SelectionReason.OFFLINE,
        SelectionReason.BEYOND_THE_BUDGET,
    )
}
_CHEAP_SHARE: Final = 0.01
"""Share of the budget below which a lower price makes no difference."""
_TURNS = (
    SelectionReason.WARM_UP,
    SelectionReason.UNEXPLORED,
    SelectionReason.ON_PROBATION,
    SelectionReason.FAIRNESS_TURN,
    SelectionReason.DATA_TURN,
    SelectionReason.RELEASED_TO_FILL_ROUND,
)
"""Reasons that take precedence when a maximum applies; among them, the nodes that waited longest come first."""
_BY_STRATEGY = [
    CODE[reason]
    for reason in (
        SelectionReason.ALL_AVAILABLE,
        SelectionReason.ABOVE_THRESHOLD,
        SelectionReason.TOP_RANKED,
        SelectionReason.WORTH_ITS_TIME,
    )
]
"""Reasons of nodes that the strategy chooses."""
_LEFT_OUT = [
    CODE[reason]
    for reason in (
        SelectionReason.BELOW_THRESHOLD,
        SelectionReason.NOT_TOP_RANKED,
        SelectionReason.COSTS_MORE_THAN_IT_ADDS,
        SelectionReason.BEYOND_THE_MAXIMUM,
    )
]
"""Reasons of nodes that the strategy leaves out."""
_MEASURED_ROUNDS = 2
"""Measured rounds after which the expected communication of a link is no guess."""


class DynamicNodeSelector:
    """Selector that chooses the nodes of each round from links, contributions, node states and user overrides.

    Args:
        network_monitor: Source of link scores and forecasts. Every node must be registered there, too.
        strategy: Strategy that chooses among the eligible nodes.
        max_selected_nodes: Largest number of nodes per round; None takes it from `config`.
        config: Thresholds, quarantine and fairness settings; None for the defaults.
        clock: Accepted so that all parts are built alike, and not used: selection counts rounds, not seconds.
        data_is_local: Whether each node holds its own samples, so that fairness goes by them, too.

    Raises:
        UnknownName: There is no such strategy.
        InvalidInput: The maximum is not a whole number of at least 1.
    """

    def __init__(
        self,
        network_monitor: NetworkQualityMonitor,
        strategy: SelectionStrategy = SelectionStrategy.ADAPTIVE_THRESHOLD,
        max_selected_nodes: int | None = None,
        *,
        config: SelectorConfig | None = None,
        clock: Clock = monotonic,
        data_is_local: bool = False,
    ) -> None:
        self.config = config or SelectorConfig()
        self.strategy = parse_enum(SelectionStrategy, strategy, "selection strategy")
        self.max_selected_nodes = (
            max_selected_nodes if max_selected_nodes is not None else self.config.max_selected_nodes
        )
        if self.max_selected_nodes is not None and (self.max_selected_nodes < 1 or self.max_selected_nodes % 1):
            raise InvalidInput(f"max_selected_nodes must be a whole number >= 1, not {self.max_selected_nodes}")
        self._monitor = network_monitor
        self._index = NodeIndex()
        self._contributions = Contributions()
        self._standings = QuarantineTracker(self.config)
        self._recovery = RecoveryProbes()
        self.overrides = Overrides()
        """User overrides. One of a node that is not registered holds once it is."""
        self._round = -1
        self._turns = FairnessPolicy(self.config, data_is_local=data_is_local)
        self._last: Selection | None = None
        self._history: deque[tuple[int, list[str]]] = deque(maxlen=200)

    # ------------------------------------------------------------ feeding

    def register_node(self, node_id: str) -> None:
        """Register a node. A repeated registration has no effect."""
        row = self._index.add(node_id)
        if row is not None:
            self._contributions.grow(row + 1)
            self._standings.grow(row + 1)
            self._recovery.grow(row + 1)
            self._turns.data.grow(row + 1)
            self._contributions.last_round[row] = self._round

    def record_data(self, node_id: str, samples: int) -> None:
        """Record how many samples a node alone holds; 0 if unknown.

        Raises:
            UnknownName: The node is not registered.
        """
        self._turns.data.hold(self._index.row(node_id), samples)

    def record_terms(self, node_id: str, terms: NodeTerms) -> None:
        """Record the price and the priority class of a node.

        Raises:
            UnknownName: The node is not registered.
        """
        rank = PRIORITY_CLASSES.index(terms.priority)
        self._contributions.terms[self._index.row(node_id)] = terms.price_per_hour, rank

    def record_contribution(
        self,
        node_id: str,
        compute_time: float,
        waiting_time: float,
        success: bool,
        *,
        late: bool = False,
        loss: float | None = None,
        samples: float = 0.0,
    ) -> None:
        """Record the outcome of a round for a selected node.

        Args:
            node_id: A registered node.
            compute_time: Seconds of computing.
            waiting_time: Seconds of communication and waiting.
            success: Whether the node's update counted in the round.
            late: Whether the update missed the end of the round, which counts half as much as a failure.
            loss: Loss on the node's data; None if unknown.
            samples: Samples in the node's update; they matter where each node holds its own.

        Raises:
            UnknownName: The node is not registered.
            InvalidInput: A time is negative or not finite.
        """
        self.record_contributions(
            np.array([self._index.row(node_id)]),
            compute=np.array([require_non_negative(compute_time, "compute_time")]),
            waiting=np.array([require_non_negative(waiting_time, "waiting_time")]),
            success=np.array([bool(success)]),
            late=np.array([bool(late)]),
            loss=np.array([np.nan if loss is None else loss]),
            samples=np.array([require_non_negative(samples, "samples")]),
        )

    def record_contributions(
        self,
        rows: Ints,
        *,
        compute: Floats,
        waiting: Floats,
        success: Bools,
        late: Bools,
        loss: Floats,
        samples: Floats,
    ) -> None:
        """Record the outcome of a round for several nodes; see `record_contribution`.

        The rows must be distinct. NaN stands for an unknown loss.
        """
        probed = self._recovery.were_probed(rows, self._round)
        took_part = rows[success & (probed | self._standings.on_probation(rows))]
        self._contributions.last_round[took_part] = self._round
        self._take_back(rows[success & probed])
        self._contributions.add(rows, compute, waiting, success, loss)
        self._turns.data.see(rows, samples)
        # Where only this node has its data, an update that was late says that the round was too short.
        judged = ~late if self._turns.data.matters else np.ones(len(rows), bool)
        self._standings.outcomes(rows[judged], success[judged], late[judged], self._round)

    def _take_back(self, rows: Ints) -> None:
        """Note successful probes of these nodes, and forget how slow those were that are awaited again."""
        back = self._recovery.succeeded(rows, self._round)
        self._monitor.restart_rounds(self._monitor.rows([self._index.ids[row] for row in back.tolist()]))
        self._contributions.forget_times(back)
        self._standings.release_recovered(back)

    def _unexplored(self, rows: Ints, link_rows: Ints) -> Bools:
        """Return a mask of the nodes that never took part, or whose only round measured nothing of their link."""
        rounds = self._contributions.counts[rows][:, [0, 2]].max(axis=1)
        unexplored: Bools = (rounds == 0) | ((rounds == 1) & ~self._monitor.has_round_communication(link_rows))
        return unexplored

    def record_times(self, node_id: str, compute_seconds: float, waiting_seconds: float) -> None:
        """Record the times of an attempt that was recorded without them.

        Raises:
            UnknownName: The node is not registered.
        """
        self._contributions.add_times(self._index.row(node_id), compute_seconds, waiting_seconds)

    def record_merged(self, node_id: str, samples: float) -> None:
        """Record that the late update of a node, of so many samples, counts after all: its attempt was a success.

        Raises:
            UnknownName: The node is not registered.
        """
        row = np.array([self._index.row(node_id)])
        self._contributions.counts[row, 1] += 1
        self._turns.data.see(row, np.array([samples]))
        self._standings.outcomes(row, np.ones(1, bool), np.zeros(1, bool), self._round)

    def record_late_probe(self, node_id: str, communication_seconds: float) -> None:
        """Record the communication of a probe that ended after its round: it may have recovered all the same.

        Raises:
            UnknownName: The node is not registered.
        """
        row = self._index.row(node_id)
        if self._recovery.is_usual(row, communication_seconds):
            self._take_back(np.array([row]))

    def record_failed_probes(self, nodes: Sequence[str]) -> None:
        """Record nodes that failed in a round that did not wait for them, which ends their probation.

        Raises:
            UnknownName: A node is not registered.
        """
        rows = self._index.rows(nodes)
        self._judge_probation(rows, success=np.zeros(len(rows), bool), late=np.zeros(len(rows), bool))

    def record_late_probation(self, node_id: str, *, in_time: bool) -> None:
        """Record whether a node needed no longer than the deadline of a round that closed without waiting for it.

        Raises:
            UnknownName: The node is not registered.
        """
        in_times = np.array([in_time])
        self._judge_probation(np.array([self._index.row(node_id)]), success=in_times, late=~in_times)

    def _judge_probation(self, rows: Ints, success: Bools, late: Bools) -> None:
        """Let the outcomes of the nodes on probation count, and those of others not."""
        counts = self._standings.on_probation(rows)
        self._standings.outcomes(rows[counts], success[counts], late[counts], self._round)

    def rows(self, nodes: Sequence[str]) -> Ints:
        """Return the rows of nodes, for `record_contributions`.

        Raises:
            UnknownName: A node is not registered.
        """
        return self._index.rows(nodes)

    def force_include(self, node_id: str) -> None:
        """Select a node in every round for which it is available, even in quarantine, until `clear_rule`.

        Raises:
            UnknownName: The node is not registered.
        """
        self._set_override(node_id, _INCLUDE)

    def force_exclude(self, node_id: str) -> None:
        """Leave a node out of every round until `clear_rule`.

        Raises:
            UnknownName: The node is not registered.
        """
        self._set_override(node_id, _EXCLUDE)

    def clear_rule(self, node_id: str) -> None:
        """Remove the user's override, so that the selector decides about the node again.

        Raises:
            UnknownName: The node is not registered.
        """
        self._set_override(node_id, NodeOverride.AUTOMATIC)

    # ------------------------------------------------------------ deciding

    def select_nodes(
        self, available: Sequence[str], *, round_num: int | None = None, context: SelectionContext | None = None
    ) -> list[str]:
        """Choose the nodes of the coming round.

        Args:
            available: Available nodes; duplicates are ignored.
            round_num: Number of the round; None for the one after the last.
            context: Expectations of the round; None for the defaults.

        Returns:
            Selected nodes, in the order of `available`. `last_selection` holds the reasons, and the nodes that may get
            work without being waited for.

        Raises:
            UnknownName: A node is not registered.
        """
        round_number = self._round + 1 if round_num is None else round_num
        return self._select(list(dict.fromkeys(available)), round_number, context or SelectionContext())

    def select_all(self, available: Sequence[str], round_num: int, reason: SelectionReason) -> list[str]:
        """Select every node that the user has not excluded, for rounds without adaptation.

        A warm-up round keeps to the maximum and rotates, so that all nodes are measured. The fixed baseline has no
        maximum.
        """
        ids = list(dict.fromkeys(available))
        rows = self._index.rows(ids)
        self._round = round_num
        chosen = ~self._with_override(rows, _EXCLUDE)
        reasons = np.where(chosen, CODE[reason], CODE[SelectionReason.FORCED_OUT])
        if reason is SelectionReason.WARM_UP:
            chosen = self._capped(chosen, reasons, rows, self._monitor.rows(ids), self.max_selected_nodes)
        return self._keep(ids, rows, chosen, reasons)

    def drain_state_changes(self) -> list[tuple[str, NodeStateChange]]:
        """Return the changes of node states since the last call."""
        return [(self._index.ids[change.row], change) for change in self._standings.take_changes()]

    # ------------------------------------------------------------ queries

    @property
    def last_selection(self) -> Selection | None:
        """Selection of the latest round; None before the first."""
        return self._last

    def get_node_score(self, node_id: str) -> float:
        """Return the score of a node, 0–100: 70 % link score and 30 % contribution score.

        Raises:
            UnknownName: The node is not registered.
        """
        row = self._index.row(node_id)
        return float(self._scores(np.array([row]), self._monitor.rows([node_id]))[0])

    def get_node_state(self, node_id: str) -> NodeState:
        """Return the state of a node.

        Raises:
            UnknownName: The node is not registered.
        """
        return self._standings.state(self._index.row(node_id))

    def get_selection_summary(self) -> dict[str, Any]:
        """Return a summary of the latest rounds.

        Returns:
            `strategy`, `total_nodes`, `states` (nodes per state), `rounds`, `mean_selected` (nodes per round),
            `last_selected`, `last_reasons` (by node) and `selection_counts` (rounds per node).
        """
        states = dict.fromkeys((str(state) for state in NodeState), 0)
        for row in range(len(self._index)):
            states[str(self._standings.state(row))] += 1
        sizes = [len(selected) for _, selected in self._history]
        last = self.last_selection
        return {
            "strategy": str(self.strategy),
            "total_nodes": len(self._index),
            "states": states,
            "rounds": len(sizes),
            "mean_selected": float(np.mean(sizes)) if sizes else 0.0,
            "last_selected": list(last.selected) if last else [],
            "last_reasons": {node_id: str(reason) for node_id, reason in last.reasons.items()} if last else {},
            "selection_counts": dict(
                zip(self._index.ids, self._contributions.counts[: len(self._index), 2].tolist(), strict=True)
            ),
        }

    def knows(self, node_id: str) -> bool:
        """Return whether a node is registered."""
        return node_id in self._index

    def standings(self, node_ids: Sequence[str]) -> list[tuple[NodeState, float | None]]:
        """Return the state of several nodes, and their contribution scores; None of one without an attempt.

        Raises:
            UnknownName: A node is not registered.
        """
        rows = self._index.rows(node_ids)
        scores = self._contributions.score(rows).tolist()
        attempts = self._contributions.counts[rows, 0].tolist()
        states = (NodeState(self._standings.state(int(row))) for row in rows)
        return [(state, score if tried else None) for state, score, tried in zip(states, scores, attempts, strict=True)]

    def get_node_details(self, node_id: str) -> dict[str, Any]:
        """Return all figures of one node: state, score, contribution, override, and the reason in the latest round.

        Raises:
            UnknownName: The node is not registered.
        """
        row = self._index.row(node_id)
        rows = np.array([row])
        attempts, successes, selected = self._contributions.counts[row].tolist()
        last = self.last_selection
        reason = last.reasons.get(node_id) if last else None
        quality = self._monitor.get_node_quality(node_id)
        return {
            "node_id": node_id,
            "state": str(self._standings.state(row)),
            "score": None if quality is ConnectionQuality.UNKNOWN else self.get_node_score(node_id),
            "quality": str(quality),
            "contribution_score": float(self._contributions.score(rows)[0]),
            "efficiency": float(self._contributions.efficiency(rows)[0]),
            "reliability": successes / attempts if attempts else None,
            "attempts": attempts,
            "successes": successes,
            "rounds_selected": selected,
            "rounds_idle": max(0, self._round - int(self._contributions.last_round[row])),
            "quarantine_rounds_left": int(self._standings.remaining_rounds(rows, self._round + 1)[0]),
            "rule": str(self.overrides.of(node_id)),
            "reason": str(reason) if reason else None,
            "figures": last.figures_of(node_id) if last else {},
        }

    # ------------------------------------------------------------ inside

    def _set_override(self, node_id: str, override: NodeOverride) -> None:
        self._index.row(node_id)  # raises for one that is not registered
        self.overrides.set(node_id, override)

    def _with_override(self, rows: Ints, override: NodeOverride) -> Bools:
        """Return which of these nodes have an override."""
        nodes = [node for node in self.overrides.nodes_with(override) if node in self._index]
        return np.isin(rows, self._index.rows(nodes)) if nodes else np.zeros(len(rows), bool)

    def _select(self, ids: list[str], round_num: int, context: SelectionContext) -> list[str]:
        """Select nodes by the strategy. Probes, user overrides, quarantine and the maximum apply to its result."""
        rows, link_rows = self._index.rows(ids), self._monitor.rows(ids)
        self._round = round_num
        self._standings.release_due(rows, round_num)
        reasons, eligible = self._eligible(rows, link_rows)
        communication = self._monitor.round_communication_samples(link_rows, context.window, context.horizon)
        choice = self._choose(rows[eligible], link_rows[eligible], communication[eligible], context, eligible)
        reasons[eligible] = choice.reasons
        chosen = np.zeros(len(ids), bool)
        chosen[eligible] = choice.chosen
        forced = self._with_override(rows, _INCLUDE)
        self._take(forced, chosen, reasons, SelectionReason.FORCED_IN)
        if not chosen.any() and not self._with_override(rows, _EXCLUDE).all():
            self._release_least_bad(rows, link_rows, chosen, reasons)
        chosen = self._capped(chosen, reasons, rows, link_rows, self._most(context))
        usual = communication.mean(axis=1)
        recovering = on_probation = np.zeros(len(ids), bool)
        if context.probes:
            recovering, on_probation = self._probes(rows, link_rows, usual, chosen, reasons, most=self._most(context))
        reasons[recovering & chosen] = CODE[SelectionReason.RECOVERY_PROBE]
        figures = {name: scatter_rows(values, eligible, len(ids)) for name, values in choice.figures.items()}
        probes: dict[str, Mapping[str, float]] = {ids[at]: {} for at in np.flatnonzero(on_probation)}
        for at in np.flatnonzero(recovering):
            probes[ids[at]] = self._recovery.figures(int(rows[at]), float(usual[at]))
        return self._keep(ids, rows, chosen & ~recovering & ~on_probation, reasons, figures, probes=probes)

    def _keep(
        self,
        ids: list[str],
        rows: Ints,
        chosen: Bools,
        reasons: Ints,
        figures: Mapping[str, Floats] | None = None,
        *,
        probes: Mapping[str, Mapping[str, float]] | None = None,
    ) -> list[str]:
        """Record the selection of this round with its reasons."""
        figures = {**(figures or {}), **self._reason_figures(ids, rows, reasons)}
        self._turns.data.begin_round()
        self._contributions.last_round[rows[chosen]] = self._round
        self._contributions.counts[rows[chosen], 2] += 1
        selected = [node_id for node_id, taken in zip(ids, chosen.tolist(), strict=True) if taken]
        named = {node_id: REASONS[code] for node_id, code in zip(ids, reasons.tolist(), strict=True)}
        places = {node_id: place for place, node_id in enumerate(ids)}
        self._last = Selection(self._round, selected, probes or {}, named, figures, places)
        self._history.append((self._round, selected))
        return selected

    def _reason_figures(self, ids: list[str], rows: Ints, reasons: Ints) -> dict[str, Floats]:
        """Return the figures behind the reasons that do not come from a strategy."""
        if _OWN_FIGURES.isdisjoint(reasons.tolist()):
            return {}
        link_rows = self._monitor.rows(ids)
        idle = self._round - self._contributions.last_round[rows]
        behind: dict[SelectionReason, dict[str, Floats | Ints]] = {
            SelectionReason.FAIRNESS_TURN: {"rounds_left_out": idle - 1},
            SelectionReason.BEYOND_THE_BUDGET: {
                "price_per_hour": self._contributions.terms[rows, 0],
                "budget_per_hour": np.full(len(rows), self.config.budget_per_hour or math.nan),
            },
            SelectionReason.QUARANTINED: {
                "quarantine_rounds_left": self._standings.remaining_rounds(rows, self._round)
            },
            SelectionReason.OFFLINE: {
                "silence_seconds": self._monitor.silences_seconds(link_rows),
                "failures_in_a_row": self._monitor.failures_in_a_row(link_rows),
            },
        }
        return {
            name: np.where(reasons == CODE[reason], values, np.nan)
            for reason, columns in behind.items()
            if (reasons == CODE[reason]).any()
            for name, values in columns.items()
        }

    def _scores(self, rows: Ints, link_rows: Ints, horizon: float = 0.0) -> Floats:
        return 0.7 * self._monitor.scores(link_rows, horizon) + 30.0 * self._contributions.score(rows)

    def _eligible(self, rows: Ints, link_rows: Ints) -> tuple[Ints, Ints]:
        """Return the reasons of the ineligible nodes (-1 for others) and the positions of the eligible ones."""
        reasons = np.full(len(rows), -1, np.int64)
        out = self._with_override(rows, _EXCLUDE)
        reasons[out] = CODE[SelectionReason.FORCED_OUT]
        held = self._standings.quarantined(rows) & ~out
        reasons[held] = CODE[SelectionReason.QUARANTINED]
        gone = np.zeros(len(rows), bool)
        if self.strategy is not SelectionStrategy.ALL_AVAILABLE:
            idle = self._round - self._contributions.last_round[rows]
            heard = self._contributions.counts[rows, 0] > 0
            silent = (self._monitor.classes(link_rows) == OFFLINE) & heard & (idle <= self.config.fairness_rounds)
            gone = silent & ~out & ~held
            reasons[gone] = CODE[SelectionReason.OFFLINE]
        return reasons, np.flatnonzero(~(out | held | gone))

    def _compute_seconds(self, rows: Ints, context: SelectionContext, eligible: Ints) -> Floats:
        """Return the expected computing time of each candidate."""
        given = context.compute_seconds
        return self._contributions.compute_seconds(rows) if given is None else given[eligible]

    def _choose(
        self, rows: Ints, link_rows: Ints, communication: Floats, context: SelectionContext, eligible: Ints
    ) -> StrategyResult:
        count, config, strategy = len(rows), self.config, self.strategy
        if not count or strategy is SelectionStrategy.ALL_AVAILABLE:
            return st.everyone(count)
        least = max(1, math.ceil(config.min_selected_share * count - 1e-9))
        most = self._most(context) or count
        compute = self._compute_seconds(rows, context, eligible)
        seconds = communication + compute[:, None]  # samples of each candidate's expected round
        scores = self._scores(rows, link_rows, context.horizon)
        if strategy is SelectionStrategy.QUALITY_THRESHOLD:
            links = self._monitor.scores(link_rows, context.horizon)
            choice = st.at_least(st.above(links, config.quality_threshold, "link_score"), scores, 1)
        elif strategy is SelectionStrategy.TOP_N:
            choice = st.best_ranked(scores, self.max_selected_nodes or math.ceil(count / 2))
        elif strategy is SelectionStrategy.ADAPTIVE_THRESHOLD:
            choice = st.at_least(st.above(scores, st.adaptive_threshold(scores), "node_score"), scores, least)
        elif strategy is SelectionStrategy.CONTRIBUTION_BASED:
            share = self._contributions.score(rows)
            choice = st.above(share, config.contribution_threshold, "contribution_score")
            choice = st.at_least(choice, share, least)
        else:
            batches = np.ones(count) if context.batch_sizes is None else context.batch_sizes[eligible]
            samples = batches * self._contributions.statistical_utility(rows)
            noise = context.noise_scale if context.noise_scale is not None else float(samples.sum())
            # Few measurements exaggerate the differences between links, so the required gain is larger.
            measured = float(np.median(self._monitor.rounds_measured(link_rows)))
            gain = context.gain * (1.0 + 6.0 / max(measured, 1.0))
            previous = self._round - self._contributions.last_round[rows] == 1
            choice = st.most_progress_per_second(
                seconds, samples, noise, previous=previous, least=least, most=most, gain=gain
            )
            choice.figures.update(communication_seconds=communication.mean(axis=1), compute_seconds=compute)
        return self._turns.added(
            choice,
            rows=rows,
            unknown=self._unexplored(rows, link_rows),
            on_probation=self._standings.on_probation(rows),
            idle=self._round - self._contributions.last_round[rows],
            healthy=self._are_healthy(link_rows) & ~self._recovery.on_trial(rows),
            seconds=seconds,
        )

    def _probes(
        self, rows: Ints, link_rows: Ints, communication: Floats, chosen: Bools, reasons: Ints, *, most: int | None
    ) -> tuple[Bools, Bools]:
        """Return masks of the nodes that the round does not wait for, so that it waits for at least one other.

        Returns:
            Nodes whose link may have recovered, and the other ones on probation.
        """
        scores = np.zeros(len(rows))  # this strategy goes by times alone
        if self.strategy is not SelectionStrategy.UTILITY:
            scores = self._scores(rows, link_rows)
        by_strategy = chosen & np.isin(reasons, _BY_STRATEGY)
        known = by_strategy & (self._monitor.rounds_measured(link_rows) >= _MEASURED_ROUNDS)
        self._recovery.chosen(rows[known], communication[known], scores[known])
        worse = self._recovery.is_worse(rows, communication, scores) | self._monitor.has_improved(link_rows)
        may_recover = np.isin(reasons, _LEFT_OUT) & worse
        may_recover |= reasons == CODE[SelectionReason.OFFLINE]
        may_recover |= (reasons == CODE[SelectionReason.QUARANTINED]) & self._standings.only_late(rows) & worse
        on_probation = reasons == CODE[SelectionReason.ON_PROBATION]
        may_recover |= on_probation & worse
        again = by_strategy | on_probation
        due = self._recovery.due(rows, chosen=again, may_recover=may_recover, round_number=self._round)
        on_probation &= chosen & ~due
        if not (chosen & ~due & ~on_probation).any():
            due &= ~chosen
            on_probation[:] = False
        if most is not None:
            room = most - int(chosen.sum())
            due[np.flatnonzero(due & ~chosen)[room:]] = False
        if self.config.budget_per_hour is not None:
            prices = self._contributions.terms[rows, 0]
            due &= affordable(np.flatnonzero(due), prices, self.config.budget_per_hour, chosen)
        self._recovery.begin(rows[due], self._round)
        return due, on_probation

    def _are_healthy(self, link_rows: Ints) -> Bools:
        """Return a mask of the links that are fair or better, or of which nothing bad is known."""
        classes = self._monitor.classes(link_rows)
        return np.isin(classes, (UNKNOWN, *range(FAIR + 1)))

    def _release_least_bad(self, rows: Ints, link_rows: Ints, chosen: Bools, reasons: Ints) -> None:
        held = np.flatnonzero(self._standings.quarantined(rows) & ~self._with_override(rows, _EXCLUDE))
        if len(held):
            scores = self._scores(rows[held], link_rows[held])
            released = held[self._standings.release_least_bad(rows[held], scores, self._round)]
        else:
            released = np.flatnonzero(~self._with_override(rows, _EXCLUDE))
        chosen[released] = True
        reasons[released] = CODE[SelectionReason.RELEASED_TO_FILL_ROUND]

    def _most(self, context: SelectionContext) -> int | None:
        """Return the largest number of nodes; None without a limit."""
        return min((each for each in (self.max_selected_nodes, context.most) if each is not None), default=None)

    def _capped(self, chosen: Bools, reasons: Ints, rows: Ints, link_rows: Ints, limit: int | None) -> Bools:
        """Apply the maximum and the budget: included nodes, turns by waiting time, then by priority and score."""
        most, budget = limit or len(rows), self.config.budget_per_hour
        places = np.flatnonzero(chosen)
        prices, ranks = self._contributions.terms[rows[places]].T
        if len(places) <= most and (budget is None or prices.sum() <= budget):
            return chosen
        forced = self._with_override(rows[places], _INCLUDE)
        idle = self._round - self._contributions.last_round[rows[places]]
        turn = np.isin(reasons[places], [CODE[r] for r in _TURNS]) | (idle > self.config.fairness_rounds)
        waited = np.where(turn, idle, 0)
        worth = self._scores(rows[places], link_rows[places])
        if budget is not None:
            worth = worth / np.maximum(prices, _CHEAP_SHARE * budget)
        order = np.lexsort((-worth, -ranks, -waited, ~turn, ~forced))
        kept = np.ones(len(places), bool) if budget is None else affordable(order, prices, budget, forced)
        order = order[kept[order]]
        capped = np.zeros(len(chosen), bool)
        capped[places[order[:most]]] = True
        reasons[places[~kept]] = CODE[SelectionReason.BEYOND_THE_BUDGET]
        reasons[places[order[most:]]] = CODE[SelectionReason.BEYOND_THE_MAXIMUM]
        return capped

    @staticmethod
    def _take(which: Bools, chosen: Bools, reasons: Ints, reason: SelectionReason) -> None:
        chosen |= which
        reasons[which] = CODE[reason]
