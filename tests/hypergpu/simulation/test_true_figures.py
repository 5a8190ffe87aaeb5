"""The figures behind decisions about work, deadlines and the model, against the records of what the run then did."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario
from tests.hypergpu.simulation.test_true_reasons import event, nodes

RATE = 0.02
SCENARIOS: dict[str, dict[str, Any]] = {
    "slow link": {"nodes": [nodes("near", 5), nodes("far", 2, "poor")], "convergence": {"model_bytes": 400_000}},
    "cards": {"nodes": [nodes("n", 3), nodes("slow", 2, speed=0.3)], "policy": "aggressive"},
    "latency spike": {
        "nodes": [nodes("n", 5)],
        "events": [event("latency_spike", 2.0, 6.0, "n_4", added_ms=400.0)],
    },
    "jitter": {"nodes": [nodes("calm", 4), nodes("jittery", 3, "unstable")]},
}
RUNS = {f"{name} {seed}": tree | {"seed": seed} for seed in range(1, 8) for name, tree in SCENARIOS.items()}


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision as it is recorded."""

    round: int
    kind: str
    subject: str
    reason: str
    figures: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Records:
    """What a run decided, and what its rounds were like."""

    decisions: list[Decided]
    rounds: dict[int, dict[str, Any]]

    def of(self, kind: str, *reasons: str) -> Iterator[Decided]:
        """Return the decisions of a kind, for these reasons or for any."""
        return (each for each in self.decisions if each.kind == kind and (not reasons or each.reason in reasons))

    def before(self, number: int, count: int = 16) -> list[dict[str, Any]]:
        """Return the latest rounds before one, newest first."""
        return [self.rounds[at] for at in range(number - 1, max(0, number - 1 - count), -1) if at in self.rounds]


@cache
def run(name: str) -> Records:
    tree: dict[str, Any] = {"learning": "model", "loss_model": "transport", "rounds": 40, "policy": "reactive"}
    tree |= {"name": name, "compute": {"seconds_per_step": 0.002, "seconds_per_sample": 0.00002}}
    tree |= RUNS[name]
    tree["config"] = {
        "server": {"heartbeat_seconds": 0.5},
        "training": {"learning_rate": RATE},
        "batch": {"max_batch_size": 128},  # links stay a large part of a round
    }
    return records(Scenario.model_validate(tree))


def records(scenario: Scenario) -> Records:
    """Run a scenario and return its records."""
    with TemporaryDirectory() as place:
        simulate(scenario, Path(place))
        events = [json.loads(line) for line in (Path(place) / "events.jsonl").read_text().splitlines()]
        rounds = [json.loads(line) for line in (Path(place) / "rounds.jsonl").read_text().splitlines()]
    decisions = [
        Decided(each["round"], each["text"].split()[0], each["subject"], each["reason"], each["figures"])
        for each in events
        if each["kind"] == "decision"
    ]
    return Records(decisions, {each["round"]: each for each in rounds})


# ---------------------------------------------------------------- work


def wrong_batches(records: Records) -> Iterator[str]:
    for each in records.of("batch_size"):
        sizes = [
            row["batch_sizes"][each.subject] for row in records.before(each.round) if each.subject in row["batch_sizes"]
        ]
        now = records.rounds[each.round]["batch_sizes"].get(each.subject)
        if sizes and each.figures["from"] not in sizes[:4]:  # that of a probe may be smaller
            yield f"{each}: its batch was {sizes[0]}"
        if each.reason != "rolled_back" and now is not None and each.figures["to"] != now:
            yield f"{each}: its batch became {now}"
        more = each.figures["to"] > each.figures["from"]
        if {"fills_idle_time": False, "shortens_round": True}.get(each.reason) is more:
            yield f"{each}: the wrong direction"
        yield from wrong_communication(records, each, [each.subject])


def wrong_steps(records: Records) -> Iterator[str]:
    for each in records.of("local_steps"):
        before, now = records.before(each.round)[0]["local_steps"], records.rounds[each.round]["local_steps"]
        if (each.figures["from"], each.figures["to"]) != (before, now):
            yield f"{each}: they went from {before} to {now}"
        if (each.reason == "amortises_communication") != (now > before):
            yield f"{each}: the wrong direction"
        yield from wrong_communication(records, each, None)


def wrong_communication(records: Records, each: Decided, of: list[str] | None) -> Iterator[str]:
    """Compare a communication with those of the latest rounds, by the factor that round trips may change it by."""
    told = each.figures.get("communication_seconds")
    waits = [
        seconds
        for row in records.before(each.round)
        for node, seconds in row["waiting_seconds"].items()
        if node in row["contributors"] and (of is None or node in of)
    ]
    late = any(each.subject in row["missing"] for row in records.before(each.round)) or of is None
    if told is None or not waits:
        return
    if not 0.45 * min(waits) <= told <= (math.inf if late else 2.1 * max(waits)):
        yield f"{each}: communication took {min(waits):.3f} to {max(waits):.3f} s"


# ---------------------------------------------------------------- deadlines


def needs(records: Records, number: int, count: int = 16) -> list[float]:
    """Return the times from assignment to update in the latest rounds."""
    return [
        row["waiting_seconds"][node] + row["compute_seconds"][node]
        for row in records.before(number, count)
        for node in row["contributors"]
    ]


def more_work(records: Records, number: int) -> float:
    """Return the factor by which the work of a node grew at most, beside the round before in which it took part."""
    row, factor = records.rounds[number], 1.0
    for node, batch in row["batch_sizes"].items():
        last = next((each for each in records.before(number) if node in each["batch_sizes"]), None)
        if last is not None:
            factor = max(factor, row["local_steps"] * batch / (last["local_steps"] * last["batch_sizes"][node]))
    return factor


def wrong_deadlines(records: Records) -> Iterator[str]:
    for each in records.of("deadline", "measured", "newcomers"):
        took = needs(records, each.round)
        median, seconds = each.figures["median_seconds"], each.figures["seconds"]
        if not min(took) <= median <= 3.0 * max(took) * more_work(records, each.round):
            yield f"{each}: rounds took {min(took):.3f} to {max(took):.3f} s"
        if seconds < median and seconds < max(took):
            yield f"{each}: it is below what half of the nodes need"
    for each in records.of("deadline", "after_quorum"):
        row = records.rounds[each.round]
        quorum = sorted(row["waiting_seconds"][n] + row["compute_seconds"][n] for n in row["contributors"])
        at = quorum[min(each.figures["contributed"], len(quorum)) - 1]
        contributed, measured = each.figures["contributed"], each.figures["measured_seconds"]
        # What the missing nodes can be worth. How many of the round's nodes were probes is not told.
        factors = [awaited / contributed for awaited in range(contributed, len(row["batch_sizes"]) + 1)]
        expected = [max(factor * at, at + 0.05, measured) for factor in factors]
        if min(abs(each.figures["seconds"] - seconds) for seconds in expected) > 0.2 * each.figures["seconds"]:
            yield f"{each}: its quorum took {at:.3f} s"
        took = needs(records, each.round, each.round) if measured else [0.0]  # a node may have been away for long
        if not min(took) <= measured <= 3.0 * max(took) * more_work(records, each.round):
            yield f"{each}: measured nodes took {min(took):.3f} to {max(took):.3f} s"


def wrong_closings(records: Records) -> Iterator[str]:
    for each in records.of("deadline", "waiting_costs_more", "waiting_pays"):
        figures, row = each.figures, records.rounds[each.round]
        if (figures["enough"] < figures["nodes"]) != (each.reason == "waiting_costs_more"):
            yield f"{each}: the wrong reason"
        if not 0 < figures["seconds"] <= figures["seconds_for_all"]:
            yield f"{each}: waiting for all is no longer"
        if row["reason"] == "enough_contributed" and len(row["contributors"]) < figures["enough"]:
            yield f"{each}: {len(row['contributors'])} were enough"
    for number, row in records.rounds.items():
        told = f"round {number}, {row['reason']}"
        if row["reason"] == "enough_contributed" and not row["missing"]:
            yield f"{told}: nobody was missing"
        if row["reason"] == "enough_contributed" and len(row["contributors"]) < 0.6 * len(row["batch_sizes"]):
            yield f"{told}: {row['contributors']} of {[*row['batch_sizes']]}"


# ---------------------------------------------------------------- the model


def wrong_rates(records: Records) -> Iterator[str]:
    for each in records.of("learning_rate"):
        before, after = (records.rounds.get(each.round + step, {}).get("learning_rate") for step in (0, 1))
        told = each.figures["from_factor"], each.figures["to_factor"]
        if before is not None and not math.isclose(before, RATE * told[0], rel_tol=1e-6):
            yield f"{each}: the rate was {before}"
        if after is not None and not math.isclose(after, RATE * told[1], rel_tol=1e-6):
            yield f"{each}: the rate became {after}"
        least = (told[1] / told[0]) ** 0.25 * each.figures.get("usual_decrease", 0.0)
        if each.reason == "trial_won" and each.figures["decrease"] < least:
            yield f"{each}: it did not win"
        if (each.reason == "trial_won") != (told[1] > told[0]):
            yield f"{each}: the wrong direction"


def wrong_judgements(records: Records) -> Iterator[str]:
    losses = {number: row["loss"] for number, row in records.rounds.items() if row["loss"] is not None}
    candidates = {0: records.rounds[1]["train_loss"], **losses}
    for each in records.of("rollback", "loss_rose"):
        best = min((candidates[number], number) for number in candidates if number < each.round)
        if (each.figures["best_loss"], each.figures["best_round"]) != pytest.approx(best, rel=1e-6):
            yield f"{each}: the best was {best}"
        if not each.figures["loss"] > 1.5 * best[0]:
            yield f"{each}: it did not rise by half"
    for each in records.of("phase", "loss_stalled", "loss_moves_again"):
        logs = np.log([losses[number] for number in sorted(losses) if number <= each.round][-8:])
        first, second = np.triu_indices(len(logs), 1)
        slope = -float(np.median((logs[second] - logs[first]) / (second - first)))
        if not math.isclose(slope, each.figures["improvement_per_round"], rel_tol=1e-6, abs_tol=1e-12):
            yield f"{each}: it improved by {slope} per round"


def early(records: Records) -> int:
    """Return the number of rounds that were closed early."""
    return sum(row["reason"] == "enough_contributed" for row in records.rounds.values())


CHECKS: dict[str, tuple[Callable[[Records], Iterator[str]], Callable[[Records], int], int]] = {
    "batch size": (wrong_batches, lambda r: len([*r.of("batch_size")]), 40),
    "local steps": (wrong_steps, lambda r: len([*r.of("local_steps")]), 40),
    "deadline": (wrong_deadlines, lambda r: len([*r.of("deadline", "measured", "newcomers", "after_quorum")]), 40),
    "closing": (
        wrong_closings,
        lambda r: len([*r.of("deadline", "waiting_costs_more", "waiting_pays")]) + early(r),
        40,
    ),
    "learning rate": (wrong_rates, lambda r: len([*r.of("learning_rate")]), 40),
    "judgement": (wrong_judgements, lambda r: len([*r.of("phase", "loss_stalled", "loss_moves_again")]), 10),
}


@pytest.mark.parametrize("kind", CHECKS)
@pytest.mark.parametrize("name", RUNS)
def test_every_figure_is_what_the_run_did(name: str, kind: str) -> None:
    assert list(CHECKS[kind][0](run(name))) == []


def test_enough_decisions_of_every_kind_are_checked() -> None:
    checked = {kind: sum(count(run(name)) for name in RUNS) for kind, (_, count, _) in CHECKS.items()}
    assert all(checked[kind] >= least for kind, (_, _, least) in CHECKS.items()), checked


@pytest.mark.parametrize("rate", [3.0, 5.0, 7.0, 10.0])
def test_rollbacks_tell_the_loss_that_rose_and_lower_the_rate_until_it_falls(rate: float) -> None:
    group = {"id": "n", "count": 4, "gpu": "T4", "profile": "perfect"}
    config = {"training": {"learning_rate": rate, "local_steps": 1}}
    tree = {"name": "diverging", "task": "digits", "rounds": 14, "nodes": [group], "config": config}
    found = records(Scenario.model_validate(tree))
    assert 3 <= len([*found.of("rollback", "loss_rose")]) <= 8
    assert list(wrong_judgements(found)) == []
    assert found.rounds[14]["loss"] < 1.5, "that of the first model is 2.9; the first step made it more than 400"
