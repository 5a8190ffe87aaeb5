"""Control of the codecs: chosen for each round, kept while they do what was expected, and taken back otherwise."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import numpy as np

from hypergpu.common.codecs import find_codec
from hypergpu.common.config import CompressionConfig
from hypergpu.common.strategies import CompressionStrategy
from hypergpu.common.transfer_codecs import TransferCodecs
from hypergpu.coordinator.core.adaptation import codec_choice as choice
from hypergpu.coordinator.core.adaptation.codec_choice import PARAMETERS_CODECS, Codecs, RoundForecast
from hypergpu.coordinator.core.adaptation.codec_noise import HAS_FEEDBACK, UPDATE_CODECS, NoiseTable
from hypergpu.coordinator.core.decisions import Figures
from hypergpu.coordinator.core.links import NetworkQualityMonitor
from hypergpu.coordinator.core.links.profile import MBIT
from hypergpu.coordinator.core.links.transfer_time import TransferRates, transfer_seconds
from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints, grow_column
from hypergpu.coordinator.core.rounds.events import Contribution

_LATEST: Final = 4
"""Latest communications of each node that a choice is made from."""
_LEAST_GAIN: Final = 1.1
"""Ratio of progress per second for which codecs change, if it is expected in `_PROMISING_ROUNDS` rounds in a row."""
_PROMISING_ROUNDS: Final = 2
_LARGE_GAIN: Final = 1.3
"""Ratio for which they change at once."""
_STILL_GOOD: Final = 0.99
"""The same for milder codecs, which return if they were as good for `_CALM_ROUNDS` rounds in a row."""
_CALM_ROUNDS: Final = 4
_CHECKED_ROUNDS: Final = 2
"""Measured rounds after a change that show whether it saves what was expected."""
_LEAST_SAVING: Final = 0.5
"""Share of the expected saving below which a change is taken back, if the difference is not within the usual spread."""
_FIRST_BLOCK: Final = 8
"""Rounds after a change was taken back in which it is not tried again; twice as many each further time."""
_LONGEST_BLOCK: Final = 1 << 20
_MILD: Final = UPDATE_CODECS.index("int8")
"""Strongest codec that cannot make training diverge: its noise is far below that of the gradients."""
_LARGE_BYTES: Final = 1_000_000
"""Size of a model that is not sent as float32 over a link whose rate is not measured."""
_UNMEASURED: Final = (UPDATE_CODECS.index("int8"), PARAMETERS_CODECS.index("int8"))
"""Codecs over such a link: they encode a gigabyte a second, and cost no accuracy."""
_MEMORY: Final = 0.7
"""Weight of the past in the share of rounds that a node takes part in."""
_USUAL: Final = 0.5
"""Share of the latest rounds that a node takes part in, from which it counts for the choice."""
_REGULAR: Final = 0.8
"""The same, from which differences of parameters pay."""
_ENCODING: Final[Floats] = 1e-9 / np.array([math.inf, 1.2, 1.2, 0.9, 0.4])
"""Seconds a byte of float32 that encoding takes on one core, by `benchmarks/codecs.py`."""


class CompressionReason(StrEnum):
    """Reason for a change of codecs."""

    RATE_NOT_MEASURED = "rate_not_measured"
    """First transfers of a large model: a mild codec costs next to nothing, whatever the link."""
    TRANSFERS_LENGTHEN_ROUND = "transfers_lengthen_round"
    """The others would wait for the transfers of the node in a milder codec."""
    TRANSFERS_KEEP_OUT = "transfers_keep_out"
    """The node seldom takes part: it is too slow in a milder codec."""
    TRANSFERS_FIT_ROUND = "transfers_fit_round"
    """The node is done in time with a milder codec."""
    NOISE_ABOVE_BOUND = "noise_above_bound"
    """The measured noise exceeds `compression.max_noise`."""
    SAVED_AS_EXPECTED = "saved_as_expected"
    """The change is kept: it saves at least half of what was expected, but for the usual spread."""
    SAVED_LESS_THAN_EXPECTED = "saved_less_than_expected"
    """The change is taken back."""
    TRAINING_DIVERGED = "training_diverged"
    """Codecs with much noise are left until training has recovered."""
    POLICY_NONE = "policy_none"
    """Policy `none` sends float32."""


@dataclass(frozen=True, slots=True)
class CodecDecision:
    """One change of a node's codecs, or the verdict on one."""

    node: str
    reason: CompressionReason
    figures: Figures


@dataclass(frozen=True, slots=True)
class Outlook:
    """Expectations of the coming round that do not concern its transfers."""

    round: int
    compute_seconds: Floats
    """Computing time of each node."""
    overhead_seconds: float
    noise_nodes: float
    """Number of nodes whose gradient noise equals the gradient."""
    close_share: float | None
    """Share of the nodes that closes the round; None if the adaptation chooses it."""
    rounds_left: float


class _Move:
    """Move of all nodes from their present codecs to others."""

    def __init__(self, forecast: RoundForecast, rates: TransferRates, present: Codecs, found: Codecs) -> None:
        self.forecast, self.rates, self.present, self.found = forecast, rates, present, found
        self.saving: Floats = (forecast.node_seconds(present) - forecast.node_seconds(found)).mean(axis=1)
        """Seconds that each node saves."""
        self.changed: Ints = np.flatnonzero((found.update != present.update) | (found.parameters != present.parameters))

    def pair(self, at: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the codecs of a node before and after."""
        before, after = ((int(codecs.update[at]), int(codecs.parameters[at])) for codecs in (self.present, self.found))
        return before, after

    def reason(self, at: int) -> CompressionReason:
        """Return why the codecs of a node change."""
        before, after = self.pair(at)
        if before[0] > self.forecast.most_update[at]:
            return CompressionReason.NOISE_ABOVE_BOUND
        if not self.forecast.counts[at]:
            return CompressionReason.TRANSFERS_KEEP_OUT
        is_smaller = after[0] > before[0] or after[1] > before[1]
        if is_smaller and self.saving[at] > 0.0:
            return CompressionReason.TRANSFERS_LENGTHEN_ROUND
        return CompressionReason.TRANSFERS_FIT_ROUND


@dataclass(slots=True)
class _Check:
    """Comparison of what a change of codecs saves with what was expected."""

    before: tuple[int, int]
    """Codecs before the change."""
    seconds_before: float
    spread_seconds: float
    """Half of the range of the latest communications before."""
    expected: float = 0.0
    """Saving of the rounds so far."""
    measured: float = 0.0
    rounds: int = 0


@dataclass(slots=True)
class _Columns:
    """Figures with one entry for each link of the monitor."""

    update: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    parameters: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    is_known: Bools = field(default_factory=lambda: np.zeros(0, np.bool_))
    """The node was part of a plan before."""
    presence: Floats = field(default_factory=lambda: np.zeros(0))
    """Share of the latest rounds that the node took part in."""
    holds: Bools = field(default_factory=lambda: np.zeros(0, np.bool_))
    """The next parameters can be sent to it as a difference."""
    blocked_until: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """Round until which `most_update` and `most_parameters` hold."""
    block_rounds: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    most_update: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    most_parameters: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def grow(self, rows: int, update: int, parameters: int) -> None:
        """Make room for at least `rows` links, of which new ones have these codecs."""
        self.update = grow_column(self.update, rows, update)
        self.parameters = grow_column(self.parameters, rows, parameters)
        for name, fill in (
            ("is_known", 0),
            ("presence", 1.0),
            ("holds", 0),
            ("blocked_until", 0),
            ("block_rounds", _FIRST_BLOCK),
        ):
            setattr(self, name, grow_column(getattr(self, name), rows, fill))
        self.most_update = grow_column(self.most_update, rows, 0)
        self.most_parameters = grow_column(self.most_parameters, rows, 0)


class CodecControl:
    """Chooses the codecs of each node, and tells the monitor the payloads that follow.

    Nothing is kept over a restart of the coordinator: codecs follow from rates, which are measured anew then.

    Args:
        config: Settings of the compression.
        monitor: Source of the rates and of the communication of each node, which must be registered there.
        model_bytes: Size of the parameters as float32; None if unknown, which leaves all codecs as configured.
    """

    def __init__(self, config: CompressionConfig, monitor: NetworkQualityMonitor, model_bytes: int | None) -> None:
        self._config, self._monitor = config, monitor
        self._is_adaptive = config.strategy is CompressionStrategy.ADAPTIVE and model_bytes is not None
        self._is_idle = config.strategy is CompressionStrategy.NONE or model_bytes is None
        values = -(-(model_bytes or 0) // 4)
        self._up_bytes = np.array([find_codec(name).encoded_bytes(values) for name in UPDATE_CODECS], np.float64)
        self._down_bytes = np.array([find_codec(name).encoded_bytes(values) for name in PARAMETERS_CODECS], np.float64)
        self._encoding = _ENCODING * (model_bytes or 0)
        self._first = (UPDATE_CODECS.index(config.update_codec), PARAMETERS_CODECS.index(config.parameters_codec))
        self._noise = NoiseTable()
        self._columns = _Columns()
        self._checks: dict[str, _Check] = {}
        self._expected: dict[str, float] = {}
        """Expected communication in this round of the nodes that are checked."""
        self._calm = 0
        """Rounds in a row in which milder codecs would have been as good."""
        self._promising = 0
        """Rounds in a row in which other codecs would have been better."""
        self._cap, self._capped_until, self._cap_rounds = len(UPDATE_CODECS) - 1, 0, _FIRST_BLOCK
        self.changed_seconds: Mapping[str, float] = {}
        """Change of the expected communication of each node in the coming round, because of other payloads."""

    def codecs_of(self, nodes: Sequence[str]) -> Mapping[str, TransferCodecs]:
        """Return the codecs of these nodes in the coming round; empty if all have the configured ones."""
        if not self._is_adaptive:
            return {}
        chosen = self._present(self._rows(nodes))
        pairs = zip(chosen.update.tolist(), chosen.parameters.tolist(), strict=True)
        return {
            node: TransferCodecs(UPDATE_CODECS[update], PARAMETERS_CODECS[parameters])
            for node, (update, parameters) in zip(nodes, pairs, strict=True)
        }

    # ------------------------------------------------------------ before a round

    def plan(self, nodes: Sequence[str], outlook: Outlook) -> list[CodecDecision]:
        """Choose the codecs of the coming round, and return what changed."""
        if not self._is_adaptive or not nodes:
            self._expect_payloads(nodes)
            return []
        rows = self._rows(nodes)
        decisions = self._begin(nodes, rows)
        present, rates = self._present(rows), self._monitor.transfer_rates(rows)
        forecast = self._forecast(rows, present, rates, outlook)
        found = self._choose(forecast, present)
        if found is not present:
            decisions += self._changes(nodes, rows, _Move(forecast, rates, present, found))
            self._columns.update[rows], self._columns.parameters[rows] = found.update, found.parameters
        self._expect_payloads(nodes)
        return decisions

    def _changes(self, nodes: Sequence[str], rows: Ints, move: _Move) -> list[CodecDecision]:
        """Return the decisions of a move, and begin to check what it saves."""
        before, after = (choice.evaluate(move.forecast, codecs) for codecs in (move.present, move.found))
        known, waiting = self._noise.measured(rows), self._monitor.exchange_samples(rows, _LATEST)
        decisions = []
        for at in move.changed.tolist():
            old, new = move.pair(at)
            reason = move.reason(at)
            figures = self._figures(old, new) | {
                "expected_saving_seconds": float(move.saving[at]),
                "round_seconds": before.seconds,
                "expected_round_seconds": after.seconds,
                "noise": float(move.forecast.noise[at, new[0]]),
                "noise_is": "measured" if known[at, new[0]] or not new[0] else "assumed",
                "up_mbit": MBIT * float(move.rates.up.rates[at]),
                "down_mbit": MBIT * float(move.rates.down.rates[at]),
            }
            decisions.append(CodecDecision(nodes[at], reason, figures))
            self._checks.pop(nodes[at], None)
            if reason is CompressionReason.TRANSFERS_LENGTHEN_ROUND:
                self._checks[nodes[at]] = _Check(old, float(waiting[at].mean()), 0.5 * float(np.ptp(waiting[at])))
        return decisions

    def _begin(self, nodes: Sequence[str], rows: Ints) -> list[CodecDecision]:
        """Choose the first codecs of new nodes."""
        columns = self._columns
        new = np.flatnonzero(~columns.is_known[rows])
        columns.is_known[rows] = True
        if self._up_bytes[0] < _LARGE_BYTES or not len(new):
            return []
        columns.update[rows[new]], columns.parameters[rows[new]] = _UNMEASURED
        figures = self._figures((0, 0), _UNMEASURED)
        return [CodecDecision(nodes[at], CompressionReason.RATE_NOT_MEASURED, figures) for at in new.tolist()]

    def send_float32(self, nodes: Sequence[str]) -> list[CodecDecision]:
        """Send float32 to these nodes, as policy `none` does; return what changed."""
        decisions = []
        if self._is_adaptive and nodes:
            rows = self._rows(nodes)
            present = self._present(rows)
            for at in np.flatnonzero(present.update + present.parameters).tolist():
                old = int(present.update[at]), int(present.parameters[at])
                decisions.append(CodecDecision(nodes[at], CompressionReason.POLICY_NONE, self._figures(old, (0, 0))))
            self._columns.update[rows] = self._columns.parameters[rows] = 0
            self._checks.clear()
        self._expect_payloads(nodes)
        return decisions

    def _rows(self, nodes: Sequence[str]) -> Ints:
        rows = self._monitor.rows(nodes)
        self._columns.grow(int(rows.max(initial=-1)) + 1, *self._first)
        return rows

    def _present(self, rows: Ints) -> Codecs:
        return Codecs(self._columns.update[rows], self._columns.parameters[rows])

    def _communication(self, rows: Ints) -> Floats:
        """Return the expected communication of each node: the mean of the latest ones."""
        mean: Floats = self._monitor.exchange_samples(rows, _LATEST).mean(axis=1)
        return mean

    def _forecast(self, rows: Ints, present: Codecs, rates: TransferRates, outlook: Outlook) -> RoundForecast:
        """Return what the choice is made from.

        A direction without a measured rate gets no stronger codec, and one of unknown rate keeps its codec.
        """
        round_trips = rates.round_trips[:, None]
        up = transfer_seconds(self._up_bytes, rates.up.rates[:, None], round_trips) + self._encoding
        down_bytes = np.tile(self._down_bytes, (len(rows), 1))
        missed = 1.0 - self._columns.presence[rows]  # after a round that it missed, a node has nothing to differ from
        down_bytes[:, -1] += missed * (self._down_bytes[0] - self._down_bytes[-1])
        down = transfer_seconds(down_bytes, rates.down.rates[:, None], round_trips)
        down += self._encoding[: len(PARAMETERS_CODECS)]
        seconds = self._monitor.exchange_samples(rows, _LATEST) + outlook.compute_seconds[:, None]
        in_transfers = rates.seconds(*self._monitor.expected_payloads(rows))
        noise = self._noise.expected(rows)
        most_update = np.logical_and.accumulate(noise <= self._config.max_noise, axis=1).sum(axis=1) - 1
        if outlook.round < self._capped_until:
            most_update = np.minimum(most_update, self._cap)
        stays = self._columns.presence[rows] >= _REGULAR  # others have nothing to differ from
        most_parameters = np.where(stays, len(PARAMETERS_CODECS) - 1, len(PARAMETERS_CODECS) - 2)
        most_parameters = np.maximum(most_parameters, present.parameters)
        blocked = outlook.round < self._columns.blocked_until[rows]
        for most, limit in (
            (most_update, self._columns.most_update[rows]),
            (most_parameters, self._columns.most_parameters[rows]),
        ):
            most[blocked] = np.minimum(most, limit)[blocked]
        counts = self._columns.presence[rows] >= _USUAL
        return RoundForecast(
            rest_seconds=np.maximum(seconds - in_transfers[:, None], 0.0),
            up_seconds=np.nan_to_num(up),
            down_seconds=np.nan_to_num(down),
            up_is_known=~np.isnan(rates.up.rates),
            down_is_known=~np.isnan(rates.down.rates),
            noise=noise,
            most_update=np.where(rates.up.is_measured, most_update, np.minimum(most_update, present.update)),
            most_parameters=np.where(rates.down.is_measured, most_parameters, present.parameters),
            counts=counts if counts.any() else np.ones_like(counts),
            overhead_seconds=outlook.overhead_seconds,
            noise_nodes=outlook.noise_nodes,
            close_share=outlook.close_share,
            rounds_left=outlook.rounds_left,
        )

    def _choose(self, forecast: RoundForecast, present: Codecs) -> Codecs:
        """Return the codecs of the coming round: the present ones, unless others are clearly better."""
        best = choice.best_assignment(forecast, present)
        forbidden = present.update > forecast.most_update
        if forbidden.any():
            return Codecs(np.minimum(best.codecs.update, forecast.most_update), best.codecs.parameters)
        gain = best.worth / choice.evaluate(forecast, present).worth
        is_milder = best.codecs.is_milder(present) and not present.is_milder(best.codecs)
        self._promising = self._promising + 1 if gain >= _LEAST_GAIN else 0
        self._calm = self._calm + 1 if is_milder and gain >= _STILL_GOOD else 0
        if gain < _LARGE_GAIN and self._promising < _PROMISING_ROUNDS and self._calm < _CALM_ROUNDS:
            return present
        self._promising = self._calm = 0
        return best.codecs

    def _bytes_of(self, codecs: tuple[int, int]) -> tuple[float, float]:
        return float(self._up_bytes[codecs[0]]), float(self._down_bytes[codecs[1]])

    def _figures(self, old: tuple[int, int], new: tuple[int, int]) -> dict[str, float | int | str]:
        (up_before, down_before), (up, down) = self._bytes_of(old), self._bytes_of(new)
        return {
            "from": _name(old),
            "to": _name(new),
            "up_bytes_before": int(up_before),
            "up_bytes": int(up),
            "down_bytes_before": int(down_before),
            "down_bytes": int(down),
        }

    def _expect_payloads(self, nodes: Sequence[str]) -> None:
        """Tell the monitor what will be sent, and note what is expected of the nodes that are checked."""
        self.changed_seconds = {}
        if self._is_idle or not nodes:
            return
        rows = self._rows(nodes)
        present = self._present(rows)
        down = self._down_bytes[present.parameters]
        is_whole = (present.parameters == len(PARAMETERS_CODECS) - 1) & ~self._columns.holds[rows]
        changes = self._monitor.expect_payloads(
            rows, self._up_bytes[present.update], np.where(is_whole, self._down_bytes[0], down)
        )
        self.changed_seconds = {nodes[at]: float(changes[at]) for at in np.flatnonzero(changes).tolist()}
        checked = [node for node in nodes if node in self._checks]
        expected = self._communication(self._rows(checked)).tolist() if checked else []
        self._expected = dict(zip(checked, expected, strict=True))

    # ------------------------------------------------------------ after a round

    def observe(self, contributions: Sequence[Contribution], round_number: int) -> list[CodecDecision]:
        """Learn from a round: the noise of its updates, and what changed codecs have saved."""
        columns = self._columns
        columns.presence *= _MEMORY
        columns.holds[:] = False
        used = [each for each in contributions if each.success]
        if self._is_idle or not used:
            return []
        rows = self._rows([each.node for each in used])
        columns.presence[rows] += 1.0 - _MEMORY
        columns.holds[rows] = [each.parameters_codec == PARAMETERS_CODECS[-1] for each in used]
        if not self._is_adaptive:
            return []
        noisy = np.array([each.codec != UPDATE_CODECS[0] for each in used])
        lossy = [each for each in used if each.codec != UPDATE_CODECS[0]]
        self._noise.observe(rows[noisy], [each.codec for each in lossy], [each.noise for each in lossy])
        verdicts = (self._check(each, round_number) for each in used if each.measured)
        return [verdict for verdict in verdicts if verdict is not None]

    def abandoned(self) -> None:
        """Note that a round was abandoned: nobody is known to hold its parameters."""
        self._columns.holds[:] = False
        self._expected = {}

    def _check(self, contribution: Contribution, round_number: int) -> CodecDecision | None:
        """Compare what a node's changed codecs save with what was expected; return the verdict, once it is known."""
        node = contribution.node
        check, expected = self._checks.get(node), self._expected.get(node)
        if check is None or expected is None or expected >= check.seconds_before:
            return None  # the first difference of the parameters follows the whole ones
        check.expected += check.seconds_before - expected
        check.measured += check.seconds_before - contribution.waiting_seconds
        check.rounds += 1
        if check.rounds < _CHECKED_ROUNDS:
            return None
        del self._checks[node]
        row = self._rows([node])[0]
        present = int(self._columns.update[row]), int(self._columns.parameters[row])
        figures: dict[str, float | int | str] = {
            "expected_saving_seconds": check.expected / check.rounds,
            "measured_saving_seconds": check.measured / check.rounds,
        }
        missing = (_LEAST_SAVING * check.expected - check.measured) / check.rounds
        if missing <= check.spread_seconds:
            return CodecDecision(node, CompressionReason.SAVED_AS_EXPECTED, {"codecs": _name(present), **figures})
        self._take_back(int(row), check.before, round_number)
        reason = CompressionReason.SAVED_LESS_THAN_EXPECTED
        return CodecDecision(node, reason, self._figures(present, check.before) | figures)

    def _take_back(self, row: int, before: tuple[int, int], round_number: int) -> None:
        columns = self._columns
        columns.update[row] = columns.most_update[row] = before[0]
        columns.parameters[row] = columns.most_parameters[row] = before[1]
        columns.blocked_until[row] = round_number + 1 + columns.block_rounds[row]
        columns.block_rounds[row] = min(2 * columns.block_rounds[row], _LONGEST_BLOCK)

    def diverged(self, nodes: Sequence[str], round_number: int) -> list[CodecDecision]:
        """Leave codecs with much noise, since training has diverged; return what changed."""
        if not self._is_adaptive or not nodes:
            return []
        rows = self._rows(nodes)
        present = self._present(rows)
        noisy = np.flatnonzero(HAS_FEEDBACK[present.update]).tolist()
        if not noisy:
            return []
        self._cap, self._capped_until = _MILD, round_number + 1 + self._cap_rounds
        self._cap_rounds = min(2 * self._cap_rounds, _LONGEST_BLOCK)
        decisions = []
        for at in noisy:
            old = int(present.update[at]), int(present.parameters[at])
            new = _MILD, old[1]
            self._columns.update[rows[at]] = _MILD
            self._checks.pop(nodes[at], None)
            decisions.append(CodecDecision(nodes[at], CompressionReason.TRAINING_DIVERGED, self._figures(old, new)))
        return decisions


def _name(codecs: tuple[int, int]) -> str:
    return str(TransferCodecs(UPDATE_CODECS[codecs[0]], PARAMETERS_CODECS[codecs[1]]))
