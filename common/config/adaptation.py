"""How links are judged, and what follows from it."""

from common.config.section import Section


class MonitorConfig(Section):
    """Measuring links."""


class BatchConfig(Section):
    """Choosing batch sizes."""


class SelectorConfig(Section):
    """Choosing the nodes of a round."""


class OrchestratorConfig(Section):
    """When and how boldly all of it adapts."""
