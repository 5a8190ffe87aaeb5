"""Comparisons, from outcomes that are given, and from runs by the model of convergence."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from hypergpu.cli.app import app
from hypergpu.cli.compare import _details
from hypergpu.cli.simulate import in_words
from hypergpu.common.errors import InvalidInput, UnknownName
from hypergpu.simulation.compare import compare
from hypergpu.simulation.comparison import Result, against
from hypergpu.simulation.run import Outcome
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.thresholds import parse_threshold
from hypergpu.simulation.variants import Variant

OUTCOME = Outcome(
    "s", "none", 0, "completed", "rounds_done", 5, 130.0, 0.9, 0.1, 0.9, 0.8, 50.0, 10, 10, [], trained_seconds=100.0
)


def result(policy: str, times: list[float | None], accuracy: float = 0.9) -> Result:
    outcomes = [replace(OUTCOME, time_to_target_seconds=time, final_metric=accuracy) for time in times]
    return Result(Variant(policy), outcomes)


def test_a_candidate_is_compared_with_each_baseline() -> None:
    baselines = [result("none", [10.0, 40.0]), result("static", [5.0, 5.0])]
    candidate = against(baselines, result("reactive", [5.0, 10.0], accuracy=0.91))
    assert candidate.match.speedup.mean == pytest.approx(8**0.5)
    ((other, found),) = candidate.against
    assert other is baselines[1]
    assert found.speedup.mean == pytest.approx(0.5**0.5)
    record = candidate.to_dict()
    assert record["speedup"]["mean"] == pytest.approx(8**0.5)
    assert record["against"]["static"]["speedup"]["mean"] == pytest.approx(0.5**0.5)
    assert record["time_to_target_seconds"]["mean"] == pytest.approx(50**0.5)


def test_a_run_that_never_began_has_no_time() -> None:
    stuck = replace(OUTCOME, time_to_target_seconds=None, trained_seconds=0.0, given_up="waiting for nodes to join")
    baseline = Result(Variant("none"), [stuck])
    candidate = against([baseline], result("reactive", [50.0]))
    assert candidate.match.speedup.mean is None
    assert candidate.to_dict()["time_to_target_seconds"] == {"mean": 50.0, "ci_low": None, "ci_high": None}
    assert baseline.to_dict()["given_up"] == ["waiting for nodes to join"]


def test_pairs_without_both_times_are_named() -> None:
    baselines = [result("none", [1.0, 2.0, None, 4.0])]
    lines = list(_details(against(baselines, result("reactive", [None, 1.0, 3.0, 2.0])), "none"))
    told = "the target was reached by both in 2 pairs, by reactive alone in 1, by none alone in 1"
    assert lines[0] == f"reactive: {told}; a pair without both times has no speedup"
    assert lines[1].startswith("reactive: final accuracy differs by 0 ")
    (only,) = _details(against(baselines, baselines[0]), "none")
    assert only.startswith("none: final accuracy")


def test_quarantines_are_counted_by_reason() -> None:
    outcomes = [
        replace(OUTCOME, quarantined={"a": ["failures", "released"]}),
        replace(OUTCOME, quarantined={"a": ["failures"]}),
    ]
    assert Result(Variant("reactive"), outcomes).quarantined() == {"a": {"failures": 2, "released": 1}}


def test_quarantined_nodes_are_listed_by_number() -> None:
    outcome = replace(OUTCOME, quarantined={f"node_{number}": ["failures"] for number in (10, 9, 2, 100)})
    numbered = ["node_2", "node_9", "node_10", "node_100"]
    assert list(Result(Variant("reactive"), [outcome]).quarantined()) == numbered
    told = [line for line in in_words(outcome) if line.startswith("quarantine of ")]
    assert told == [f"quarantine of {node}: failures" for node in numbered]


def test_thresholds() -> None:
    pairs = [result("none", [10.0, 20.0])], result("reactive", [5.0, 10.0])
    record = against(*pairs).to_dict()
    assert parse_threshold("speedup>=1.5").holds(record)
    assert not parse_threshold("speedup.ci_low >= 2.5").holds(record)
    assert parse_threshold("ruined<=0").holds(record)
    assert not parse_threshold("ruined>=1").holds(record)
    one = against([result("none", [10.0])], result("reactive", [5.0])).to_dict()
    assert not parse_threshold("speedup.ci_low>=0").holds(one), "one pair has no interval"
    assert parse_threshold("bytes<=10").holds(record)
    with pytest.raises(UnknownName, match="did you mean 'speedup'"):
        parse_threshold("speedp>=1")
    with pytest.raises(InvalidInput, match="FIGURE>=NUMBER"):
        parse_threshold("speedup=1")


TEXT = """
learning: model
rounds: 12
target_accuracy: 0.9
nodes:
  - {id: good, count: 4, gpu: T4, profile: good}
  - {id: bad, count: 1, gpu: T4, profile: unstable}
"""


def test_paired_runs_differ_in_what_is_decided_only() -> None:
    nodes = [{"id": "good", "count": 4, "gpu": "T4"}]
    scenario = Scenario.model_validate({"nodes": nodes, "learning": "model", "rounds": 4, "target_accuracy": 0.5})
    found = compare(scenario, ["reactive"], seeds=2)
    warm_up = scenario.config.orchestrator.warmup_rounds
    (candidate,) = found.candidates
    for before, after in zip(found.baseline.outcomes, candidate.result.outcomes, strict=True):
        assert before.round_seconds[:warm_up] == after.round_seconds[:warm_up]


def test_the_command_prints_what_programs_read_and_fails_a_threshold(tmp_path: object) -> None:
    file = f"{tmp_path}/small.yaml"
    with open(file, "w", encoding="utf-8") as opened:  # noqa: PTH123  (a string, as a user gives it)
        opened.write(TEXT)
    arguments = ["compare", file, "--seeds", "2", "--policies", "none,reactive", "--json", "--jobs", "1"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    record = json.loads(done.output)
    assert record["baseline"]["policy"] == "none"
    (candidate,) = record["candidates"]
    assert candidate["policy"] == "reactive"
    for estimate in (
        record["baseline"]["time_to_target_seconds"],
        candidate["time_to_target_seconds"],
        candidate["speedup"],
    ):
        assert {"mean", "ci_low", "ci_high"} <= estimate.keys()
    assert candidate["bytes"] > 0
    assert 0 < candidate["final_accuracy"] <= 1
    ((against_name, found),) = candidate["against"].items()
    assert against_name == "first-80"
    assert {"speedup", "standing", "verdict", "ruined"} <= found.keys()
    (first_80,) = record["baselines"]
    assert (first_80["policy"], first_80["setting"]) == ("none", "first-80")
    failed = CliRunner().invoke(app, [*arguments, "--threshold", "speedup>=1000"])
    assert failed.exit_code == 1


def test_the_commands_fail_where_every_run_was_given_up(tmp_path: object) -> None:
    file = f"{tmp_path}/stuck.yaml"
    with open(file, "w", encoding="utf-8") as opened:  # noqa: PTH123  (a string, as a user gives it)
        opened.write(TEXT + "events: [{round: 2, type: partition, nodes: [good, bad]}]\n")
    waiting = "no round was closed for 2 h 00 min: waiting for 1 more node to join"
    for command in (["simulate"], ["compare", "--seeds", "1", "--jobs", "1"]):
        done = CliRunner().invoke(app, [*command, file])
        assert done.exit_code == 1
        assert waiting in done.stderr
