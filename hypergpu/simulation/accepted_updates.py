"""Accepted updates of a modelled round: their samples and full steps, and what their codecs cost."""

from typing import NamedTuple

from hypergpu.common.codecs import find_codec
from hypergpu.common.codecs.feedback import DECAY
from hypergpu.coordinator.core.adaptation.codecs.noise import PRIOR_NOISE


class ModelledUpdate(NamedTuple):
    """Update of a modelled node."""

    node: str = ""
    steps: int = 1
    full_steps: float = 0.0
    batch_size: int = 1
    codec: str = "none"


class Mean(NamedTuple):
    """Mean of the accepted updates of a round."""

    full_steps: float
    samples_per_step: float
    noise: float
    """Noise of the codecs, relative to the squared gradient."""


class AcceptedUpdates:
    """Accepted updates of the round, and the residuals of the nodes.

    Args:
        noise_scale: Gradient noise scale in samples.
    """

    def __init__(self, noise_scale: float) -> None:
        self._noise_scale = noise_scale
        self._residuals: dict[str, float] = {}
        """Full steps that each node has not delivered yet."""
        self.discard()

    def discard(self) -> None:
        """Begin a round."""
        self._samples = self._batches = self._weighted = self._noise = 0.0
        self._count = 0

    def forget(self, node: str) -> None:
        """Forget the residual of a node."""
        self._residuals.pop(node, None)

    def add(self, update: ModelledUpdate, weight: int) -> None:
        """Add an update that counts with `weight` samples."""
        self._samples += weight
        self._batches += weight / update.steps
        self._weighted += weight * self._deliver(update)
        self._count += 1

    def _deliver(self, update: ModelledUpdate) -> float:
        """Return the full steps that an update delivers, and keep what its codec holds back."""
        noise = PRIOR_NOISE[update.codec]
        whole = update.full_steps + self._residuals.pop(update.node, 0.0)
        if not find_codec(update.codec).needs_feedback:
            self._noise += noise * (1 + self._noise_scale / update.batch_size)
            return whole
        self._residuals[update.node] = DECAY * noise * whole
        return (1 - noise) * whole

    def mean(self) -> Mean | None:
        """Return the mean, in which updates weigh by their samples; None without updates."""
        if not self._samples:
            return None
        return Mean(self._weighted / self._samples, self._batches, self._noise / self._count**2)
