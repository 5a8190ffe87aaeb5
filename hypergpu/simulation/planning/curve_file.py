"""File with a learning curve, as `hypergpu fit` prints it."""

from hypergpu.common.config import ConfigSection
from hypergpu.common.metric import ACCURACY, MetricSpec


class CurveFile(ConfigSection):
    """Content of a file with a learning curve."""

    convergence: dict[str, float]
    """Constants of the curve."""
    metric: MetricSpec = ACCURACY
    """Metric of the task; accuracy if left out."""
