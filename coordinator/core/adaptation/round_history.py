"""History of rounds, cost of adaptation, and comparison with the warm-up."""

from collections import deque
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from hypergpu.common.metric import finite
from hypergpu.coordinator.core.adaptation.phases import Phase


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """Figures of one completed round."""

    round: int
    phase: Phase
    nodes: int
    samples: int
    seconds: float
    progress: float
    loss: float
    accuracy: float | None
    local_steps: int
    learning_rate_factor: float
    overhead_seconds: float

    @property
    def progress_per_second(self) -> float:
        """Progress per second, the objective of the adaptation."""
        return self.progress / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the round as a JSON object; a loss that is not finite is None."""
        return {
            **asdict(self),
            "loss": finite(self.loss),
            "phase": str(self.phase),
            "progress_per_second": self.progress_per_second,
        }


class RoundHistory:
    """Latest rounds, and totals over all rounds."""

    def __init__(self, keep: int) -> None:
        self.rounds: deque[RoundRecord] = deque(maxlen=keep)
        self.overhead_seconds = 0.0
        self.round_seconds = 0.0
        self.count = 0
        self._baseline: list[RoundRecord] = []

    def add(self, record: RoundRecord) -> None:
        """Add a completed round."""
        self.rounds.append(record)
        self.count += 1
        self.overhead_seconds += record.overhead_seconds
        self.round_seconds += record.seconds
        if record.phase is Phase.WARM_UP:
            self._baseline.append(record)

    @property
    def progress_per_second(self) -> float:
        """Progress per second of the latest round; 0 before the first."""
        return self.rounds[-1].progress_per_second if self.rounds else 0.0

    @property
    def latest_seconds(self) -> float:
        """Duration of the latest round; 0 before the first."""
        return self.rounds[-1].seconds if self.rounds else 0.0

    def overhead(self) -> dict[str, float | None]:
        """Return the cost of deciding: total seconds, milliseconds per round, and share of the round time."""
        return {
            "total_seconds": self.overhead_seconds,
            "mean_ms_per_round": 1e3 * self.overhead_seconds / self.count if self.count else None,
            "share_of_round_time": self.overhead_seconds / self.round_seconds if self.round_seconds > 0 else None,
        }

    def comparison(self) -> dict[str, Any]:
        """Compare the rounds since the warm-up with the warm-up, in which nothing was adapted.

        Both come from a single run, so the result is an indication only; `compare` pairs whole runs.
        """
        adapted = [each for each in self.rounds if each.phase in (Phase.ADAPTIVE, Phase.CONVERGENCE)]
        baseline, current = _means(self._baseline), _means(adapted)
        improvement: dict[str, float | None] = dict.fromkeys(
            ("round_time_ratio", "throughput_ratio", "progress_per_second_ratio")
        )
        if baseline and current:
            improvement = {
                "round_time_ratio": _ratio(baseline["round_seconds"], current["round_seconds"]),
                "throughput_ratio": _ratio(current["samples_per_second"], baseline["samples_per_second"]),
                "progress_per_second_ratio": _ratio(current["progress_per_second"], baseline["progress_per_second"]),
            }
        return {"baseline": baseline, "adaptive": current, "improvement": improvement, "overhead": self.overhead()}


def _means(records: list[RoundRecord]) -> dict[str, float] | None:
    if not records:
        return None
    seconds = sum(each.seconds for each in records)
    return {
        "rounds": len(records),
        "round_seconds": fmean(each.seconds for each in records),
        "samples_per_second": sum(each.samples for each in records) / seconds if seconds > 0 else 0.0,
        "progress_per_second": sum(each.progress for each in records) / seconds if seconds > 0 else 0.0,
        "nodes": fmean(each.nodes for each in records),
    }


def _ratio(above: float, below: float) -> float | None:
    return above / below if below > 0 else None
