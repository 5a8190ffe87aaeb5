"""One typed tree of configuration: every default is written once, here, and nowhere else."""

from hypergpu.common.config.adaptation import BatchConfig, MonitorConfig, OrchestratorConfig, SelectorConfig
from hypergpu.common.config.loading import load_config
from hypergpu.common.config.node import NodeConfig
from hypergpu.common.config.section import ConfigSection
from hypergpu.common.config.training import ServerConfig, TrainingConfig


class SystemConfig(ConfigSection):
    """Everything that can be set. `SystemConfig()` is valid and trains the digits task."""

    training: TrainingConfig = TrainingConfig()
    """What is trained and how: task, rounds, optimiser, deadlines."""
    server: ServerConfig = ServerConfig()
    """Where the coordinator listens and what it allows."""
    node: NodeConfig = NodeConfig()
    """How a node computes and talks."""
    monitor: MonitorConfig = MonitorConfig()
    """How links are measured and classed."""
    batch: BatchConfig = BatchConfig()
    """How batch sizes are chosen."""
    selector: SelectorConfig = SelectorConfig()
    """How the nodes of a round are chosen."""
    orchestrator: OrchestratorConfig = OrchestratorConfig()
    """When and how boldly all of it adapts."""


__all__ = [
    "BatchConfig",
    "ConfigSection",
    "MonitorConfig",
    "NodeConfig",
    "OrchestratorConfig",
    "SelectorConfig",
    "ServerConfig",
    "SystemConfig",
    "TrainingConfig",
    "load_config",
]
