"""Typed configuration tree: every default is written here, once."""

from hypergpu.common.config.adaptation import BatchConfig, MonitorConfig, OrchestratorConfig, SelectorConfig
from hypergpu.common.config.compression import CompressionConfig
from hypergpu.common.config.loading import load_config
from hypergpu.common.config.node import NodeConfig
from hypergpu.common.config.section import ConfigSection
from hypergpu.common.config.training import ServerConfig, TrainingConfig
from hypergpu.common.config.transfers import TransfersConfig


class SystemConfig(ConfigSection):
    """All settings. `SystemConfig()` is valid and trains the digits task."""

    training: TrainingConfig = TrainingConfig()
    """Task, rounds, optimizer and deadlines."""
    server: ServerConfig = ServerConfig()
    """Addresses and limits of the coordinator."""
    node: NodeConfig = NodeConfig()
    """Device and network of a node."""
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


__all__ = [
    "BatchConfig",
    "CompressionConfig",
    "ConfigSection",
    "MonitorConfig",
    "NodeConfig",
    "OrchestratorConfig",
    "SelectorConfig",
    "ServerConfig",
    "SystemConfig",
    "TrainingConfig",
    "TransfersConfig",
    "load_config",
]
