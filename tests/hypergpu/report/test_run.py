import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hypergpu.common.errors import InvalidInput
from hypergpu.report import run as reading
from hypergpu.report.run import read_run


def test_reads_a_whole_run(run_dir: Path) -> None:
    run = read_run(run_dir)
    assert [closed.number for closed in run.rounds] == list(range(1, 26))
    assert run.node_ids == ("node_0", "node_1", "node_2", "node_3", "node_4")
    assert run.state == "completed"
    assert run.rounds_planned == 25
    assert run.notes == ()
    assert run.ended_at == pytest.approx(run.rounds[-1].ended_at, abs=0.01)


def test_a_decision_has_its_own_kind_subject_reason_and_figures(run_dir: Path) -> None:
    rollback = next(event for event in read_run(run_dir).events if event.kind == "rollback")
    assert rollback.is_decision
    assert (rollback.subject, rollback.reason, rollback.figures) == ("cluster", "objective_fell", {"objective": 0.82})


def test_rounds_begin_when_the_record_says_so(run_dir: Path) -> None:
    run = read_run(run_dir)
    started = [event.at for event in run.events if event.kind == "round_started"]
    assert [start for start, _ in run.bands] == pytest.approx(started)


def test_rounds_without_a_recorded_beginning_begin_by_their_length(make_run: Callable[..., Path]) -> None:
    run = read_run(make_run([_round(1, ended_seconds=5.0, seconds=2.0), _round(2, ended_seconds=6.0, seconds=4.0)], []))
    assert run.bands == ((0.0, 2.0), (2.0, 3.0))  # never before the end of the one before


def test_time_counts_from_the_first_round_and_what_was_long_before_is_at_the_edge(
    make_run: Callable[..., Path],
) -> None:
    events = [
        {"seconds": 1.0, "round": 1, "kind": "node_joined", "text": "a joined", "node": "a"},
        {"seconds": 101.0, "round": 1, "kind": "round_started", "text": "round 1 begins"},
        {"seconds": 121.0, "round": 1, "kind": "completed", "text": "done"},
    ]
    run = read_run(make_run([_round(1, ended_seconds=120.0, seconds=18.0)], events))
    assert [event.at for event in run.events] == [-100.0, 0.0, 20.0]
    assert run.rounds[0].ended_at == 19.0
    assert (run.began_at, run.ended_at) == (-1.0, 20.0)


def test_what_a_demo_did_to_the_network_is_an_event_of_its_round(run_dir: Path) -> None:
    summary = {"network_events": ["round 10: spike at node_2", "round 99: never", "nonsense", 7]}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    run = read_run(run_dir)
    spike = next(event for event in run.events if event.text == "spike at node_2")
    assert spike.at == pytest.approx(run.bands[9][0])
    assert not any("never" in event.text for event in run.events)


def test_nodes_are_what_both_files_say_of_them(run_dir: Path) -> None:
    (run_dir / "summary.json").write_text(json.dumps({"nodes": {"node_1": {"node_id": "node_1", "profile": "good"}}}))
    nodes = {node["node_id"]: node for node in read_run(run_dir).nodes}
    assert len(nodes) == 5
    assert (nodes["node_1"]["profile"], nodes["node_1"]["gpu"]) == ("good", "t4")


def test_a_line_that_was_cut_short_is_left_out_and_noted(run_dir: Path) -> None:
    file = run_dir / "rounds.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    run = read_run(run_dir)
    assert len(run.rounds) == 24
    assert run.notes == ("Lines of rounds.jsonl that could not be read and are left out: 1.",)


@pytest.mark.parametrize("name", ["rounds.jsonl", "events.jsonl", "nodes.json", "summary.json", "config.yaml"])
def test_any_one_file_may_be_missing_or_rubbish(run_dir: Path, name: str) -> None:
    (run_dir / name).write_bytes(b"\xff\xfe[{]]:\n\x00" * 3)
    assert read_run(run_dir).name == run_dir.name
    (run_dir / name).unlink()
    assert read_run(run_dir).name == run_dir.name


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", '"12"', "true", "null", "[1]", "1" + "0" * 400])
def test_what_is_no_finite_number_is_none(run_dir: Path, value: str) -> None:
    row = json.dumps(_round(1)).replace('"accuracy": 0.5', f'"accuracy": {value}')
    (run_dir / "rounds.jsonl").write_text(row + "\n")
    assert read_run(run_dir).rounds[0].metric is None


def test_rows_of_the_wrong_shape_are_left_out(make_run: Callable[..., Path]) -> None:
    run_dir = make_run([_round(1)], [])
    with (run_dir / "rounds.jsonl").open("a") as file:
        file.write(
            '{"round": "x"}\n[1, 2]\n7\n{"round": 2, "seconds": 1, "ended_seconds": 2, "contributors": "node"}\n'
        )
    run = read_run(run_dir)
    assert [closed.number for closed in run.rounds] == [1, 2]
    assert run.rounds[1].nodes == ()


def test_long_records_are_bounded_to_the_latest(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_ROUNDS", 10)
    run = read_run(run_dir)
    assert [closed.number for closed in run.rounds] == list(range(16, 26))
    assert "rounds.jsonl holds 25 records; the last 10 are shown." in run.notes


def test_a_resumed_round_counts_once_as_it_was_last(make_run: Callable[..., Path]) -> None:
    run = read_run(make_run([_round(1, samples=1), _round(2), _round(1, samples=2)], []))
    assert [(closed.number, closed.samples) for closed in run.rounds] == [(1, 2), (2, 100)]


def test_the_end_of_a_run_that_was_stopped_and_resumed_is_the_last(run_dir: Path) -> None:
    run = read_run(run_dir)
    rows = (run_dir / "events.jsonl").read_text().splitlines()
    half = len(rows) // 2
    stopped = json.dumps(json.loads(rows[half]) | {"kind": "stopped", "text": "the run is over"})
    (run_dir / "events.jsonl").write_text("\n".join([*rows[: half + 1], stopped, *rows[half + 1 :]]))
    assert read_run(run_dir).ended_at == run.ended_at
    (run_dir / "events.jsonl").write_text("\n".join([*rows[: half + 1], stopped]))
    over = read_run(run_dir).ending
    assert over is not None and over.at < run.ended_at


def test_an_end_that_is_not_on_record_is_unfinished(run_dir: Path) -> None:
    (run_dir / "summary.json").write_text('{"state": "training"}')
    assert read_run(run_dir).state == "unfinished"


def test_a_directory_without_a_run_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"holds no run: there is no rounds\.jsonl, events\.jsonl or summary\.json"):
        read_run(tmp_path)
    with pytest.raises(InvalidInput, match="is not a directory"):
        read_run(tmp_path / "nowhere")


def _round(number: int, **fields: object) -> dict[str, object]:
    row: dict[str, object] = {
        "round": number,
        "ended_seconds": 2.0 * number,
        "seconds": 1.5,
        "accuracy": 0.5,
        "samples": 100,
    }
    return {**row, "contributors": ["node_0"], "missing": [], **fields}


@pytest.mark.parametrize(
    "text", ["training: {rounds: 1}\ntraining: {rounds: 2}\n", "a: " + "[" * 60 + "]" * 60, "a: &a [*a]\n"]
)
def test_a_configuration_that_the_loader_would_refuse_is_left_out(text: str, run_dir: Path) -> None:
    (run_dir / "config.yaml").write_text(text)
    run = read_run(run_dir)
    assert run.config == {}
    assert run.notes == ("config.yaml is not valid YAML.",)
