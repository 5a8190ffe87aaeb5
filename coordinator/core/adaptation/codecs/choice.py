"""Choice of the codecs of a round: the assignment with the most expected progress per second.

A round of n nodes closes when the k-th update arrives. Codecs shorten the transfers, and their noise ε adds to that of
the gradients: with φ nodes' worth of gradient noise (see `goodput`), k updates are worth

    k / (k + φ + ε·(1 + φ))

since the error of an update is ε of its squared norm, which is 1 + φ times that of the gradient. Error feedback does
not lose what a codec drops, but delivers it later. Of the updates of R rounds, with q = ε · (what a residual keeps),

    (1 - ε) / (1 - q) · (1 - q·(1 - q^R) / (R·(1 - q)))

arrives before the end. Both hold for codecs with feedback: what is late was computed on an older model.

Where late updates count, a node whose work takes 1 + τ rounds has R / (1 + τ) updates left, and what its codec drops
arrives 1 + τ rounds later each time: with feedback, its noise counts ε · (1 + τ). Staleness and compression harm each
other ("DeCo-SGD", arXiv 2507.17346, 2025, bounds it by an exponential of the delay; the factor here is linear).

A node whose transfers are not what the others wait for gains nothing by a smaller payload, so it keeps the mildest
codecs with which it is done well before the round closes.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from hypergpu.common.codecs.feedback import DECAY
from hypergpu.coordinator.core.adaptation.codecs.noise import HAS_FEEDBACK, UPDATE_CODECS
from hypergpu.coordinator.core.adaptation.enough import enough_share
from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints

PARAMETERS_CODECS: Final = ("none", "bf16", "int8")
"""Codecs of parameters, from the most to the fewest bytes."""
_IN_TIME: Final = 0.9
"""Share of a round in which a node must be done with its present codec to keep it, so that the others seldom wait."""
_EARLY: Final = 0.4
"""Share of a round in which a node must be done with a milder codec to change to it. Rounds may become shorter."""
_MILD: Final = UPDATE_CODECS.index("int8")
"""Strongest codec whose noise is negligible, so that a milder one is only worth it where it is as fast."""
_AS_FAST: Final = 1.1
"""Ratio of the times of a node in two codecs up to which they are equally fast."""
_NEGLIGIBLE: Final = 0.02
"""Share of a round that a direction must save by a codec, so that it is worth it."""
_SAME: Final = 1.03
"""Ratio of progress per second below which two choices are equal, and the milder one is taken."""
_SMALLEST_WHOLE: Final = PARAMETERS_CODECS.index("bf16")
"""Codec with the fewest bytes of whole parameters; a node that seldom takes part has nothing to differ from."""
_MOST_ROUNDS = 10_000
"""Rounds that a run without an end is taken to have left."""


@dataclass(frozen=True, slots=True)
class Codecs:
    """Codecs of each node, as places in `UPDATE_CODECS` and `PARAMETERS_CODECS`."""

    update: Ints
    parameters: Ints

    def differ(self, other: "Codecs") -> Bools:
        """Return a mask of the nodes whose codecs differ."""
        differ: Bools = (self.update != other.update) | (self.parameters != other.parameters)
        return differ

    def replaced(self, other: "Codecs", where: Bools) -> "Codecs":
        """Return these codecs, with those of another assignment for some nodes."""
        return Codecs(np.where(where, other.update, self.update), np.where(where, other.parameters, self.parameters))

    def is_milder(self, other: "Codecs") -> bool:
        """Return whether no node has a smaller payload than in `other`."""
        return bool((self.update <= other.update).all() and (self.parameters <= other.parameters).all())


@dataclass(frozen=True, slots=True)
class RoundForecast:
    """Expectations of a round that the choice is made from; the first axis of each array is the node."""

    rest_seconds: Floats
    """Time of each node in the latest rounds without its transfers, shape (nodes, rounds)."""
    up_seconds: Floats
    """Time of the update in each codec, shape (nodes, `UPDATE_CODECS`)."""
    down_seconds: Floats
    """Time of the parameters in each codec, shape (nodes, `PARAMETERS_CODECS`)."""
    up_is_known: Bools
    """Nodes whose rate up is known; the others keep the codec of their update."""
    down_is_known: Bools
    """Nodes whose rate down is known; the others keep the codec of their parameters."""
    noise: Floats
    """Noise of the update in each codec, shape (nodes, `UPDATE_CODECS`)."""
    most_update: Ints
    """Strongest codec of the update that each node may use."""
    most_parameters: Ints
    """Strongest codec of the parameters that each node may use."""
    counts: Bools
    """Nodes that usually take part in a round. The others are not waited for, and need the fewest bytes to return."""
    overhead_seconds: float
    """Time between rounds."""
    noise_nodes: float
    """φ in nodes."""
    close_share: float | None
    """Share of the nodes that closes a round; None for the one with the most progress per second."""
    rounds_left: float
    late_counts: bool = False
    """True if a round may close without a node, and its update counts in a later one."""

    def node_seconds(self, codecs: Codecs) -> Floats:
        """Return the time of each node in the latest rounds, had it used these codecs: shape (nodes, rounds)."""
        every = np.arange(len(codecs.update))
        transfers = self.up_seconds[every, codecs.update] + self.down_seconds[every, codecs.parameters]
        seconds: Floats = self.rest_seconds + transfers[:, None]
        return seconds


@dataclass(frozen=True, slots=True)
class Assignment:
    """Codecs of each node, with what is expected of a round in which they are used."""

    codecs: Codecs
    seconds: float
    """Time until the round closes."""
    progress: float

    @property
    def worth(self) -> float:
        """Progress per second."""
        return self.progress / max(self.seconds, 1e-9)


def evaluate(forecast: RoundForecast, codecs: Codecs) -> Assignment:
    """Return what is expected of a round of the nodes that count, with these codecs."""
    counts = forecast.counts
    times, nodes = forecast.node_seconds(codecs)[counts], int(counts.sum())
    share = forecast.close_share
    if share is None:
        share = enough_share(times, forecast.overhead_seconds, forecast.noise_nodes)
    enough = min(max(int(np.ceil(share * nodes - 1e-9)), 1), nodes)
    seconds = float(np.sort(times, axis=0)[enough - 1].mean()) + forecast.overhead_seconds
    used = codecs.update[counts]
    noise = forecast.noise[counts, used]
    rounds_each = np.maximum(times.mean(axis=1) / seconds, 1.0) if forecast.late_counts and seconds > 0.0 else 1.0
    feedback = HAS_FEEDBACK[used]
    arriving = float(np.where(feedback, delivered_share(noise, forecast.rounds_left / rounds_each), 1.0).mean())
    disturbance = float(np.where(feedback, noise * rounds_each, noise).mean()) * (1.0 + forecast.noise_nodes)
    return Assignment(codecs, seconds, arriving * enough / (enough + forecast.noise_nodes + disturbance))


def delivered_share(noise: Floats, rounds_left: Floats | float) -> Floats:
    """Return the share of all updates that arrives within the rounds left, with error feedback."""
    kept = np.minimum(DECAY * noise, 1.0 - 1e-6)
    rounds = np.clip(rounds_left, 1.0, _MOST_ROUNDS)
    missing = kept * (1.0 - kept**rounds) / (rounds * (1.0 - kept))
    share: Floats = (1.0 - noise) / (1.0 - kept) * (1.0 - missing)
    return share


def best_assignment(forecast: RoundForecast, present: Codecs) -> Assignment:
    """Return the mildest of the assignments with the most progress per second.

    Of each codec of updates, one assignment is tried: no node uses a stronger one, and each uses the mildest with which
    it is done in time, or its present one if that does as well.
    """
    tried = [_assignment(forecast, present, strongest) for strongest in range(len(UPDATE_CODECS))]
    most = max(each.worth for each in tried)
    return next(each for each in tried if _SAME * each.worth >= most)


def _assignment(forecast: RoundForecast, present: Codecs, strongest: int) -> Assignment:
    limit = Codecs(
        np.where(forecast.up_is_known, np.minimum(forecast.most_update, strongest), present.update),
        np.where(forecast.down_is_known, np.minimum(forecast.most_parameters, strongest), present.parameters),
    )
    due = evaluate(forecast, limit).seconds - forecast.overhead_seconds
    rest = forecast.rest_seconds.mean(axis=1)
    every = np.arange(len(rest))
    up = forecast.up_seconds[every, limit.update]
    parameters = _mildest((rest + up)[:, None] + forecast.down_seconds, due, present.parameters, limit.parameters)
    down = forecast.down_seconds[every, parameters]
    update = _mildest((rest + down)[:, None] + forecast.up_seconds, due, present.update, limit.update)
    rare = ~forecast.counts
    update[rare] = np.minimum(np.maximum(present.update, limit.update), forecast.most_update)[rare]
    parameters[rare] = np.minimum(forecast.most_parameters, _SMALLEST_WHOLE)[rare]
    update = np.where(forecast.up_is_known, update, present.update)
    parameters = np.where(forecast.down_is_known, parameters, present.parameters)
    return evaluate(forecast, Codecs(update, parameters))


def _mildest(seconds: Floats, due: float, present: Ints, limit: Ints) -> Ints:
    """Return the codec of each node, given its time with each codec: shape (nodes, codecs)."""
    every = np.arange(len(limit))
    saves_little = seconds - seconds[every, limit][:, None] <= _NEGLIGIBLE * due
    in_time = _first(saves_little | (seconds <= _IN_TIME * due))
    is_as_fast = seconds <= _AS_FAST * seconds[every, np.minimum(limit, _MILD)][:, None]
    is_as_fast[:, _MILD:] = True
    early = _first(is_as_fast & (saves_little | (seconds <= _EARLY * due)))
    chosen: Ints = np.minimum(np.clip(present, in_time, np.maximum(in_time, early)), limit)
    return chosen


def _first(fits: Bools) -> Ints:
    """Return the first codec that fits for each node, or the last one."""
    last = fits.shape[1] - 1
    first: Ints = np.where(fits.any(axis=1), fits.argmax(axis=1), last)
    return first
