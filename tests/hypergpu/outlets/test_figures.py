"""What outlets read of a run's files."""

import json
from contextlib import closing
from pathlib import Path

import pytest

from hypergpu.outlets.figures import MOST_NODES, figures_of, round_of
from hypergpu.outlets.run_files import AppendedLines, RunFiles, last_round, settings_of
from tests.hypergpu.outlets.runs import Run, event_row, round_row


def test_the_numbers_of_a_round_are_figures_and_those_of_nodes_are_below_theirs() -> None:
    row = round_row(2, contributors=["n1"], missing=["n2", "n3"], batch_sizes={"n1": 8}, bytes_up={"n1": 3, "n2": 4})
    assert figures_of({**row, "flag": True, "undefined": float("nan")}) == {
        "ended_seconds": 20.0,
        "accuracy": 0.52,
        "loss": 0.5,
        "metrics/f1": 0.25,
        "contributors": 1,
        "missing": 2,
        "batch_sizes/n1": 8,
        "bytes_up": 7,
        "bytes_up/n1": 3,
        "bytes_up/n2": 4,
    }


def test_of_many_nodes_only_the_spread_is_shown() -> None:
    sizes = {f"n{number}": number for number in range(MOST_NODES + 1)}
    assert figures_of({"batch_sizes": sizes}) == {
        "batch_sizes/least": 0,
        "batch_sizes/median": 16,
        "batch_sizes/largest": 32,
    }


@pytest.mark.parametrize(
    "row", [{}, {"round": True}, {"round": 0}, {"round": 1}, {"round": "1"}, {"round": 1, "ended_seconds": "soon"}]
)
def test_a_line_that_somebody_edited_is_no_round(row: dict[str, object]) -> None:
    assert round_of(row) is None


def test_a_line_is_read_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    lines = AppendedLines(path)
    assert list(lines) == []
    path.write_text('{"a": 1}\nnonsense\n{"a"')
    assert list(lines) == [{"a": 1}]
    with path.open("a") as file:
        file.write(": 2}\n")
    assert list(lines) == [{"a": 2}]
    lines.close()


def test_a_round_has_the_events_since_the_one_before(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.append("events.jsonl", [event_row(1, 3, "joined"), event_row(1, 4, "opened", "round_started")])
    run.append("events.jsonl", [event_row(2, 15, "quarantined"), event_row(3, 25, "escaped\x1b[31m")])
    run.append("rounds.jsonl", [round_row(1), round_row(2)])
    files = RunFiles(tmp_path)
    assert [(each.number, each.notes) for each in files.rounds()] == [(1, ["joined"]), (2, ["quarantined"])]
    assert list(files.rounds()) == []
    run.append("rounds.jsonl", [round_row(3)])
    assert [(each.number, each.notes) for each in files.rounds()] == [(3, ["escaped\\x1b[31m"])]
    files.close()


def test_rounds_that_are_held_are_left_out_with_their_events(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.close_rounds(1, 3)
    with closing(RunFiles(tmp_path, after=2)) as files:
        (found,) = files.rounds()
    assert found.number == 3
    assert [note.partition(" by")[0] for note in found.notes] == ["decided in 2", "decided in 3"]


def test_a_flood_of_events_is_cut(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.append("events.jsonl", [event_row(1, 1, f"number {each}") for each in range(500)])
    run.append("rounds.jsonl", [round_row(1)])
    with closing(RunFiles(tmp_path)) as files:
        (found,) = files.rounds()
    assert found.notes[99:] == ["number 99", "400 more are in events.jsonl"]


def test_damaged_files_are_read_as_far_as_they_can_be(tmp_path: Path) -> None:
    for name in ("config.yaml", "rounds.jsonl", "events.jsonl", "summary.json"):
        (tmp_path / name).write_text("{{{\x00\n[1]\n")
    assert settings_of(tmp_path) == {}
    assert last_round(tmp_path) == 0
    with closing(RunFiles(tmp_path)) as files:
        ending = files.ending()
    assert (ending.state, ending.figures, ending.notes) == ("", {}, [])


def test_the_end_has_the_figures_of_the_summary(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.close_rounds(1, 4)
    run.end()
    with closing(RunFiles(tmp_path)) as files:
        assert len(list(files.rounds())) == 4
        ending = files.ending()
    assert (ending.state, ending.reason, ending.notes) == ("completed", "rounds_done", ["the run is over"])
    assert ending.figures == {"rounds": 4, "final_accuracy": 0.54}
    assert json.loads((tmp_path / "summary.json").read_text())["state"] == "completed"
    assert settings_of(tmp_path)["training.task"] == "digits"
