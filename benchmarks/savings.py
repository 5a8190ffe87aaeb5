"""Savings of changed codecs: as expected by the decision, as measured by its check, and as they are.

Of every round with decisions that expect a saving the run is repeated with the same seeds and without them: in virtual
time the seconds that the transfers of these nodes then take are the truth. Both runs are compared over the next rounds
in which a node takes part with the same connections, and receives the payload that its codec stands for.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from statistics import fmean
from typing import Final
from unittest.mock import patch

import numpy as np

from benchmarks.compression import LINKS, TOLERANCE, scenario
from hypergpu.coordinator.core.adaptation.codecs.choice import Codecs, RoundForecast
from hypergpu.coordinator.core.adaptation.codecs.control import CodecControl, Outlook
from hypergpu.coordinator.core.adaptation.codecs.decisions import CodecDecision, CompressionReason
from hypergpu.coordinator.core.rounds.events import Contribution
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario

_ROUNDS: Final = 6
"""Rounds from a decision on in which its saving is looked for."""
_COMPARED: Final = 5
"""Rounds of these that are compared."""


class _Enough(Exception):
    """Ends a run of whose rest nothing is asked."""


@dataclass(frozen=True, slots=True)
class Undone:
    """Decisions that a run is repeated without: these nodes keep the codecs that they had before a round."""

    round: int
    nodes: frozenset[str]


@dataclass(slots=True)
class Record:
    """Decisions about codecs of one run, and the contributions to its rounds."""

    decisions: list[tuple[int, CodecDecision]] = field(default_factory=list)
    rounds: dict[int, dict[str, Contribution]] = field(default_factory=dict)
    differed: dict[int, set[str]] = field(default_factory=dict)
    """Nodes of each round that held what a difference of the parameters is about."""


class _Recorded(CodecControl):
    """Control of codecs that records, and leaves out some decisions."""

    found = Record()
    undone: Undone | None = None
    _coming: tuple[int, Sequence[str]] = (0, ())

    def plan(self, nodes: Sequence[str], outlook: Outlook) -> list[CodecDecision]:
        if self.undone is not None and outlook.round >= self.undone.round + _ROUNDS:
            raise _Enough
        self._coming = outlook.round, nodes
        decisions = super().plan(nodes, outlook)
        self.found.decisions += [(outlook.round, each) for each in decisions]
        return decisions

    def _choose(self, quiet: RoundForecast, forecast: RoundForecast, present: Codecs) -> Codecs:
        chosen = super()._choose(quiet, forecast, present)
        number, nodes = self._coming
        if self.undone is None or number < self.undone.round:
            return chosen
        others = present.replaced(chosen, np.array([node not in self.undone.nodes for node in nodes]))
        return others if others.differ(present).any() else present

    def begin_round(self, workers: Sequence[str]) -> None:
        holds = self._nodes.holds[self._rows(workers)].tolist()
        self.found.differed[self._coming[0]] = {node for node, held in zip(workers, holds, strict=True) if held}
        super().begin_round(workers)

    def observe(self, contributions: Sequence[Contribution], round_number: int) -> list[CodecDecision]:
        self.found.rounds[round_number] = {each.node: each for each in contributions if each.success and each.measured}
        verdicts = super().observe(contributions, round_number)
        self.found.decisions += [(round_number, each) for each in verdicts]
        return verdicts


def record(case: Scenario, without: Undone | None = None) -> Record:
    """Return the record of a run; without some of its decisions, it ends a few rounds later."""
    found = Record()
    recorded = type("Recorded", (_Recorded,), {"found": found, "undone": without})
    with patch("hypergpu.coordinator.core.adaptation.orchestrator.CodecControl", recorded), suppress(_Enough):
        simulate(case)
    return found


@dataclass(frozen=True, slots=True)
class Saving:
    """Saving of one decision in seconds a round."""

    round: int
    decision: CodecDecision
    expected: float
    measured: float | None
    """By the verdict of the decision's check; None without one."""
    true: float | None
    """By the same run without the decision; None if no rounds of both are comparable."""


def savings(case: Scenario) -> Iterator[Saving]:
    """Yield the decisions of a run that expect a saving."""
    found = record(case)
    expecting = [
        (number, each)
        for number, each in found.decisions
        if "expected_saving_seconds" in each.figures and "measured_saving_seconds" not in each.figures
    ]
    without = {
        number: record(case, Undone(number, frozenset(each.node for at, each in expecting if at == number)))
        for number in {number for number, _ in expecting}
    }
    for number, decision in expecting:
        expected, true = (
            float(decision.figures["expected_saving_seconds"]),
            _true(found, without[number], number, decision),
        )
        yield Saving(number, decision, expected, _measured(found, number, decision), true)


def _measured(found: Record, number: int, decision: CodecDecision) -> float | None:
    """Return the measured saving of the first verdict after a decision, if no other decision is before it."""
    later = (
        each for at, each in found.decisions if each.node == decision.node and at >= number and each is not decision
    )
    verdict = next(later, None)
    measured = None if verdict is None else verdict.figures.get("measured_saving_seconds")
    return None if measured is None else float(measured)


def _true(found: Record, without: Record, number: int, decision: CodecDecision) -> float | None:
    after, before = ((str(decision.figures[key])).split("/") for key in ("to", "from"))
    seconds = []
    for at in range(number, number + _ROUNDS):
        with_it, without_it = (each.rounds.get(at, {}).get(decision.node) for each in (found, without))
        if with_it is None or without_it is None or with_it.connections != without_it.connections:
            continue
        holds = [decision.node in run.differed[at] for run in (found, without)]
        if decision.reason is CompressionReason.TRANSFERS_KEEP_OUT:
            is_usual = not any(holds)
        else:
            pairs = ((with_it, after), (without_it, before))
            is_usual = all(_is_usual(*pair, differs=held) for pair, held in zip(pairs, holds, strict=True))
        if is_usual:
            seconds.append(_changed_seconds(without_it, before, after) - _changed_seconds(with_it, before, after))
    return fmean(seconds[:_COMPARED]) if seconds else None


def _is_usual(each: Contribution, codecs: Sequence[str], *, differs: bool) -> bool:
    return [each.codec, each.parameters_codec] == list(codecs) and (differs or each.parameters_codec != "int8")


def _changed_seconds(each: Contribution, before: Sequence[str], after: Sequence[str]) -> float:
    """Return the time of the directions whose codec changes."""
    up, down = each.upload_seconds, each.waiting_seconds - each.upload_seconds
    return (up if before[0] != after[0] else 0.0) + (down if before[1] != after[1] else 0.0)


def _is_near(value: float, other: float) -> bool:
    return abs(value - other) <= TOLERANCE * abs(other)


def main() -> None:
    """Print the decisions, and how many of the expected savings are true."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--links", nargs="+", choices=LINKS, default=list(LINKS))
    parser.add_argument("--megabytes", nargs="+", type=float, default=[44.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--each", action="store_true", help="print each decision")
    arguments = parser.parse_args()
    print(
        f"within 15 %:         {'expected ~ measured':>20} {'expected ~ true':>16} {'measured ~ true':>16}  decisions"
    )
    for links, megabytes in product(arguments.links, arguments.megabytes):
        cases = (scenario(LINKS[links], megabytes, "adaptive", seed) for seed in range(arguments.seeds))
        found = [each for case in cases for each in savings(case)]
        if arguments.each:
            for saving in found:
                _print_saving(saving)
        smaller = [each for each in found if each.decision.reason is CompressionReason.TRANSFERS_LENGTHEN_ROUND]
        others = [each for each in found if each not in smaller]
        for name, part in {"to fewer bytes": smaller, "others": others}.items():
            print(f"{links:6} {megabytes:3g} MB {name:>14} {_summary(part)}  {len(part)}", flush=True)


def _print_saving(saving: Saving) -> None:
    values = (saving.expected, saving.measured, saving.true)
    told = " ".join(f"{'-':>9}" if value is None else f"{value:9.3f}" for value in values)
    decision = saving.decision
    change = f"{decision.figures['from']} to {decision.figures['to']}, {decision.reason}"
    print(f"  {saving.round:3} {decision.node:5} {told}  {change}", flush=True)


def _summary(found: Sequence[Saving]) -> str:
    pairs = (
        [(each.expected, each.measured) for each in found if each.measured is not None],
        [(each.expected, each.true) for each in found if each.true is not None],
        [(each.measured, each.true) for each in found if each.true is not None and each.measured is not None],
    )
    texts = (f"{sum(_is_near(*pair) for pair in each)} of {len(each)}" for each in pairs)
    return " ".join(f"{text:>{width}}" for text, width in zip(texts, (20, 16, 16), strict=True))


if __name__ == "__main__":
    main()
