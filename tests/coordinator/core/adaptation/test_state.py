"""State of the adaptation in a checkpoint: what was learned survives a restart."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from hypergpu.coordinator.core.adaptation import Phase
from hypergpu.coordinator.core.adaptation.rate_search import RateReason, RateSearch
from hypergpu.coordinator.core.adaptation.state import VERSION, AdaptationState
from hypergpu.coordinator.core.decisions import DecisionKind
from hypergpu.coordinator.core.rounds.events import Contribution
from tests.coordinator.core.adaptation.test_orchestrator import NODES, Run, uniform

READER = TypeAdapter(AdaptationState)


def through_json(state: AdaptationState) -> AdaptationState:
    return READER.validate_python(json.loads(json.dumps(asdict(state), allow_nan=False)))


def resumed(run: Run, policy: str = "reactive") -> Run:
    """The same run in a new process."""
    again = Run(run.communication, policy)
    again.adaptation.restore(through_json(run.adaptation.state()), run.round_num + 1)
    again.round_num, again.loss = run.round_num, run.loss
    return again


def annealed() -> Run:
    """A run that has lowered its rate, because no model was better for five rounds."""
    return Run(uniform).rounds(3).rounds(1, learn=1.05).rounds(4, learn=1.0)


def test_what_is_restored_is_what_was_saved() -> None:
    state = annealed().adaptation.state()
    again = Run(uniform)
    again.adaptation.restore(through_json(state), 9)
    assert again.adaptation.state() == replace(state, held_until=10)


def test_a_resumed_run_keeps_its_optimizer_rate_batches_and_steps() -> None:
    run = annealed()
    before = run.rounds(1, learn=1.0).plans[-1]
    assert (before["local_optimizer"], before["learning_rate"]) == ("adamw", 0.0015)
    again = resumed(run).rounds(1)
    plan = again.plans[0]
    assert {key: plan[key] for key in ("local_optimizer", "learning_rate", "local_steps", "batch_sizes", "phase")} == {
        key: before[key] for key in ("local_optimizer", "learning_rate", "local_steps", "batch_sizes", "phase")
    }
    assert [(each.reason, each.figures["to"]) for each in again.of(DecisionKind.PHASE)] == [
        ("resumed", Phase.CONVERGENCE)
    ]
    assert not again.of(DecisionKind.OPTIMIZER), "the run has begun with AdamW already"


def test_a_resumed_run_counts_on_towards_a_lower_rate() -> None:
    again = resumed(annealed().rounds(2, learn=1.0)).rounds(2, learn=1.0)
    assert not again.of(DecisionKind.LEARNING_RATE)
    (change,) = again.rounds(1, learn=1.0).of(DecisionKind.LEARNING_RATE)
    assert (change.reason, change.figures) == (RateReason.LOSS_STALLED, {"from_factor": 1.5, "to_factor": 0.75})


def trial(node: str, after: float) -> Contribution:
    return Contribution(node, True, 8, 8, 0.1, 0.1, 1.0, loss_before=1.0, loss_after=after)


def test_a_rate_that_was_ruled_out_is_not_tried_again_after_a_restart() -> None:
    search = RateSearch(4.0, 64.0)
    _, rates = search.plan(NODES)
    assert 4.0 in rates.values()
    search.observe([trial(node, 1.5 if rates.get(node) == 4.0 else 0.9) for node in NODES])
    assert search.candidate == 2.0, "half of the rate that failed"
    again = RateSearch(4.0, 64.0)
    again.restore(search.state())
    assert (again.candidate, again.factor) == (2.0, 1.0)
    assert again.state() == search.state()
    assert again.plan(NODES) == search.plan(NODES)


def test_with_another_policy_the_search_starts_anew_from_the_rate_in_force() -> None:
    again = resumed(annealed(), "conservative")
    search = again.adaptation.state().control.search
    assert (search.rates.factor, search.rates.step, search.base.name) == (1.5, 2.0, "adamw")


@pytest.mark.parametrize(("before", "now"), [("none", "reactive"), ("reactive", "none")])
def test_a_run_without_adaptation_has_nothing_to_restore(before: str, now: str) -> None:
    run = Run(uniform, before).rounds(4)
    fresh = Run(uniform, now).adaptation.state()
    assert resumed(run, now).adaptation.state() == fresh


def test_batches_change_again_once_the_links_are_measured() -> None:
    run = Run(uniform).rounds(2)
    again = resumed(run).rounds(3)
    changed = [each.round for each in again.of(DecisionKind.LOCAL_STEPS)]
    assert changed, "the plan of local steps goes on"
    assert min(changed) == run.round_num + 2


def test_a_completed_run_that_gets_more_rounds_adapts_again() -> None:
    run = annealed()
    run.adaptation.shutdown()
    assert resumed(run).adaptation.phase is Phase.ADAPTIVE


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("version", VERSION + 1),
        ("policy", "reckless"),
        ("phase", "asleep"),
        ("rounds_begun", -1),
        ("held_until", -2),
        ("control.search.base.name", "lion"),
        ("control.search.base.learning_rate", 0.0),
        ("control.search.rates.factor", -1.0),
        ("control.search.rates.slower", 0.0),
        ("control.search.rates.turn", 1 << 60),
        ("control.progress.held_out.since_best", -1),
        ("control.momentum_factor", "half"),
        ("control.snapshot.local_steps", 0),
        ("batches.local_steps", 0),
        ("batches.sizes", {"a": 0}),
        ("loss_logs", 3),
    ],
)
def test_a_figure_that_cannot_be_is_refused(path: str, value: object) -> None:
    document: dict[str, Any] = json.loads(json.dumps(asdict(annealed().adaptation.state())))
    *above, last = path.split(".")
    part = document
    for name in above:
        part = part[name]
    part[last] = value
    with pytest.raises(ValidationError) as caught:
        READER.validate_python(document)
    assert ".".join(map(str, caught.value.errors()[0]["loc"])) in path
