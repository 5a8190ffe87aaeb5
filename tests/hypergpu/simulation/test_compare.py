"""Comparisons, from outcomes that are given, and from runs by the model of convergence."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from hypergpu.cli.app import app
from hypergpu.cli.simulate import in_words
from hypergpu.common.errors import InvalidInput, UnknownName
from hypergpu.simulation.compare import Result, against, compare, parse_threshold
from hypergpu.simulation.run import Outcome
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.variants import Variant, variants_of

OUTCOME = Outcome(
    "s", "none", 0, "completed", "rounds_done", 5, 130.0, 0.9, 0.1, 0.9, 0.8, 50.0, 10, 10, [], trained_seconds=100.0
)


def result(policy: str, times: list[float | None], accuracy: float = 0.9) -> Result:
    outcomes = [replace(OUTCOME, time_to_target_seconds=time, final_metric=accuracy) for time in times]
    return Result(Variant(policy), outcomes)


def test_speedups_are_taken_pair_by_pair() -> None:
    candidate = against(result("none", [10.0, 40.0]), result("reactive", [5.0, 10.0], accuracy=0.91))
    assert candidate.speedup.mean == pytest.approx((2 + 4) / 2)
    assert candidate.difference.mean == pytest.approx(0.01)
    assert candidate.verdict == "faster"


def test_a_difference_within_the_noise_is_said() -> None:
    candidate = against(result("none", [10.0, 10.0, 10.0]), result("reactive", [5.0, 10.0, 25.0]))
    assert candidate.verdict == "within the noise"


def test_a_target_that_is_not_reached_bounds_the_pair_or_says_nothing() -> None:
    candidate = against(result("none", [None, 20.0]), result("reactive", [50.0, 10.0]))
    assert candidate.bounds == 1
    assert candidate.speedup.mean == pytest.approx(2.0)  # 100 s, the length of the run, over 50; 20 over 10
    never = against(result("none", [None]), result("reactive", [None]))
    assert never.speedup.mean is None
    assert never.verdict == "target not reached"
    assert never.record()["time_to_target_seconds"] == {"mean": None, "ci_low": None, "ci_high": None}


def test_who_missed_the_target_is_not_taken_for_sooner_than_who_reached_it() -> None:
    stuck = replace(OUTCOME, time_to_target_seconds=None, trained_seconds=0.0, given_up="waiting for nodes to join")
    baseline = Result(Variant("none"), [stuck])
    candidate = against(baseline, result("reactive", [50.0]))
    assert candidate.speedup.mean == 1.0
    assert baseline.record()["given_up"] == ["waiting for nodes to join"]


def test_one_pair_tells_nothing_of_the_noise() -> None:
    assert against(result("none", [10.0]), result("reactive", [5.0])).verdict == "noise unknown (one seed)"


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


def test_policies_times_strategies() -> None:
    found = variants_of(["none", "reactive"], ["fixed/utility", "top_n"])
    assert found == [Variant("reactive", "fixed", "utility"), Variant("reactive", "", "top_n")]
    assert variants_of(["reactive", "reactive"], ["top_n", "top_n"]) == [Variant("reactive", "", "top_n")]
    with pytest.raises(InvalidInput, match="two strategies for the same thing"):
        variants_of(["reactive"], ["top_n/utility"])
    with pytest.raises(UnknownName, match="did you mean 'reactive'"):
        variants_of(["reactiv"], [])
    with pytest.raises(UnknownName, match="did you mean 'goodput'"):
        variants_of(["reactive"], ["goodpt"])


def test_thresholds() -> None:
    record = against(result("none", [10.0]), result("reactive", [5.0])).record()
    assert parse_threshold("speedup>=1.5").holds(record)
    assert not parse_threshold("speedup.ci_low >= 2.5").holds(record)
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
