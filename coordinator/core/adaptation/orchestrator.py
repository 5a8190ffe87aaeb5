"""Orchestrator: plans each round with monitor, selector and batch controller, judges the outcome and rolls back."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hypergpu.common.clock import Clock, monotonic
from hypergpu.common.config import SystemConfig
from hypergpu.common.errors import InvalidInput
from hypergpu.common.metric import finite
from hypergpu.common.node_terms import FREE, NodeTerms
from hypergpu.common.step_times import StepTimes
from hypergpu.common.strategies import AdaptationPolicy
from hypergpu.coordinator.core.adaptation.codecs.control import CodecControl, Outlook
from hypergpu.coordinator.core.adaptation.connections.control import ConnectionControl
from hypergpu.coordinator.core.adaptation.connections.shared_line import LineOutlook
from hypergpu.coordinator.core.adaptation.decision_log import LISTED, AdaptationLog, ClusterReason
from hypergpu.coordinator.core.adaptation.enough import enough_share
from hypergpu.coordinator.core.adaptation.optimizer_search import OptimizerChange
from hypergpu.coordinator.core.adaptation.phases import LossTrend, Phase, PhaseReason
from hypergpu.coordinator.core.adaptation.plan import RoundDecisions
from hypergpu.coordinator.core.adaptation.policy import PARAMETERS, PolicyParameters
from hypergpu.coordinator.core.adaptation.progress import Regression, RollbackReason
from hypergpu.coordinator.core.adaptation.progress_control import ProgressControl
from hypergpu.coordinator.core.adaptation.rehearsal import (
    ROUND_TRIPS,
    ROUNDS_WITHOUT,
    RehearsalDecision,
    Rehearsals,
)
from hypergpu.coordinator.core.adaptation.results import (
    LATEST_COMMUNICATIONS,
    record_late,
    record_noise,
    record_results,
    record_saturation,
)
from hypergpu.coordinator.core.adaptation.round_history import RoundHistory, RoundRecord
from hypergpu.coordinator.core.adaptation.state import (
    VERSION,
    AdaptationState,
    BatchState,
    ConfigurationSnapshot,
)
from hypergpu.coordinator.core.batching import AdaptiveBatchController, BatchReason
from hypergpu.coordinator.core.batching.controller import AdaptationLimits
from hypergpu.coordinator.core.batching.node_steps import NodeSteps
from hypergpu.coordinator.core.checks import parse_enum, require_non_negative
from hypergpu.coordinator.core.decisions import CLUSTER, Decision, DecisionKind
from hypergpu.coordinator.core.links import NetworkQualityMonitor
from hypergpu.coordinator.core.overrides import Overrides
from hypergpu.coordinator.core.rehearsal import HeldSetting, RehearsalRequest, RehearsalResult, Worth, WorthSource
from hypergpu.coordinator.core.rounds.adaptation import LateWork, ModelAction, RoundJudgement, RoundPlan, RoundReport
from hypergpu.coordinator.core.rounds.dispatch import NOT_FINITE
from hypergpu.coordinator.core.rounds.events import Contribution
from hypergpu.coordinator.core.selection import DynamicNodeSelector, SelectionReason
from hypergpu.coordinator.core.selection.context import SelectionContext

_ARRIVALS = 8
"""Latest communications of each node that its arrival is expected from."""
_TURNS = (SelectionReason.FAIRNESS_TURN, SelectionReason.DATA_TURN, SelectionReason.UNEXPLORED)
"""Reasons of a selection that are not about what the node adds."""


@dataclass(slots=True)
class _WorkChanges:
    """Rounds that changes of batch sizes and local steps are bound to."""

    held_until: int = -1
    """Round before which they stay as they are."""
    last_change: int = -(10**9)
    node_steps: NodeSteps = field(default_factory=NodeSteps)


class AdaptiveOrchestrator:
    """Orchestrator that adapts a run, round by round.

    Call `pre_round_adaptation` before and `post_round_evaluation` after each round. The orchestrator learns from
    `metrics["contributions"]`; a caller without them feeds the parts with `record_communication`, `record_performance`
    and `record_contribution`. Available nodes are registered with all parts on first sight, so a cluster may grow at
    any time.

    Args:
        config: Configuration of the whole system.
        network_monitor: Monitor of the links.
        batch_controller: Controller of batch sizes and local steps. Its baseline steps are set from `config`.
        node_selector: Selector of the nodes.
        adaptation_policy: Policy of the adaptation; see `set_policy`.
        clock: Source of the time in seconds.
        model_bytes: Size of the parameters and of an update in a round: of a fragment, if there are several; None if
            unknown, which leaves the codecs as configured.

    Raises:
        UnknownName: There is no such policy.
    """

    def __init__(
        self,
        config: SystemConfig,
        network_monitor: NetworkQualityMonitor,
        batch_controller: AdaptiveBatchController,
        node_selector: DynamicNodeSelector,
        adaptation_policy: AdaptationPolicy = AdaptationPolicy.REACTIVE,
        *,
        clock: Clock = monotonic,
        model_bytes: int | None = None,
    ) -> None:
        self.config = config
        self.monitor, self.batches, self.selector = network_monitor, batch_controller, node_selector
        self.policy = parse_enum(AdaptationPolicy, adaptation_policy, "policy")
        self.phase = Phase.INITIALIZATION
        self.clock = clock
        """Source of the time in seconds."""
        self._ledger = RoundHistory(config.orchestrator.history)
        self._losses = LossTrend(config.orchestrator)
        whole = None if model_bytes is None else model_bytes * config.training.fragments
        self._control = ProgressControl(config, self.policy, whole)
        self._codecs = CodecControl(config.compression, network_monitor, model_bytes)
        self.connections = ConnectionControl(config.transfers, network_monitor, model_bytes)
        self._work = _WorkChanges()
        self._rehearsals = Rehearsals(config)
        self._rounds_begun = 0
        self._selected: list[str] = []
        self._round = -1
        self._log = AdaptationLog(config.orchestrator.history)
        self._overhead = 0.0
        self._registered: set[str] = set()
        batch_controller.set_baseline_steps(config.training.local_steps)

    # ------------------------------------------------------------ the run

    def start_training(self) -> None:
        """Begin the warm-up. A repeated call has no effect."""
        if self.phase is Phase.INITIALIZATION:
            self._enter(Phase.WARM_UP, PhaseReason.TRAINING_STARTED, {"rounds": self.config.orchestrator.warmup_rounds})

    def shutdown(self) -> None:
        """End the adaptation. Status and reports remain available."""
        if self.phase is not Phase.COMPLETED:
            self._enter(Phase.COMPLETED, PhaseReason.SHUT_DOWN, {"rounds": self._ledger.count})

    def state(self) -> AdaptationState:
        """Return what was learned about the training, for a checkpoint."""
        return AdaptationState(
            version=VERSION,
            policy=self.policy,
            phase=self.phase,
            rounds_begun=self._rounds_begun,
            held_until=self._work.held_until,
            control=self._control.state(),
            batches=BatchState(
                self.batches.local_steps,
                self.batches.get_batch_sizes(self.batches.nodes),
                *self.batches.updates.state(),
            ),
            loss_logs=self._losses.state(),
            connections=self.connections.state(),
        )

    def restore(self, state: AdaptationState, round_number: int) -> None:
        """Go on from the state of an earlier process, before the first round of this one.

        Batches and steps stay as they were until the links and nodes have been measured again. A run without
        adaptation, before or now, has nothing to restore.

        Args:
            state: State of the earlier process.
            round_number: Number of the coming round.
        """
        if AdaptationPolicy.NONE in (self.policy, state.policy) or state.phase is Phase.INITIALIZATION:
            return
        self._control.restore(state.control, state.policy)
        for node_id in state.batches.sizes:
            self.batches.register_node(node_id)
        factor = state.control.search.rates.factor
        sizes, steps = state.batches.sizes, state.batches.local_steps
        restored = self.batches.restore(sizes, steps, factor, BatchReason.RESUMED)
        self.batches.updates.restore(state.batches.drift_log, state.batches.saturation_log)
        self._losses.restore(state.loss_logs)
        self.connections.restore(state.connections)
        self._rounds_begun = state.rounds_begun
        self._work.held_until = max(state.held_until, round_number + self.config.orchestrator.warmup_rounds)
        self._round = self._log.round = round_number
        phase = Phase.ADAPTIVE if state.phase is Phase.COMPLETED else state.phase
        self._enter(phase, PhaseReason.RESUMED, {"rounds": state.rounds_begun})
        self._log.batches(restored)

    def set_policy(self, policy: AdaptationPolicy | str) -> None:
        """Change the policy, starting with the next round.

        Raises:
            UnknownName: There is no such policy.
        """
        before, self.policy = self.policy, parse_enum(AdaptationPolicy, policy, "policy")
        self._control.set_policy(self.policy)
        self._rehearsed(self._rehearsals.cancel())
        self._log.decide(DecisionKind.POLICY, CLUSTER, ClusterReason.SET_BY_USER, {"from": before, "to": self.policy})

    def register_node(
        self,
        node_id: str,
        largest_batch: int | None = None,
        *,
        samples: int = 0,
        terms: NodeTerms = FREE,
        step_times: StepTimes | None = None,
    ) -> None:
        """Register a node with all parts.

        Args:
            node_id: Id of the node.
            largest_batch: Largest batch that the node's memory and share of the data allow; None for the configured
                maximum.
            samples: Number of samples that it alone holds; 0 if unknown.
            terms: Price and priority class of the node.
            step_times: Time of its steps, as it has measured it; None if unknown.
        """
        self.monitor.register_node(node_id)
        self.selector.register_node(node_id)
        self.selector.record_data(node_id, samples)
        self.selector.record_terms(node_id, terms)
        self.batches.register_node(node_id, largest_batch, step_times)
        self._registered.add(node_id)

    @property
    def overrides(self) -> Overrides:
        """User overrides, which hold from the next round on."""
        return self.selector.overrides

    def pre_round_adaptation(self, available_nodes: Sequence[str], round_num: int) -> RoundDecisions:
        """Decide which nodes train in the coming round, with which batch sizes, local steps and learning rate.

        Args:
            available_nodes: Connected nodes; new ones are registered.
            round_num: Number of the round.

        Returns:
            Selected nodes, batch size of each, local steps, learning rate, phase, policy, the decisions with their
            reasons, and the time that deciding took. There are no probes: the caller waits for all nodes.
        """
        plan = self._plan_round(available_nodes, round_num, probes=False)
        return {
            "round": round_num,
            "phase": str(self.phase),
            "policy": str(self.policy),
            "selected_nodes": list(plan.selected),
            "batch_sizes": plan.batch_sizes,
            "local_steps": self.batches.local_steps,
            "learning_rate": self._control.optimizer.learning_rate,
            "local_optimizer": self._control.optimizer.name,
            "decisions": list(plan.decisions),
            "overhead_seconds": self._overhead,
        }

    def plan_round(self, available: Sequence[str], round_number: int) -> RoundPlan:
        """Plan a round with a selection of the available nodes, and with probes of others."""
        return self._plan_round(available, round_number, probes=True)

    def _plan_round(self, available: Sequence[str], round_number: int, *, probes: bool) -> RoundPlan:
        began = self.clock()
        self.batches.costs.overhead.open_round(began)
        self._round = self._log.round = round_number
        if self.phase is Phase.INITIALIZATION:
            self.start_training()
        available = list(dict.fromkeys(available))
        for node_id in available:
            if node_id not in self._registered:
                self.register_node(node_id)
        self._update_links()
        if self.phase is Phase.WARM_UP and self._rounds_begun >= self.config.orchestrator.warmup_rounds:
            self._enter(Phase.ADAPTIVE, PhaseReason.LINKS_MEASURED, {"rounds": self._rounds_begun})
        self._rounds_begun += 1
        self._plan_connections(available)
        self._plan_codecs(available)
        if not available:
            self._log.decide(DecisionKind.SELECTION, CLUSTER, ClusterReason.NO_NODES, {"available_nodes": 0})
            selected: list[str] = []
        elif self._takes_all:
            selected = self._select_all(available)
        else:
            selected = self._select_adaptively(available, probes=probes)
        self._selected = selected
        self._overhead = self.clock() - began
        return self._as_plan(selected)

    def post_round_evaluation(self, round_num: int, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Learn from a round, and roll back a configuration that performs worse.

        Args:
            round_num: Number of the round, as passed to `pre_round_adaptation`.
            metrics: Figures of the round by name. Required: `loss`, `round_time` (seconds) and `samples` (total used).
                Optional: `accuracy` (or another main metric; None or NaN if undefined), `contributions` (a sequence
                with a `core.rounds.events.Contribution` of each selected node, whose `waiting_seconds` is its own
                communication), `update_norms` (mean of |update|² over the nodes, |mean update|²; the estimate of the
                gradient noise scale needs it) and `ended` (the nodes that restarted since the last report, and the
                node-seconds since).

        Returns:
            `decisions` (immediate ones such as a rollback), `model` (`keep` it as the one to return to, `leave` it,
            or `revert` to the kept one), `progress_per_second` (decrease of the logarithm of the loss) and `phase`.

        Raises:
            InvalidInput: A metric is missing, or a time or count is negative or not finite. A loss that is not finite
                is accepted and leads to a rollback.
            UnknownName: A contributing node is not registered.
        """
        try:
            loss, samples = float(metrics["loss"]), int(require_non_negative(metrics["samples"], "samples"))
            seconds = require_non_negative(metrics["round_time"], "round_time")
        except KeyError as missing:
            raise InvalidInput(f"the round's metrics lack {missing}; required: loss, round_time, samples") from None
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"the round's loss is not a number: {error}") from None
        accuracy = metrics.get("accuracy")
        report = RoundReport(
            round=round_num,
            loss=loss,
            seconds=seconds,
            samples=samples,
            metric=None if accuracy is None else finite(float(accuracy)),
            contributions=metrics.get("contributions") or (),
            update_norms=metrics.get("update_norms"),
            restarts=metrics.get("ended", (0, 0.0)),
        )
        judgement = self.finish_round(report)
        return {
            "decisions": list(judgement.decisions),
            "model": str(judgement.model),
            "progress_per_second": self._ledger.progress_per_second,
            "phase": str(self.phase),
        }

    def finish_round(self, report: RoundReport) -> RoundJudgement:
        """Learn from a round, and roll back a configuration with which training diverged.

        Returns:
            Immediate decisions, such as a rollback, and whether the model is kept or given up.

        Raises:
            UnknownName: A contributing node is not registered.
            InvalidInput: A figure of a contribution is negative or not finite.
        """
        began = self.clock()
        self._round = self._log.round = report.round
        contributions = report.contributions
        if contributions:
            self.record_results(contributions)
        if report.update_norms is not None:
            record_noise(report.update_norms, contributions, report.late, self.batches)
        record_saturation(contributions, self.batches)
        self._record_line(contributions)
        self._log.codecs(self._codecs.observe(contributions, report.round))
        self.batches.costs.record_restarts(*report.restarts)
        regression = self._control.progress.observe(report)
        progress = self._control.progress.decrease
        self._losses.observe(report.loss)
        action = ModelAction.KEEP
        if self.policy is not AdaptationPolicy.NONE:
            action = self._judge(regression, contributions)
            self._log.standings(self.selector.drain_state_changes())
        self._overhead += self.clock() - began
        self._ledger.add(
            RoundRecord(
                report.round,
                self.phase,
                len(self._selected),
                report.samples,
                report.seconds,
                progress,
                report.loss,
                report.metric,
                self.batches.local_steps,
                self.batches.learning_rate_factor,
                self._overhead,
            )
        )
        self._update_phase()
        self._overhead = 0.0
        rehearsal = self._rehearse(report, began)
        return RoundJudgement(self._log.drain(), action, rehearsal)

    def abandon_round(self, round_number: int, fault: str) -> RoundJudgement:
        """Learn from a round without any update: a rate at which no node can finish its work is lowered."""
        self._round = self._log.round = round_number
        self.batches.costs.overhead.interrupt()
        self._rehearsals.interrupt()
        self._codecs.abandoned()
        if self.policy is AdaptationPolicy.NONE or fault != NOT_FINITE:
            return RoundJudgement(model=ModelAction.LEAVE)
        action = self._roll_back(Regression(RollbackReason.UPDATES_NOT_FINITE, {"round": round_number}))
        return RoundJudgement(self._log.drain(), action)

    def record_late(self, work: LateWork) -> None:
        """Learn what the time of work that missed the end of its round went into: its link or its card.

        Raises:
            UnknownName: The node is not registered.
        """
        record_late(work, self.monitor, self.batches, self.selector)

    def finish_rehearsal(self, result: RehearsalResult, round_number: int) -> Sequence[Decision]:
        """Hold the setting that a rehearsal found to be better, if there is one, from the next round on."""
        self._round = self._log.round = round_number
        self._rehearsed(self._rehearsals.finish(result, round_number))
        return self._log.drain()

    def record_results(self, results: Sequence[Contribution]) -> float:
        """Record one contribution per node of a round in all parts.

        Returns:
            The longest measured communication in seconds.

        Raises:
            UnknownName: A node is not registered.
            InvalidInput: A figure is negative or not finite.
        """
        return record_results(results, self.monitor, self.batches, self.selector)

    # ------------------------------------------------------------ queries

    def get_orchestrator_status(self) -> dict[str, Any]:
        """Return the present state as a JSON object.

        Returns:
            `phase`, `policy`, `round`, `rounds_completed`, `selected_nodes`, `local_steps`, `learning_rate_factor`,
            `progress_per_second`, `last_round`, `rollbacks`, `snapshot_round`, `overhead` (cost of deciding), `network`
            (health summary of the links) and the latest 20 `decisions`.
        """
        last = self._ledger.rounds[-1].to_dict() if self._ledger.rounds else None
        return {
            "phase": str(self.phase),
            "policy": str(self.policy),
            "round": self._round,
            "rounds_completed": self._ledger.count,
            "selected_nodes": list(self._selected),
            "local_steps": self.batches.local_steps,
            "learning_rate_factor": self.batches.learning_rate_factor,
            "progress_per_second": self._ledger.progress_per_second,
            "last_round": last,
            "rollbacks": self._control.rollbacks,
            "snapshot_round": self._control.snapshot.round if self._control.snapshot else None,
            "overhead": self._ledger.overhead(),
            "network": self.monitor.get_cluster_health_summary(),
            "decisions": [decision.to_dict() for decision in list(self._log.latest)[-20:]],
        }

    def get_performance_comparison(self) -> dict[str, Any]:
        """Compare the rounds since the warm-up with the warm-up, in which nothing was adapted.

        Returns:
            `baseline` and `adaptive` (means over their rounds; None without rounds), `improvement` (ratios above 1 are
            better) and `overhead` (cost of deciding).
        """
        return self._ledger.comparison()

    def export_full_report(self) -> dict[str, Any]:
        """Return status, comparison, latest rounds and decisions, and summaries of all parts as a JSON object."""
        return {
            "status": self.get_orchestrator_status(),
            "comparison": self.get_performance_comparison(),
            "rounds": [each.to_dict() for each in self._ledger.rounds],
            "decisions": [decision.to_dict() for decision in self._log.latest],
            "selection": self.selector.get_selection_summary(),
            "batches": self.batches.get_adaptation_summary(),
            "alerts": [alert.message for alert in self.monitor.get_alerts()],
        }

    # ------------------------------------------------------------ before a round

    def _update_links(self) -> None:
        """Let the monitor judge the links, and record the classes that changed."""
        changed = list(self.monitor.update())
        many = changed and len(self._registered) > LISTED
        counts = self.monitor.class_counts() if many else None
        self._log.classes(self.monitor.get_node_profiles(changed[:LISTED]), counts)

    def _as_plan(self, selected: Sequence[str]) -> RoundPlan:
        """Return the plan of a round of these nodes, with the learning rates that they work or try at."""
        adapts = self.policy is not AdaptationPolicy.NONE
        self._log.optimizer(self._control.begin(selected))
        trials = self._control.plan(selected)
        last = self.selector.last_selection
        probes = list(last.probes) if last is not None and selected else []
        workers = [*selected, *probes]
        self.batches.learning_rate_factor = self._control.search.rates.factor
        turns = self._turns(selected)
        self._codecs.begin_round(workers)
        plan = RoundPlan(
            workers,
            self._batch_sizes(selected, probes),
            self.batches.local_steps,
            self._control.optimizer,
            trials,
            node_steps=self._node_steps(workers),
            server_momentum=self._control.momentum,
            close_share=self._close_share(selected) if adapts and not turns else None,
            wait_for=turns,
            expected_seconds=self._expected_seconds(turns) if self.config.training.data_is_local else {},
            wait_for_all=not adapts,
            transfer_seconds=self._transfer_seconds(workers),
            changed_seconds=self._codecs.changed_seconds,
            codecs=self._codecs.codecs_of(workers),
            probes=probes,
            connections=self.connections.plan,
            decisions=self._log.drain(),
        )
        self._rehearsals.begin_round(plan)
        return plan

    def _plan_connections(self, available: Sequence[str]) -> None:
        """Choose the connections of the available nodes, from the first measured transfers on: also in the warm-up.

        What the warm-up measures of a link is to hold with the connections that it will have.
        """
        if self.policy is AdaptationPolicy.NONE:
            self.connections.use_one()
        else:
            seconds, held = self._ledger.latest_seconds, self._codecs.checked
            self._log.connections(self.connections.choose(available, self._round, seconds, held))

    def _plan_codecs(self, available: Sequence[str]) -> None:
        """Choose the codecs of the available nodes, before the selection, which depends on the time of transfers."""
        if self.policy is AdaptationPolicy.NONE or not available:
            self._log.codecs(self._codecs.send_float32(available))
            return
        training = self.config.training
        fixed_share = 1.0 if self.phase is Phase.WARM_UP or not training.shards_are_alike else None
        outlook = Outlook(
            round=self._round,
            compute_seconds=self.batches.compute_seconds(available),
            overhead_seconds=self.batches.costs.overhead.seconds,
            noise_nodes=self._noise_nodes(available),
            close_share=training.close_share if training.close_share < 1.0 else fixed_share,
            rounds_left=training.rounds - self._round + 1 if training.rounds else math.inf,
            late_counts=training.staleness_limit > 0,
            trials=self.connections.trials(available),
            connections=self.connections.plan,
        )
        self._log.codecs(self._codecs.plan(available, outlook))

    def _node_steps(self, nodes: Sequence[str]) -> dict[str, int]:
        """Return the local steps of single nodes: by their speed in buffered rounds, else the same for all."""
        steps, chosen = self.batches.local_steps, self._work.node_steps
        if not self.config.training.is_buffered or steps == 1 or self.policy is AdaptationPolicy.NONE or not nodes:
            return {}
        seconds = self.batches.compute_seconds(nodes) / steps
        if seconds.any():  # something was measured
            communication = self.monitor.round_communication_samples(self.monitor.rows(nodes), _ARRIVALS).mean(axis=1)
            self._log.node_steps(chosen.choose(nodes, seconds, np.nan_to_num(communication), steps))
        return chosen.of(nodes, steps)

    def _noise_nodes(self, nodes: Sequence[str]) -> float:
        """Return the number of nodes whose gradient noise equals the gradient, with the present batches."""
        batch = float(np.mean(list(self.batches.get_batch_sizes(nodes).values())))
        return self.batches.noise_scale(self.batches.baseline_batch_size * len(nodes)) / max(batch, 1.0)

    def _transfer_seconds(self, workers: Sequence[str]) -> dict[str, float]:
        """Return the time that the transfers of a round take, for nodes that have never finished one."""
        rows = self.monitor.rows(workers)
        new = np.flatnonzero(~self.monitor.has_round_communication(rows))
        seconds = self.monitor.transfer_seconds(rows[new])
        return {
            workers[at]: each for at, each in zip(new.tolist(), seconds.tolist(), strict=True) if math.isfinite(each)
        }

    def _expected_seconds(self, nodes: Sequence[str]) -> dict[str, float]:
        """Return the longest time that is expected of these nodes, as far as their links were measured."""
        rows = self.monitor.rows(nodes)
        known = self.monitor.has_round_communication(rows)
        longest = self.monitor.round_communication_samples(rows, _ARRIVALS).max(axis=1)
        seconds = longest + self.batches.compute_seconds(nodes)
        return {node: float(seconds[at]) for at, node in enumerate(nodes) if known[at]}

    def _batch_sizes(self, selected: Sequence[str], probes: Sequence[str]) -> dict[str, int]:
        """Return the batch sizes of a round; a probe gets no more work than half of the others, so as to be in time."""
        sizes = self.batches.get_batch_sizes(selected)
        if probes:
            usual = int(np.median([*sizes.values()]))
            sizes |= {node: min(size, usual) for node, size in self.batches.get_batch_sizes(probes).items()}
        return sizes

    def _turns(self, selected: Sequence[str]) -> list[str]:
        """Return the nodes without which a round lacks what it is for: those that are selected to see what they can do.

        Where each node holds its own data, a round needs all of them.
        """
        if self.config.training.data_is_local:
            return list(selected)
        last = self.selector.last_selection
        return [node for node in selected if last is not None and last.reasons.get(node) in _TURNS]

    def _close_share(self, selected: Sequence[str]) -> float | None:
        """Return the share of the nodes that closes the round; None where the user chose one, or every shard counts."""
        training = self.config.training
        if training.close_share < 1.0 or not training.shards_are_alike or self.phase is Phase.WARM_UP or not selected:
            return None
        if self._rehearsals.held.close_share is not None:
            return self._rehearsals.held.close_share
        rows = self.monitor.rows(selected)
        seconds = (
            self.monitor.round_communication_samples(rows, _ARRIVALS) + self.batches.compute_seconds(selected)[:, None]
        )
        overhead, noise = self.batches.costs.overhead.seconds, self._noise_nodes(selected)
        share = enough_share(seconds, overhead, noise, training.staleness_limit)
        self._log.close_share(share, len(selected), seconds.max(axis=1))
        return share

    @property
    def _takes_all(self) -> bool:
        """True if all nodes take part, on the configured work: also in buffered rounds, which wait for no slow one."""
        adapts = self.policy is not AdaptationPolicy.NONE and self.phase in (Phase.ADAPTIVE, Phase.CONVERGENCE)
        return self.config.training.is_buffered or not adapts

    def _select_all(self, available: Sequence[str]) -> list[str]:
        warm = self.policy is not AdaptationPolicy.NONE
        reason = SelectionReason.WARM_UP if warm else SelectionReason.ALL_AVAILABLE
        selected = self.selector.select_all(available, self._round, reason)
        self._log.batches(self.batches.reset(selected))
        self._log.selection(self.selector.last_selection)
        return selected

    def _select_adaptively(self, available: Sequence[str], *, probes: bool) -> list[str]:
        parameters = PARAMETERS[self.policy]
        selection = PARAMETERS[AdaptationPolicy.CONSERVATIVE] if self.phase is Phase.CONVERGENCE else parameters
        reference = self.batches.baseline_batch_size * len(available)
        self._plan_number(available)
        context = SelectionContext(
            compute_seconds=self.batches.compute_seconds(available),
            batch_sizes=np.array(list(self.batches.get_batch_sizes(available).values())),
            noise_scale=self.batches.noise_scale(reference),
            gain=selection.selection_gain,
            horizon=parameters.horizon,
            window=selection.window,
            most=self.connections.line.most,
            probes=probes and not self.config.training.data_is_local,  # no round does without a node's data
        )
        selected = self.selector.select_nodes(available, round_num=self._round, context=context)
        self._log.standings(self.selector.drain_state_changes())
        self._log.selection(self.selector.last_selection)
        if self._round >= self._work.held_until:
            self._adapt_batches(selected, len(available), parameters)
        return selected

    def _plan_number(self, available: Sequence[str]) -> None:
        """Choose how many nodes a round has where they share the coordinator's line, unless it needs all their data."""
        if not self.config.training.shards_are_alike:
            return
        rows = self.monitor.rows(available)
        up, down = self.monitor.expected_payloads(rows)
        outlook = LineOutlook(
            nodes=len(available),
            node_bytes=float((up + down).mean()),
            rest_seconds=float(np.median(self.batches.compute_seconds(available)))
            + self.batches.costs.overhead.seconds,
            noise_nodes=self._noise_nodes(available),
        )
        change = self.connections.line.choose(outlook)
        if change is not None:
            self._log.decide(DecisionKind.SELECTION, CLUSTER, change.reason, change.figures)

    def _record_line(self, contributions: Sequence[Contribution]) -> None:
        """Record how fast the transfers of a round were."""
        measured = [each for each in contributions if each.success and each.measured and each.waiting_seconds > 0.0]
        up, down = self.monitor.expected_payloads(self.monitor.rows([each.node for each in measured]))
        seconds = np.array([each.waiting_seconds for each in measured], np.float64)
        self.connections.line.record(len(contributions), ((up + down) / seconds).tolist())

    def _adapt_batches(self, selected: Sequence[str], reference: int, parameters: PolicyParameters) -> None:
        due = self._round - self._work.last_change >= parameters.interval and self.phase is Phase.ADAPTIVE
        if not due or not selected:
            return
        limits = AdaptationLimits(
            parameters.step,
            parameters.plan_gain,
            parameters.horizon,
            parameters.window,
            self._rehearsals.held.local_steps,
        )
        steps = self.batches.local_steps
        changes = self.batches.evaluate_and_adapt(selected, reference_nodes=reference, limits=limits)
        self._log.batches(changes)
        after = self.batches.local_steps
        self.batches.costs.overhead.expect(self.batches.expected_seconds)
        self._log.local_steps(steps, after, self.batches.drift_steps, self._communication_seconds(selected))
        if changes or steps != after:
            self._work.last_change = self._round

    # ------------------------------------------------------------ after a round

    def _judge(self, regression: Regression | None, contributions: Sequence[Contribution]) -> ModelAction:
        """Keep the best model and its configuration, learn from trials, and roll back if training diverged."""
        change = self._control.search.observe(contributions)
        self._log.optimizer(change)
        if isinstance(change, OptimizerChange):
            self.batches.updates.restart()
        if change is not None and change.ruinous:
            self._control.progress.return_to_best()
            return ModelAction.REVERT
        missing = self._control.missing(contributions)
        is_finite = regression is None or regression.reason is RollbackReason.LOSS_ROSE
        if missing and is_finite and not self._control.progress.improved:
            return self._without_data(regression, len(missing))
        if regression is not None:
            return self._roll_back(regression)
        if not self._control.progress.improved:
            settled = self._control.settle()
            self._log.optimizer(settled)
            return ModelAction.LEAVE if settled is None else ModelAction.REVERT
        sizes = self.batches.get_batch_sizes(self._selected)
        self._control.snapshot = ConfigurationSnapshot(self._round, sizes, self.batches.local_steps)
        return ModelAction.KEEP

    def _without_data(self, regression: Regression | None, missing: int) -> ModelAction:
        """Return to the best model after a round that lacked data of some nodes: the learning rate is not to blame."""
        if regression is None:
            return ModelAction.LEAVE
        self._control.progress.return_to_best()
        self._log.decide(
            DecisionKind.ROLLBACK,
            CLUSTER,
            RollbackReason.DATA_MISSING,
            {**regression.figures, "missing_nodes": missing},
        )
        return ModelAction.REVERT

    def _roll_back(self, regression: Regression) -> ModelAction:
        """Return to the best model and its configuration, with a lower learning rate and less momentum."""
        found = self._control.roll_back(regression)
        if found is None:
            return ModelAction.LEAVE  # nothing is left to change
        figures, change = found
        self._work.held_until = self._round + 1 + self.config.orchestrator.rollback_rounds
        self._log.decide(DecisionKind.ROLLBACK, CLUSTER, regression.reason, figures)
        self._log.codecs(self._codecs.diverged(self._selected, self._round))
        self._rehearsed(self._rehearsals.cancel())
        self._log.optimizer(change)
        self.batches.learning_rate_factor = change.after
        best = self._control.snapshot
        if best is not None:
            restored = self.batches.restore(best.batch_sizes, best.local_steps, change.after, BatchReason.ROLLED_BACK)
            self._log.batches(restored)
        return ModelAction.REVERT

    # ------------------------------------------------------------ rehearsals

    def _rehearse(self, report: RoundReport, now: float) -> RehearsalRequest | None:
        """Judge the setting that a rehearsal found, and return the request of the next one, if it is due."""
        self._rehearsed(self._rehearsals.observe(report, now))
        adapts = self.phase in (Phase.ADAPTIVE, Phase.CONVERGENCE) and self._round >= self._work.held_until
        training = self.config.training
        if self.policy is not AdaptationPolicy.REHEARSED or not adapts or training.is_buffered:
            return None
        measured = self.monitor.round_trips_measured(self.monitor.rows(self._selected), ROUND_TRIPS)
        if np.median(measured) < ROUND_TRIPS and report.round < ROUNDS_WITHOUT:
            return None
        worth = Worth(
            self.batches.noise_scale(self.batches.baseline_batch_size * len(self._selected)),
            self.batches.worthwhile_steps(self._selected),
            WorthSource.UPDATE_NORMS if report.update_norms is not None else WorthSource.ASSUMED,
        )
        return self._rehearsals.request(worth, now)

    def fork(self, change: HeldSetting) -> None:
        """Go on in virtual time, as a copy that no user watches, with a changed setting and without trials of rates."""
        self._rehearsals.fork(change)
        self._rehearsals.interrupt()
        self._control.search.set_step(1.0)
        self.batches.costs.overhead.interrupt()
        self._hold(self._rehearsals.held.local_steps)

    def _rehearsed(self, decision: RehearsalDecision | None) -> None:
        """Record a decision about a rehearsal, and hold what is to be held."""
        if decision is None:
            return
        self._log.decide(DecisionKind.REHEARSAL, CLUSTER, decision.reason, decision.figures)
        self._hold(decision.local_steps)

    def _hold(self, local_steps: int | None) -> None:
        self._codecs.hold(self._rehearsals.held.codecs)
        if local_steps is not None:
            self.batches.local_steps = local_steps

    def _communication_seconds(self, selected: Sequence[str]) -> float:
        """Return the expected communication of a round: the mean over samples of the slowest selected node."""
        if not selected:
            return 0.0
        samples = self.monitor.round_communication_samples(self.monitor.rows(selected), LATEST_COMMUNICATIONS)
        return float(samples.max(axis=0).mean())

    def _update_phase(self) -> None:
        improvement = self._losses.improvement
        if improvement is None:
            return
        figures = {"improvement_per_round": improvement}
        if self.phase is Phase.ADAPTIVE and self._losses.stalled:
            self._enter(Phase.CONVERGENCE, PhaseReason.LOSS_STALLED, figures)
        elif self.phase is Phase.CONVERGENCE and self._losses.moving:
            self._enter(Phase.ADAPTIVE, PhaseReason.LOSS_MOVES_AGAIN, figures)

    def _enter(self, phase: Phase, reason: PhaseReason, figures: Mapping[str, float | int | str]) -> None:
        self._log.decide(DecisionKind.PHASE, CLUSTER, reason, {"from": self.phase, "to": phase, **figures})
        self.phase = phase
