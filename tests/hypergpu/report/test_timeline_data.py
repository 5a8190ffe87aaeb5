import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from hypergpu.report import timeline_data
from hypergpu.report.model import Event, NodeRound, Round, Run
from hypergpu.report.run import read_run


@pytest.fixture
def run(run_dir: Path) -> Run:
    return read_run(run_dir)


def test_quality_is_a_stretch_for_each_class(run: Run) -> None:
    lane = timeline_data.quality_lanes(run, run.node_ids)["node_2"]
    assert [interval.label for interval in lane] == ["fair", "poor", "good"]
    assert all(a.end == b.start for a, b in itertools.pairwise(lane))
    assert lane[-1].end == run.ended_at


def test_a_lost_node_is_offline_until_it_is_back() -> None:
    events = (
        _quality(1.0, "a", "good"),
        Event(4.0, 2, "node_lost", "a lost", subject="a"),
        Event(7.0, 3, "node_joined", "a joined", subject="a"),
        Event(10.0, 4, "completed", "done"),
    )
    lane = timeline_data.quality_lanes(Run("r", {}, events=events), ["a"])["a"]
    assert [(s.start, s.end, s.label) for s in lane] == [(1.0, 4.0, "good"), (4.0, 7.0, "offline"), (7.0, 10.0, "good")]


def test_participation_tells_quarantine_from_being_left_out(run: Run) -> None:
    lanes = timeline_data.participation_lanes(run, run.node_ids)
    states = {name: [interval.state for interval in lane] for name, lane in lanes.items()}
    assert states["node_0"] == ["p-contributed"] * 25
    assert states["node_4"][10:14] == ["p-missing"] * 3 + ["p-quarantined"]
    assert "p-left-out" in states["node_3"]
    assert "p-quarantined" not in states["node_3"]


def test_a_node_that_is_away_or_not_yet_there_has_no_stretch() -> None:
    rounds = tuple(Round(n, float(n), 1.0, nodes=(NodeRound("a", True),)) for n in range(1, 6))
    events = (
        Event(1.5, 2, "node_joined", "b joined", subject="b"),
        Event(3.0, 4, "node_left", "b left", subject="b"),
        Event(5.0, 5, "completed", "done"),
    )
    lane = timeline_data.participation_lanes(Run("r", {}, rounds, events), ["a", "b"])["b"]
    assert [(s.start, s.state) for s in lane] == [(1.0, "p-left-out"), (2.0, "p-left-out")]


def test_a_batch_size_that_stays_is_one_stretch(run: Run) -> None:
    lane = timeline_data.batch_lanes(run, run.node_ids)["node_0"]
    assert len(lane) == 1
    assert lane[0].start == run.bands[0][0]
    assert lane[0].end == run.bands[-1][1]


def test_the_parts_of_a_round_add_up_to_it(run: Run) -> None:
    for (_, parts), (start, end) in zip(timeline_data.round_parts(run), run.bands, strict=True):
        assert sum(parts.values()) == pytest.approx(end - start, abs=2e-3)
        assert min(parts.values()) >= 0


def test_marks_lead_to_their_rows(run: Run) -> None:
    number = next(number for number, event in enumerate(run.events) if event.kind == "rollback")
    marks = timeline_data.event_marks(run, {number: "here"})
    assert [mark.target for mark in marks["alerts"]] == ["here"]
    assert "latency spike" in marks["network"][0].tooltip


def test_an_unknown_kind_of_event_is_still_shown() -> None:
    assert list(timeline_data.event_marks(Run("r", {}, events=(Event(1.0, 1, "eclipse", "dark"),)), {})) == ["other"]


def test_the_most_eventful_nodes_are_those_that_decisions_were_about(make_run: Callable[..., Path]) -> None:
    events = tuple(_quality(float(n), f"node_{n % 3 + 5}", "good") for n in range(9))
    rounds = (Round(1, 1.0, 1.0, nodes=tuple(NodeRound(f"node_{n}", True) for n in range(20))),)
    assert timeline_data.most_eventful(Run("r", {}, rounds, events), 3) == ["node_5", "node_6", "node_7"]


def test_counts_of_classes_are_those_on_record() -> None:
    figures: Mapping[str, int | str] = dict.fromkeys(timeline_data.QUALITIES, 7) | {"else": "x"}
    events = (
        _quality(1.0, "a", "good"),
        Event(2.0, 3, "quality", "quality cluster", True, "cluster", "class_changed", figures),
    )
    run = Run("r", {}, events=events)
    assert timeline_data.class_counts(run) == [(2.0, {q: figures[q] for q in timeline_data.QUALITIES})]
    assert "cluster" not in timeline_data.quality_states(run)


def test_leaving_when_the_run_is_over_is_not_being_offline() -> None:
    events = (
        _quality(1.0, "a", "good"),
        Event(5.0, 2, "completed", "done"),
        Event(5.1, 2, "node_left", "a left", subject="a"),
    )
    assert [state for _, state, _ in timeline_data.quality_states(Run("r", {}, events=events))["a"]] == ["good"]


@pytest.mark.parametrize(("ratio", "level"), [(1, 0), (2, 2), (4, 3), (8, 5)])
def test_shades_follow_the_logarithm(ratio: float, level: int) -> None:
    assert timeline_data.shade(ratio, 8.0) == level


def _quality(at: float, node: str, quality: str) -> Event:
    return Event(at, 1, "quality", f"quality {node}", True, node, "class_changed", {"quality": quality})
