"""Settings of the adaptation: links, batch sizes, selection and policy."""

from typing import Annotated

from pydantic import Field, model_validator

from hypergpu.common.config.section import ConfigSection
from hypergpu.common.config.whole import REACHABLE, Count, CountOrZero
from hypergpu.common.limits import LARGEST_COUNT
from hypergpu.common.strategies import AdaptationPolicy, BatchSizeStrategy, SelectionStrategy

Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(gt=0)]


class MonitorConfig(ConfigSection):
    """Measurement of links."""

    update_interval_seconds: Seconds = 5.0
    """Interval at which the background loop scrapes, forecasts and checks alerts."""
    history: Annotated[int, Field(ge=8, le=LARGEST_COUNT), REACHABLE] = 64
    """Number of communications of a link in its figures."""
    best_latency_ms: Annotated[float, Field(gt=0)] = 5.0
    """Round trip that earns all 40 points for latency."""
    worst_latency_ms: Annotated[float, Field(gt=0)] = 500.0
    """Round trip that earns none; between the two, points fall with the logarithm."""
    worst_loss: Annotated[float, Field(gt=0, le=1)] = 0.15
    """Share of lost communications that earns none of the 30 points for loss."""
    hysteresis: Annotated[float, Field(ge=0)] = 3.0
    """Points by which a score must pass a boundary before the class changes; more where losses make it noisy."""
    offline_after_seconds: Seconds = 30.0
    """Silence after which a link counts as offline; its score decays on the way there. Where it is not set, and the
    heartbeats are so rare that a node is lost after more than 10 s, three times as long as that."""
    offline_after_failures: Count = 8
    """Failures in a row after which a link counts as offline."""

    @model_validator(mode="after")
    def _latencies_in_order(self) -> "MonitorConfig":
        if self.best_latency_ms >= self.worst_latency_ms:
            raise ValueError(
                f"best_latency_ms ({self.best_latency_ms:g}) must be below worst_latency_ms ({self.worst_latency_ms:g})"
            )
        return self


class BatchConfig(ConfigSection):
    """Choice of batch sizes, and with GOODPUT of the local steps of a round."""

    strategy: BatchSizeStrategy = BatchSizeStrategy.GOODPUT
    """Strategy for batch sizes; `fixed` switches this part off. `latency_based` and `hybrid` give larger batches to
    nodes behind slow links, so that fewer exchanges carry as many samples. `goodput` gives them smaller ones, so that
    the others wait less, and raises the local steps of all."""
    min_batch_size: Count = 16
    """Smallest batch that is assigned."""
    max_batch_size: Count = 512
    """Largest batch that is assigned; a card's own limit is respected too."""
    powers_of_two: bool = False
    """Assign powers of two only."""
    max_local_steps_factor: Annotated[float, Field(ge=1)] = 20.0
    """GOODPUT may change the local steps of a round by this factor of the configured ones, up or down; 1 keeps them."""
    max_learning_rate_factor: Annotated[float, Field(ge=1)] = 64.0
    """Largest factor of the configured learning rate that trials may reach; 1 keeps the configured one."""

    @model_validator(mode="after")
    def _sizes_in_order(self) -> "BatchConfig":
        if self.min_batch_size > self.max_batch_size:
            raise ValueError(f"min_batch_size ({self.min_batch_size}) is above max_batch_size ({self.max_batch_size})")
        return self


class SelectorConfig(ConfigSection):
    """Choice of the nodes of a round."""

    strategy: SelectionStrategy = SelectionStrategy.UTILITY
    """Strategy for the selection; `all_available` switches this part off."""
    max_selected_nodes: Count | None = None
    """Most nodes in a round."""
    budget_per_hour: Annotated[float, Field(gt=0)] | None = None
    """Most that the nodes of a round may cost per hour together, by their `node.price_per_hour`. Nodes that wait for
    their turn go first, then those of a higher `node.priority`, then those with the best score for their price. Policy
    `none` knows no budget."""
    min_selected_share: Share = 0.5
    """Least share of the eligible nodes in a round; the data of the others is not seen in it."""
    quality_threshold: Annotated[float, Field(ge=0, le=100)] = 50.0
    """Link score that QUALITY_THRESHOLD requires of a node."""
    contribution_threshold: Share = 0.3
    """Contribution score that CONTRIBUTION_BASED requires."""
    quarantine_after_failures: Count = 3
    """Failed rounds in a row that put a node into quarantine. A late update is half a failure."""
    quarantine_rounds: Count = 5
    """Rounds of a first quarantine; each further one in a row doubles them, up to eight times."""
    probation_successes: Count = 2
    """Rounds in which a node has to be in time to end its probation; one failure, or two late updates in a row, send it
    back. A node on probation takes part in every round, and no round waits for it if it has other nodes."""
    fairness_rounds: Count = 10
    """A healthy node that was left out for this many rounds is taken into the next one, unless it is so slow that such
    turns would take more than `slow_time_share` of the time."""
    data_share: Share = 0.5
    """Least part of its share of the samples held that a node's share of the samples seen lately may be, with
    `training.partition=local`: a node below it is taken into the next round. A node that does not report how many it
    holds counts as holding the mean of the others. 0 switches this off."""
    slow_time_share: Share = 0.1
    """Share of all round time that may be spent on bringing in nodes that do not pay for the time they add.

    All of it (as much again as the rounds without them take) where the shards are not IID.
    """


class OrchestratorConfig(ConfigSection):
    """Policy of the adaptation, and its intervals."""

    policy: AdaptationPolicy = AdaptationPolicy.REACTIVE
    """`none` is the fixed baseline: every node, the configured batch. `proactive` is `reactive` with forecasts of the
    links, and was measured to be no faster. `rehearsed` is `reactive`, and tries settings in virtual time before it
    uses them; it takes up to 5 % of a core of the coordinator."""
    warmup_rounds: CountOrZero = 1
    """Rounds that only measure."""
    convergence_window: Annotated[int, Field(ge=2, le=LARGEST_COUNT), REACHABLE] = 8
    """Rounds over which the loss must have stalled for the run to count as converging."""
    convergence_improvement: Annotated[float, Field(ge=0)] = 0.002
    """Relative improvement of the loss per round below which it counts as stalled."""
    rollback_rounds: Count = 4
    """Rounds for which a restored configuration is held."""
    history: Count = 1000
    """Rounds and decisions that are kept for the report."""
