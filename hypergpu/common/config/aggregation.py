"""Settings of the mean of a round's updates, and of the protection from hostile nodes."""

from typing import Literal

from pydantic import model_validator

from hypergpu.common.config.section import ConfigSection
from hypergpu.common.config.whole import Count, CountOrZero

AggregationRule = Literal["mean", "trimmed_mean", "median", "multi_krum", "centered_clipping", "geometric_median"]


class AggregationConfig(ConfigSection):
    """The mean of a round's updates."""

    rule: AggregationRule = "mean"
    """Rule by which the updates of a round become one: `mean` weighs them by samples. The others bear up to `byzantine`
    hostile nodes; see docs/robustness.md."""
    byzantine: CountOrZero = 0
    """Hostile nodes that a robust rule has to bear, whichever they are."""
    buckets: Count = 16
    """Sums of a robust rule, over which a round's nodes are dealt at random: it holds as many models in memory. With
    as many buckets as nodes or more, each node has its own. More than four times `byzantine` are needed."""
    nearest_neighbors: bool = True
    """Replace each bucket's mean by that of its nearest ones before a robust rule, which helps where data is skewed
    (Allouah et al., "Fixing by mixing", AISTATS 2023)."""

    suspicion: bool = True
    """Compare the updates of each round, and give no work to nodes whose updates no honest node sends."""

    @model_validator(mode="after")
    def _bears_what_it_is_to_bear(self) -> "AggregationConfig":
        if self.rule == "mean":
            if self.byzantine:
                raise ValueError(
                    f"byzantine {self.byzantine} needs a robust rule, such as trimmed_mean: the mean bears none"
                )
            return self
        if not self.byzantine:
            raise ValueError(f"rule {self.rule} needs byzantine, the number of hostile nodes to bear: 1 or more")
        if self.buckets <= 4 * self.byzantine:
            raise ValueError(
                f"byzantine {self.byzantine} needs more than {4 * self.byzantine} buckets, not {self.buckets}: hostile "
                "nodes may spoil as many buckets as they are"
            )
        return self

    @property
    def is_robust(self) -> bool:
        """True if the rule bears hostile nodes."""
        return self.rule != "mean"

    @property
    def least_updates(self) -> int:
        """Updates that a round needs at least for its step."""
        return 2 * self.byzantine + 1
