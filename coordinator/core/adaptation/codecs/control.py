"""Control of the codecs: chosen for each round, kept while they do what was expected, and taken back otherwise."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from hypergpu.common.config import CompressionConfig
from hypergpu.common.connections import ONE_FOR_ALL, ConnectionPlan
from hypergpu.common.strategies import CompressionStrategy
from hypergpu.common.transfer_codecs import TransferCodecs
from hypergpu.coordinator.core.adaptation.codecs.checks import SavingChecks
from hypergpu.coordinator.core.adaptation.codecs.choice import (
    PARAMETERS_CODECS,
    Codecs,
    RoundForecast,
    best_assignment,
    evaluate,
)
from hypergpu.coordinator.core.adaptation.codecs.decisions import CodecDecision, CodecMove, CompressionReason
from hypergpu.coordinator.core.adaptation.codecs.direction_times import DIRECTIONS, Direction
from hypergpu.coordinator.core.adaptation.codecs.node_codecs import FIRST_BLOCK, LONGEST_BLOCK, NodeCodecs
from hypergpu.coordinator.core.adaptation.codecs.noise import HAS_FEEDBACK, PRIOR_NOISE, UPDATE_CODECS, NoiseTable
from hypergpu.coordinator.core.adaptation.codecs.sizes import CodecPair, CodecSizes
from hypergpu.coordinator.core.decisions import Figures
from hypergpu.coordinator.core.links import NetworkQualityMonitor
from hypergpu.coordinator.core.links.transfer_time import TransferRates
from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints
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
_MILD: Final = UPDATE_CODECS.index("int8")
"""Strongest codec that cannot make training diverge: its noise is far below that of the gradients."""
_LARGE_BYTES: Final = 1_000_000
"""Size of a model that is not sent as float32 over a link whose rate is not measured."""
_FIRST_PARAMETERS: Final = PARAMETERS_CODECS.index("bf16")
_FIRST_UPDATES: Final = ("int4", "int8", "bf16", "none")
"""Codecs over such a link: they encode a gigabyte a second. Updates use the first of these whose usual noise is
permitted: what `int4` loses of one round arrives with the next, and uploads are mostly the slower direction."""
_USUAL: Final = 0.5
"""Share of the latest rounds that a node takes part in, from which it counts for the choice."""
_REGULAR: Final = 0.8
"""The same, from which differences of parameters pay."""


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
    trials: Mapping[str, Collection[Direction]] = field(default_factory=dict)
    """Directions of each node in which another number of connections is tried: its rate is about to change."""
    connections: ConnectionPlan = ONE_FOR_ALL
    late_counts: bool = False
    """True if a late update counts in a later round."""


class _Patience:
    """Waits until a change of codecs is worth it."""

    def __init__(self) -> None:
        self._calm = 0
        """Rounds in a row in which milder codecs would have been as good."""
        self._promising = 0
        """Rounds in a row in which other codecs would have been better."""

    def is_over(self, gain: float, *, is_milder: bool) -> bool:
        """Return whether codecs with this gain in progress per second are worth a change."""
        self._promising = self._promising + 1 if gain >= _LEAST_GAIN else 0
        self._calm = self._calm + 1 if is_milder and gain >= _STILL_GOOD else 0
        if gain < _LARGE_GAIN and self._promising < _PROMISING_ROUNDS and self._calm < _CALM_ROUNDS:
            return False
        self._promising = self._calm = 0
        return True


class _NoiseCap:
    """Leaves codecs with much noise for a while after training has diverged."""

    def __init__(self) -> None:
        self._until, self._rounds = 0, FIRST_BLOCK

    def begin(self, round_number: int) -> None:
        """Leave them, twice as long as the last time."""
        self._until = round_number + 1 + self._rounds
        self._rounds = min(2 * self._rounds, LONGEST_BLOCK)

    def limit(self, most_update: Ints, round_number: int) -> Ints:
        """Return the strongest permitted codecs."""
        return np.minimum(most_update, _MILD) if round_number < self._until else most_update


class CodecControl:
    """Chooses the codecs of each node, and tells the monitor the payloads that follow.

    Nothing is kept over a restart of the coordinator: codecs follow from rates, which are measured anew then.

    Args:
        config: Settings of the compression.
        monitor: Source of the rates and of the communication of each node, which must be registered there.
        model_bytes: Size of the parameters as float32; None if unknown, which leaves all codecs as configured.
    """

    def __init__(self, config: CompressionConfig, monitor: NetworkQualityMonitor, model_bytes: int | None) -> None:
        self._monitor, self._max_noise = monitor, config.max_noise
        self._is_adaptive = config.strategy is CompressionStrategy.ADAPTIVE and model_bytes is not None
        self._is_idle = config.strategy is CompressionStrategy.NONE or model_bytes is None
        self._sizes = CodecSizes(model_bytes or 0)
        quiet = next(codec for codec in _FIRST_UPDATES if PRIOR_NOISE[codec] <= config.max_noise)
        self._unmeasured = CodecPair(UPDATE_CODECS.index(quiet), _FIRST_PARAMETERS)
        first = CodecPair(UPDATE_CODECS.index(config.update_codec), PARAMETERS_CODECS.index(config.parameters_codec))
        self._nodes = NodeCodecs(first)
        self._noise = NoiseTable()
        self._checks = SavingChecks()
        self._patience, self._cap = _Patience(), _NoiseCap()
        self.changed_seconds: dict[str, float] = {}
        """Change of the expected communication of each node in the coming round, because of other payloads."""

    def hold(self, codecs: TransferCodecs | None) -> None:
        """Give every node these codecs from the next plan on, as far as it may have them; None chooses again."""
        self._nodes.held = codecs

    def codecs_of(self, nodes: Sequence[str]) -> Mapping[str, TransferCodecs]:
        """Return the codecs of these nodes in the coming round; empty if all have the configured ones."""
        if not self._is_adaptive:
            return {}
        rows = self._rows(nodes).tolist()
        return {node: self._nodes.pair(row).codecs for node, row in zip(nodes, rows, strict=True)}

    # ------------------------------------------------------------ before a round

    def plan(self, nodes: Sequence[str], outlook: Outlook) -> list[CodecDecision]:
        """Choose the codecs of the coming round, and return what changed."""
        if not self._is_adaptive or not nodes:
            self._expect_payloads(nodes)
            return []
        rows = self._rows(nodes)
        decisions = self._begin(nodes, rows)
        present, rates = self._nodes.present(rows), self._monitor.transfer_rates(rows)
        forecast = self._without_late_joins(self._forecast(rows, present, rates, outlook), rows, present)
        found = self._choose(self._where_measured(forecast, nodes, outlook), forecast, present)
        if found is not present:
            usual = self._sizes.down_seconds(rates, forecast.counts.astype(np.float64))
            settled = self._settled(rates)
            move = CodecMove(forecast, rates, present, found, down_seconds=usual, settled_rates=settled)
            decisions += self._changes(nodes, rows, move)
            self._nodes.set(rows, found)
        self._expect_payloads(nodes)
        return decisions

    def send_float32(self, nodes: Sequence[str]) -> list[CodecDecision]:
        """Send float32 to these nodes, as policy `none` does; return what changed."""
        decisions = []
        if self._is_adaptive and nodes:
            rows, exact = self._rows(nodes), CodecPair()
            for node, row in zip(nodes, rows.tolist(), strict=True):
                before = self._nodes.pair(row)
                if before != exact:
                    figures = self._sizes.figures(before, exact)
                    decisions.append(CodecDecision(node, CompressionReason.POLICY_NONE, figures))
                    self._checks.cancel(node)
            self._nodes.set(rows, Codecs(np.zeros_like(rows), np.zeros_like(rows)))
        self._expect_payloads(nodes)
        return decisions

    def _rows(self, nodes: Sequence[str]) -> Ints:
        rows = self._monitor.rows(nodes)
        self._nodes.grow(int(rows.max(initial=-1)) + 1)
        return rows

    def _begin(self, nodes: Sequence[str], rows: Ints) -> list[CodecDecision]:
        """Choose the first codecs of new nodes."""
        new = np.flatnonzero(~self._nodes.is_known[rows])
        self._nodes.is_known[rows] = True
        if not self._is_large or not len(new):
            return []
        first = (np.full(len(new), place) for place in self._unmeasured)
        self._nodes.set(rows[new], Codecs(*first))
        figures = self._sizes.figures(CodecPair(), self._unmeasured)
        return [CodecDecision(nodes[at], CompressionReason.RATE_NOT_MEASURED, figures) for at in new.tolist()]

    def _forecast(self, rows: Ints, present: Codecs, rates: TransferRates, outlook: Outlook) -> RoundForecast:
        """Return what the choice is made from."""
        presence = self._nodes.presence[rows]
        seconds = self._monitor.round_communication_samples(rows, _LATEST) + outlook.compute_seconds[:, None]
        in_transfers = rates.seconds(*self._monitor.expected_payloads(rows))
        noise = self._noise.expected(rows)
        most = self._strongest(rows, present, rates, noise, outlook.round)
        counts = presence >= _USUAL
        return RoundForecast(
            rest_seconds=np.maximum(seconds - in_transfers[:, None], 0.0),
            up_seconds=self._sizes.up_seconds(rates),
            down_seconds=self._sizes.down_seconds(rates, presence),
            up_is_known=~np.isnan(rates.up.rates),
            down_is_known=~np.isnan(rates.down.rates),
            noise=noise,
            most_update=most.update,
            most_parameters=most.parameters,
            counts=counts if counts.any() else np.ones_like(counts),
            overhead_seconds=outlook.overhead_seconds,
            noise_nodes=outlook.noise_nodes,
            close_share=outlook.close_share,
            rounds_left=outlook.rounds_left,
            late_counts=outlook.late_counts,
        )

    def _strongest(self, rows: Ints, present: Codecs, rates: TransferRates, noise: Floats, round_number: int) -> Codecs:
        """Return the strongest codecs that each node may use; without a measured rate, these are the present ones."""
        quiet = np.logical_and.accumulate(noise <= self._max_noise, axis=1).sum(axis=1) - 1
        stays = self._nodes.presence[rows] >= _REGULAR  # others have nothing to differ from
        last = len(PARAMETERS_CODECS) - 1
        most = Codecs(
            self._cap.limit(quiet, round_number), np.maximum(np.where(stays, last, last - 1), present.parameters)
        )
        self._nodes.limit(rows, most, round_number)
        up, down = self._settled(rates)
        is_cheap = self._nodes.holds[rows] & self._is_large
        unmeasured = np.where(is_cheap, np.maximum(present.parameters, last), present.parameters)
        return Codecs(
            np.where(up, most.update, np.minimum(most.update, present.update)),
            np.where(down, most.parameters, unmeasured),
        )

    def _settled(self, rates: TransferRates) -> tuple[Bools, Bools]:
        """Return masks of the nodes whose rates up and down are those of later transfers.

        A large model has small payloads until then. A smaller one would begin with another round of float32.
        """
        up, down = (each.is_measured & ~(each.is_provisional & self._is_large) for each in (rates.up, rates.down))
        return up, down

    @property
    def _is_large(self) -> bool:
        return bool(self._sizes.up_bytes[0] >= _LARGE_BYTES)

    def _without_late_joins(self, forecast: RoundForecast, rows: Ints, present: Codecs) -> RoundForecast:
        """Return a forecast in which no node begins with differences of parameters that would miss its round by that.

        It is sent float32 first, since the others hold something else. If that is late, it holds nothing afterwards.
        """
        if not self._nodes.others_hold or forecast.close_share == 1.0:
            return forecast
        every, now = np.arange(len(rows)), evaluate(forecast, present)
        first = forecast.rest_seconds.mean(axis=1) + forecast.up_seconds[every, present.update]
        first = first + forecast.down_seconds[:, 0]
        joins = ~self._nodes.holds[rows] & (present.parameters < len(PARAMETERS_CODECS) - 1)
        is_late = joins & forecast.counts & (first > now.seconds - forecast.overhead_seconds)
        most = np.where(is_late, np.minimum(forecast.most_parameters, _FIRST_PARAMETERS), forecast.most_parameters)
        return replace(forecast, most_parameters=most)

    def _where_measured(self, forecast: RoundForecast, nodes: Sequence[str], outlook: Outlook) -> RoundForecast:
        """Return a forecast in which codecs stay where their effect could not be told.

        That is where connections are tried, and where nothing was measured yet with the present codec and connections.
        """
        quiet = {way: np.array([self._is_quiet(node, way, outlook) for node in nodes], np.bool_) for way in DIRECTIONS}
        known_up, known_down = forecast.up_is_known & quiet["up"], forecast.down_is_known & quiet["down"]
        return replace(forecast, up_is_known=known_up, down_is_known=known_down)

    def _is_quiet(self, node: str, direction: Direction, outlook: Outlook) -> bool:
        connections = outlook.connections.of(node)
        count = connections.up if direction == "up" else connections.down
        return direction not in outlook.trials.get(node, ()) and self._checks.can_begin(node, direction, count)

    def _choose(self, quiet: RoundForecast, forecast: RoundForecast, present: Codecs) -> Codecs:
        """Return the codecs of the coming round: the present ones, unless others are clearly better.

        Where the effect could not be told, as in `quiet`, codecs change for a large gain only.
        """
        held = self._nodes.held
        if held is not None:
            update = np.minimum(UPDATE_CODECS.index(held.update), forecast.most_update)
            found = Codecs(update, np.minimum(PARAMETERS_CODECS.index(held.parameters), forecast.most_parameters))
            return found if found.differ(present).any() else present
        best, now = best_assignment(forecast, present), evaluate(forecast, present)
        if best.worth < _LARGE_GAIN * now.worth:
            best = best_assignment(quiet, present)
        if (present.update > forecast.most_update).any():
            return Codecs(np.minimum(best.codecs.update, forecast.most_update), best.codecs.parameters)
        gain = best.worth / now.worth
        is_milder = best.codecs.is_milder(present) and not present.is_milder(best.codecs)
        if self._patience.is_over(gain, is_milder=is_milder):
            return best.codecs
        rare = ~forecast.counts  # nobody waits for them, so their gain shows in no round
        if best.codecs.differ(present)[rare].any():
            return present.replaced(best.codecs, rare)
        return present

    def _changes(self, nodes: Sequence[str], rows: Ints, move: CodecMove) -> list[CodecDecision]:
        """Return the decisions of a move, and begin to check what it saves."""
        before, after = (evaluate(move.forecast, codecs) for codecs in (move.present, move.found))
        known = self._noise.measured(rows)
        decisions = []
        for at in move.changed.tolist():
            old, new = move.pair(at)
            reason = move.reason(at)
            figures = self._sizes.figures(old, new) | move.figures(at)
            figures["round_seconds"], figures["expected_round_seconds"] = before.seconds, after.seconds
            figures["noise_is"] = "measured" if known[at, new.update] or not new.update else "assumed"
            decisions.append(CodecDecision(nodes[at], reason, figures))
            self._checks.cancel(nodes[at])
            if reason is CompressionReason.TRANSFERS_LENGTHEN_ROUND and move.saving[at] > 0.0:
                self._checks.begin(nodes[at], old, new, float(move.saving[at]))
        return decisions

    def _expect_payloads(self, nodes: Sequence[str]) -> None:
        """Tell the monitor what each node will be sent round after round: the selection is about more than the next."""
        self.changed_seconds = {}
        if not self._is_idle and nodes:
            present = self._nodes.present(self._rows(nodes))
            self._expect(nodes, present.update, present.parameters)

    def begin_round(self, workers: Sequence[str]) -> None:
        """Tell the monitor what the nodes of the coming round are sent.

        A node that holds nothing is sent whole parameters, once.
        """
        if self._is_idle or not workers:
            return
        rows = self._rows(workers)
        sent = self._nodes.sent_parameters(rows)
        self._expect(workers, self._nodes.update[rows], sent)
        self._checks.begin_round(dict(zip(workers, sent.tolist(), strict=True)))

    @property
    def checked(self) -> Mapping[str, Collection[Direction]]:
        """Directions of each node in which it is checked what its codecs save."""
        return self._checks.directions

    def _expect(self, nodes: Sequence[str], update: Ints, parameters: Ints) -> None:
        """Let the expectations of these nodes follow from the payloads of these codecs."""
        up, down = self._sizes.up_bytes[update], self._sizes.down_bytes[parameters]
        changes = self._monitor.expect_payloads(self._rows(nodes), up, down)
        for at in np.flatnonzero(changes).tolist():
            self.changed_seconds[nodes[at]] = self.changed_seconds.get(nodes[at], 0.0) + float(changes[at])

    # ------------------------------------------------------------ after a round

    def observe(self, contributions: Sequence[Contribution], round_number: int) -> list[CodecDecision]:
        """Learn from a round: the noise of its updates, and what changed codecs have saved."""
        used = [each for each in contributions if each.success]
        if self._is_idle or not used:
            return []
        rows = self._rows([each.node for each in used])
        self._nodes.observe(rows, used)
        if not self._is_adaptive:
            return []
        lossy = [each for each in used if each.codec != UPDATE_CODECS[0]]
        lossy_rows = self._rows([each.node for each in lossy])
        self._noise.observe(lossy_rows, [each.codec for each in lossy], [each.noise for each in lossy])
        verdicts = (self._verdict(each, round_number) for each in used if each.measured)
        return [verdict for verdict in verdicts if verdict is not None]

    def abandoned(self) -> None:
        """Note that a round was abandoned: nobody is known to hold its parameters."""
        self._nodes.abandon()
        self._checks.begin_round({})

    def _verdict(self, contribution: Contribution, round_number: int) -> CodecDecision | None:
        """Check what a node's changed codecs save, and take them back if that is too little."""
        verdict = self._checks.observe(contribution)
        if verdict is None:
            return None
        row = int(self._rows([verdict.node])[0])
        present = self._nodes.pair(row)
        if not verdict.has_failed:
            figures: Figures = {"codecs": str(present.codecs), **verdict.figures()}
            return CodecDecision(verdict.node, CompressionReason.SAVED_AS_EXPECTED, figures)
        self._nodes.take_back(row, verdict.before, round_number)
        taken_back = self._sizes.figures(present, verdict.before) | verdict.figures()
        return CodecDecision(verdict.node, CompressionReason.SAVED_LESS_THAN_EXPECTED, taken_back)

    def diverged(self, nodes: Sequence[str], round_number: int) -> list[CodecDecision]:
        """Leave codecs with much noise, since training has diverged; return what changed."""
        if not self._is_adaptive or not nodes:
            return []
        decisions = []
        for node, row in zip(nodes, self._rows(nodes).tolist(), strict=True):
            before = self._nodes.pair(row)
            if HAS_FEEDBACK[before.update]:
                figures = self._sizes.figures(before, before._replace(update=_MILD))
                decisions.append(CodecDecision(node, CompressionReason.TRAINING_DIVERGED, figures))
                self._nodes.update[row] = _MILD
                self._checks.cancel(node)
        if decisions:
            self._cap.begin(round_number)
        return decisions
