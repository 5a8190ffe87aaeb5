"""Rehearsal of settings in virtual time: what the adaptation asks for, and what its driver answers."""

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from hypergpu.common.transfer_codecs import TransferCodecs
from hypergpu.coordinator.core.batching.goodput import steps_progress


@dataclass(frozen=True, slots=True)
class HeldSetting:
    """Part of a round's plan that is held; what is None stays with the adaptation."""

    local_steps: int | None = None
    close_share: float | None = None
    """Share of the nodes whose updates close a round."""
    codecs: TransferCodecs | None = None
    """Codecs of every node."""

    def __str__(self) -> str:
        parts = (
            None if self.local_steps is None else f"local_steps={self.local_steps}",
            None if self.close_share is None else f"close_share={self.close_share:g}",
            None if self.codecs is None else f"codecs={self.codecs}",
        )
        return " ".join(part for part in parts if part is not None) or "as planned"

    def with_(self, other: "HeldSetting") -> "HeldSetting":
        """Return this setting, with what another one holds in its place."""
        held = {name: value for name in self.__slots__ if (value := getattr(other, name)) is not None}
        return replace(self, **held)


NOTHING_HELD = HeldSetting()


class WorthSource(StrEnum):
    """Source of the figures by which rounds are valued."""

    UPDATE_NORMS = "update_norms"
    """Norms of the updates of this run."""
    LEARNING_CURVE = "learning_curve"
    """Constants of the curve that was fitted to the task."""
    ASSUMED = "assumed"
    """Assumptions of the adaptation, since nothing was measured."""


@dataclass(frozen=True, slots=True)
class Worth:
    """Worth of a round in full steps, by the model of `batching.goodput` and of codecs in `simulation.convergence`."""

    noise_scale: float
    """Gradient noise scale φ in samples."""
    drift_steps: float
    """Local steps at which half of their worth is lost; infinite if none is."""
    source: WorthSource

    def of_round(self, steps: int, samples: float, nodes: int, codec_noise: float = 0.0) -> float:
        """Return the worth of a round.

        Args:
            steps: local steps.
            samples: samples of all updates that were used.
            nodes: nodes that these are of.
            codec_noise: mean noise of their codecs.
        """
        if samples <= 0 or nodes <= 0:
            return 0.0
        per_batch = self.noise_scale * steps / samples
        lost = per_batch + codec_noise * (1.0 + per_batch * nodes) / nodes
        return (steps if math.isinf(self.drift_steps) else steps_progress(steps, self.drift_steps)) / (1.0 + lost)


@dataclass(frozen=True, slots=True)
class RehearsalRequest:
    """Request to run candidates in virtual time, from the present state of the run."""

    number: int
    round: int
    """Last finished round."""
    at: float
    """Time of its end, on the clock of the run."""
    present: HeldSetting
    """Plan of that round, as far as candidates change it."""
    candidates: tuple[HeldSetting, ...]
    worth: Worth
    window: int
    """Last rounds by which links and nodes are measured."""
    rounds: int
    """Rounds to look ahead."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Prediction of a setting."""

    setting: HeldSetting
    gain: float
    """Ratio of its progress per second to that of the present setting; mean over seeds."""
    spread: float
    """Standard deviation of this ratio over seeds."""


@dataclass(frozen=True, slots=True)
class RehearsalResult:
    """Result of a rehearsal."""

    number: int
    seconds: float
    """CPU time that it took."""
    worth: Worth | None = None
    """Figures by which rounds were valued."""
    forecasts: tuple[Forecast, ...] = ()
    """Settings that ran on all seeds, the best first; empty where none is predicted to be better."""
    fault: str = ""
    """Reason for which there is no result; empty if there is one."""
