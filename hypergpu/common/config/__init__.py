"""Typed configuration tree: every default is written here, once."""

from pydantic import model_validator

from hypergpu.common.config.adaptation import BatchConfig, MonitorConfig, OrchestratorConfig, SelectorConfig
from hypergpu.common.config.aggregation import AggregationConfig
from hypergpu.common.config.checkpoint import CheckpointConfig
from hypergpu.common.config.compression import CompressionConfig
from hypergpu.common.config.contribution import ContributionConfig
from hypergpu.common.config.loading import load_config
from hypergpu.common.config.node import NodeConfig
from hypergpu.common.config.outlets import OutletsConfig
from hypergpu.common.config.section import ConfigSection
from hypergpu.common.config.training import ServerConfig, TrainingConfig
from hypergpu.common.config.transfers import TransfersConfig


class SystemConfig(ConfigSection):
    """All settings. `SystemConfig()` is valid and trains the digits task."""

    training: TrainingConfig = TrainingConfig()
    """Task, rounds, optimizer and deadlines."""
    server: ServerConfig = ServerConfig()
    """Addresses and limits of the coordinator."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Log of rounds and checkpoints, by which rounds outlast the coordinator."""
    node: NodeConfig = NodeConfig()
    """Device and network of a node."""
    aggregation: AggregationConfig = AggregationConfig()
    """The mean of a round's updates."""
    contribution: ContributionConfig = ContributionConfig()
    """Measurement of what nodes contribute."""
    compression: CompressionConfig = CompressionConfig()
    """Codecs of parameters and updates."""
    transfers: TransfersConfig = TransfersConfig()
    """Connections of the transfers."""
    monitor: MonitorConfig = MonitorConfig()
    """Measurement and classes of links."""
    batch: BatchConfig = BatchConfig()
    """Choice of batch sizes."""
    selector: SelectorConfig = SelectorConfig()
    """Choice of the nodes of a round."""
    orchestrator: OrchestratorConfig = OrchestratorConfig()
    """Policy of the adaptation."""
    outlets: OutletsConfig = OutletsConfig()
    """Other programs that show the run."""

    @model_validator(mode="after")
    def _determinism_has_what_it_needs(self) -> "SystemConfig":
        policy, strategy = self.orchestrator.policy, self.compression.strategy
        if self.training.deterministic and (policy != "none" or strategy != "none" or self.aggregation.is_robust):
            raise ValueError(
                "training.deterministic needs orchestrator.policy none, compression.strategy none and aggregation.rule "
                f"mean (they are {policy}, {strategy} and {self.aggregation.rule}): others decide by times or by chance"
            )
        return self

    @model_validator(mode="after")
    def _rounds_bear_hostile_nodes(self) -> "SystemConfig":
        size, rule = self.training.buffer_size, self.aggregation
        if rule.is_robust and size is not None and size < rule.least_updates:
            raise ValueError(
                f"training.buffer_size {size} closes rounds with fewer updates than the {rule.least_updates} that "
                f"aggregation.rule {rule.rule} needs to bear {rule.byzantine} hostile nodes"
            )
        return self

    @model_validator(mode="after")
    def _updates_can_be_computed_again(self) -> "SystemConfig":
        training, share = self.training, self.contribution.spot_check_share
        missing = {
            "training.partition iid or dirichlet": training.data_is_local,
            "training.fragments 1": training.fragments > 1,
            "training.local_state reset": training.local_state == "kept",
            "training.deterministic false": training.deterministic,
            "aggregation.suspicion true": not self.aggregation.suspicion,
        }
        found = [needed for needed, is_missing in missing.items() if is_missing]
        if share and found:
            raise ValueError(
                f"contribution.spot_check_share {share:g} needs {', '.join(found)}: what a node sends has to follow "
                "from its order alone, and whoever sends something else is a suspect"
            )
        return self

    @property
    def aggregation_warning(self) -> str:
        """Text that says what a robust rule may cost where the nodes' data differ; empty if nothing."""
        rule, partition = self.aggregation, self.training.partition
        if not rule.is_robust or self.training.shards_are_alike:
            return ""
        text = f"with partition {partition}, aggregation.rule {rule.rule} takes updates of rare data for hostile ones"
        return text + ("" if rule.nearest_neighbors else "; nearest_neighbors keeps more of them")


__all__ = [
    "AggregationConfig",
    "BatchConfig",
    "CheckpointConfig",
    "CompressionConfig",
    "ConfigSection",
    "ContributionConfig",
    "MonitorConfig",
    "NodeConfig",
    "OrchestratorConfig",
    "OutletsConfig",
    "SelectorConfig",
    "ServerConfig",
    "SystemConfig",
    "TrainingConfig",
    "TransfersConfig",
    "load_config",
]
