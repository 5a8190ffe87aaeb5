"""Policies and strategies of the adaptation, by the names that the configuration and the decisions use."""

from enum import StrEnum


class AdaptationPolicy(StrEnum):
    """Policy of the adaptation."""

    NONE = "none"
    """No adaptation: every node with the configured batch. This is the fixed baseline."""
    CONSERVATIVE = "conservative"
    """Small, gradual changes after many measurements."""
    AGGRESSIVE = "aggressive"
    """Large changes to find the optimum quickly."""
    REACTIVE = "reactive"
    """Immediate response to measurements."""
    PROACTIVE = "proactive"
    """Response to the forecast of each link. It was measured to be no faster than REACTIVE."""
    REHEARSED = "rehearsed"
    """REACTIVE, and settings that were tried in virtual time before, from the present state of the run."""


class CompressionStrategy(StrEnum):
    """Strategy that chooses the codecs of transfers."""

    NONE = "none"
    """Float32 for every node."""
    FIXED = "fixed"
    """The configured codecs for every node."""
    ADAPTIVE = "adaptive"
    """Codecs by node, direction and round, with the most expected progress per second."""


class BatchSizeStrategy(StrEnum):
    """Strategy that chooses batch sizes."""

    FIXED = "fixed"
    """The baseline for every node."""
    LATENCY_BASED = "latency_based"
    """Larger batches for high latency, so that fewer exchanges carry as many samples; smaller ones for low latency."""
    THROUGHPUT_BASED = "throughput_based"
    """Hill climbing: keep the direction while throughput improves, reverse it when throughput degrades."""
    HYBRID = "hybrid"
    """60 % size by latency, 40 % size by throughput."""
    GOODPUT = "goodput"
    """Batch sizes and local steps with the most learning progress per second."""


class SelectionStrategy(StrEnum):
    """Strategy that chooses the nodes of a round."""

    ALL_AVAILABLE = "all_available"
    QUALITY_THRESHOLD = "quality_threshold"
    """Nodes whose link score reaches a fixed threshold."""
    TOP_N = "top_n"
    """Nodes with the best score; half of the eligible nodes if no maximum is set."""
    ADAPTIVE_THRESHOLD = "adaptive_threshold"
    """Nodes whose score reaches median − 2σ of the cluster, with σ from the MAD."""
    CONTRIBUTION_BASED = "contribution_based"
    """Nodes whose contribution score (efficiency and reliability) reaches a threshold."""
    UTILITY = "utility"
    """Set of nodes with the most progress per second: a node takes part if its samples outweigh the time it adds."""
