"""Validation of the link model's TCP by transfers of the kernel, beside predictors that need no model."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from random import Random
from statistics import fmean, stdev
from typing import Any, Final

from hypergpu.netsim_proxy.link.congestion import INITIAL_WINDOW
from hypergpu.netsim_proxy.link.tcp import PACKET_BYTES, SEGMENT_BYTES
from hypergpu.netsim_proxy.link.transfer import plain_profile, transfer_times
from hypergpu.simulation.kernel.delay_line import Line
from hypergpu.simulation.kernel.transfers import Transfer, measure

LINES: Final = (
    Line(10, 100, 125_000),
    Line(40, 20, 100_000),
    Line(150, 20, 375_000),
    Line(40, 20, 100_000, loss=0.001),
    Line(10, 20, 100_000, loss=0.01),
    Line(40, 20, 100_000, loss=0.01),
    Line(80, 50, 500_000, loss=0.01),
    Line(40, 20, 100_000, loss=0.03),
)
"""Lines whose figures are those of homes, offices and other continents."""
SIZES: Final = (20_000, 80_000, 400_000)
"""Sizes of messages: a compressed update of `digits`, a whole one, and one of `mnist5k`."""
MOST_ERROR: Final = 0.2
"""Largest typical error of the link model; about half of it is chance with the default number of transfers."""
_LINE_SECONDS_PER_BYTE: Final = 8 / 40e6
"""Pace at which transfers begin: what the delay line's process carries without being late."""
_SAMPLES_OF_MODEL: Final = 400
_MOST_SECONDS: Final = 60.0
KINDS: Final = ("cold", "warm")


@dataclass(frozen=True, slots=True)
class Condition:
    """Transfers of one size over one line, on new connections ("cold") or open ones ("warm")."""

    rtt_ms: float
    bandwidth_mbit: float
    loss: float
    nbytes: int
    kind: str
    count: int
    kernel_seconds: float
    """Mean of the kernel's transfers; `standard_error` is its error from chance, relative to it."""
    standard_error: float
    predicted_seconds: Mapping[str, float]
    """Mean by predictor; that of the link model is `model`."""

    def error(self, predictor: str) -> float:
        """Return the error of a predictor, relative to the kernel."""
        return self.predicted_seconds[predictor] / self.kernel_seconds - 1


@dataclass(frozen=True, slots=True)
class KernelValidation:
    """Errors of the link model and of predictors without any model."""

    conditions: Sequence[Condition]

    def typical_error(self, predictor: str) -> float:
        """Return the mean error over conditions, of the ratio of the two times: as far too short as too long."""
        ratios = (1 + condition.error(predictor) for condition in self.conditions)
        return math.exp(fmean(abs(math.log(ratio)) for ratio in ratios)) - 1

    @property
    def noise(self) -> float:
        """Mean standard error of the kernel's times; no predictor can be much closer."""
        return fmean(condition.standard_error for condition in self.conditions)

    def failures(self, most_error: float) -> list[str]:
        """Return what is not good enough, one sentence each; nothing if the model passes."""
        model = self.typical_error("model")
        checks = [
            (model < error, f"the model is {model:.1%} apart; '{PREDICTORS[name][0]}' is {error:.1%}")
            for name in PREDICTORS
            for error in (self.typical_error(name),)
        ]
        checks.append((model <= most_error, f"the model is {model:.1%} apart; at most {most_error:.0%} may be"))
        return [text for passed, text in checks if not passed]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "typical_error": {name: self.typical_error(name) for name in ("model", *PREDICTORS)},
            "noise": self.noise,
            "conditions": [asdict(condition) for condition in self.conditions],
        }


def validate_transfers(
    *,
    samples: int,
    lines: Sequence[Line] = LINES,
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
    progress: Callable[[Line], None] = lambda _: None,
) -> KernelValidation:
    """Measure transfers of the kernel over each line, and predict them.

    Args:
        samples: connections for each line and size; each carries two messages, one after the other.
        lines: lines; each connection has one of its own.
        sizes: bytes of a message.
        seed: seed of the losses, of the kernel's and of the model's, and of the times at which transfers begin.
        progress: called with each line before its measurement.

    Raises:
        InvalidInput: this machine does not permit network namespaces or TUN devices.
    """
    conditions: list[Condition] = []
    for line in lines:
        progress(line)
        measured = _measure(line, sizes, samples, seed)
        conditions += [
            _condition(line, nbytes, kind, measured[nbytes][kind], seed) for nbytes in sizes for kind in KINDS
        ]
    return KernelValidation(conditions)


def _measure(line: Line, sizes: Sequence[int], samples: int, seed: int) -> dict[int, dict[str, list[float]]]:
    """Return the seconds of messages by size and kind."""
    random = Random(seed)
    spread = 2 * samples * sum(sizes) * _LINE_SECONDS_PER_BYTE
    transfers = [
        Transfer([nbytes, nbytes], start=random.uniform(0, spread)) for nbytes in sizes for _ in range(samples)
    ]
    measure(replace(line, shared=False), transfers, seed=seed, most_seconds=spread + _MOST_SECONDS)
    found: dict[int, dict[str, list[float]]] = {nbytes: {kind: [] for kind in KINDS} for nbytes in sizes}
    for transfer in transfers:
        for kind, seconds in zip(KINDS, transfer.seconds, strict=False):
            found[transfer.sizes[0]][kind].append(seconds)
    return found


def _condition(line: Line, nbytes: int, kind: str, seconds: Sequence[float], seed: int) -> Condition:
    profile = plain_profile(line.rtt_ms, line.bandwidth_mbit, line.loss, queue_bytes=line.queue_bytes)
    predicted = {name: predict(line, nbytes, kind) for name, (_, predict) in PREDICTORS.items()}
    predicted["model"] = transfer_times(profile, nbytes, samples=_SAMPLES_OF_MODEL, seed=seed)[kind].mean_seconds
    mean = fmean(seconds)
    error = stdev(seconds) / math.sqrt(len(seconds)) / mean if len(seconds) > 1 else math.inf
    return Condition(line.rtt_ms, line.bandwidth_mbit, line.loss, nbytes, kind, len(seconds), mean, error, predicted)


# --- predictors that need no model


def line_rate_seconds(line: Line, nbytes: int, kind: str = "warm") -> float:
    """Return half a round trip, and the time of the packets at the rate of the line."""
    del kind
    return line.rtt_ms / 2000 + _packet_bytes(nbytes) / (line.bandwidth_mbit * 125_000)


def mathis_seconds(line: Line, nbytes: int, kind: str = "warm") -> float:
    """Return the same at the rate that the losses allow: MSS / RTT × sqrt(3 / 2p), by Mathis et al. (1997)."""
    del kind
    if not line.loss:
        return line_rate_seconds(line, nbytes)
    rate = min(line.bandwidth_mbit * 125_000, _window_of(line) * PACKET_BYTES / (line.rtt_ms / 1000))
    return line.rtt_ms / 2000 + _packet_bytes(nbytes) / rate


def slow_start_seconds(line: Line, nbytes: int, kind: str = "warm") -> float:
    """Return the same, and for a new connection the round trips of a slow start up to that rate (Cardwell, 2000)."""
    full = mathis_seconds(line, nbytes)
    if kind == "warm":
        return full
    rtt = line.rtt_ms / 1000
    product = line.bandwidth_mbit * 125_000 * rtt / PACKET_BYTES
    most = min(product, _window_of(line)) if line.loss else product
    window, left, trips = float(INITIAL_WINDOW), math.ceil(nbytes / SEGMENT_BYTES), 0
    while window < min(most, left):
        left -= int(window)
        window *= 2
        trips += 1
    return trips * rtt + mathis_seconds(line, left * SEGMENT_BYTES)


def _window_of(line: Line) -> float:
    return math.sqrt(1.5 / line.loss)


def _packet_bytes(nbytes: int) -> int:
    return nbytes + math.ceil(nbytes / SEGMENT_BYTES) * (PACKET_BYTES - SEGMENT_BYTES)


PREDICTORS: Final[Mapping[str, tuple[str, Callable[[Line, int, str], float]]]] = {
    "line_rate": ("rate of the line and half a round trip", line_rate_seconds),
    "mathis": ("formula of Mathis", mathis_seconds),
    "slow_start": ("slow start, then the formula of Mathis", slow_start_seconds),
}
"""Description of each, and its function of line, bytes and kind."""
