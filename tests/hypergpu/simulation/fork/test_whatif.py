"""Forks of runs, against what the runs then did."""

import json
import re
from pathlib import Path
from statistics import fmean, median

import pytest

from hypergpu.common.config import SystemConfig, load_config
from hypergpu.common.errors import ConfigError, InvalidInput
from hypergpu.simulation.compute import read_rounds
from hypergpu.simulation.convergence import FITTED
from hypergpu.simulation.fork.fork import fork, rest_of
from hypergpu.simulation.fork.links import Path as Fitted
from hypergpu.simulation.fork.links import with_paths
from hypergpu.simulation.fork.state import figures_of, read_state
from hypergpu.simulation.fork.whatif import what_if
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario

INT8 = ["compression.strategy=fixed", "compression.update_codec=int8", "compression.parameters_codec=int8"]
CHANGES = (["training.local_steps=60"], INT8, ["training.close_share=0.7"])


def scenario(*profiles: str, **config: object) -> Scenario:
    return Scenario.model_validate(
        {
            "name": "truth",
            "learning": "model",
            "task": "digits",
            "convergence": {"model_bytes": 600_000},
            "compute": {"seconds_per_step": 0.0001, "seconds_per_sample": 0.000002},
            "nodes": [{"id": f"{name}-{at}", "profile": name, "gpu": "T4"} for at, name in enumerate(profiles)],
            "policy": "none",
            "rounds": 30,
            "config": config,
        }
    )


def run(tested: Scenario, out: Path) -> Path:
    simulate(tested, out)
    return out


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(scenario("cable", "dsl", "good", "average"), tmp_path_factory.mktemp("whatif") / "run")


def test_predictions_are_within_a_tenth_of_what_then_happens(recorded: Path, tmp_path: Path) -> None:
    forked = fork(read_state(recorded))
    errors, bytes_errors = [], []
    for number, change in enumerate(CHANGES):
        config = load_config(SystemConfig, recorded / "config.yaml", {}, change)
        found = what_if(forked, config, rounds=30, seeds=2)
        truths = []
        for seed in (1, 2):
            out = run(
                scenario("cable", "dsl", "good", "average").changed(config=config, seed=seed),
                tmp_path / f"{number}-{seed}",
            )
            truths.append(figures_of(read_rounds(out)[10:]))
        predicted = found.then
        errors.append(abs((predicted.seconds_per_round.mean or 0) / fmean(t.seconds_per_round for t in truths) - 1))
        bytes_errors.append(abs((predicted.bytes_per_round.mean or 0) / fmean(t.bytes_per_round for t in truths) - 1))
    assert median(errors) < 0.1
    assert max(errors) < 0.3
    assert max(bytes_errors) < 0.05


def test_progress_is_that_of_the_curve_from_the_runs_place_on_it(recorded: Path) -> None:
    state = read_state(recorded, until=6, window=6)
    forked = fork(state)
    assert forked.learns
    config = load_config(SystemConfig, recorded / "config.yaml", {}, ["training.local_steps=10"])
    found = what_if(forked, config, rounds=10, seeds=1)
    after = figures_of(read_rounds(recorded)).seconds_per_round
    row = read_rounds(recorded)[6 + int(found.seconds / after) - 1]
    assert found.now.metric.mean == pytest.approx(row["accuracy"], abs=0.01)
    assert found.now.metric.mean > state.rows[-1]["accuracy"]


def test_the_rest_of_a_curve_goes_on_where_the_run_is() -> None:
    for curve in FITTED.values():
        rest = rest_of(curve, 7.0)
        for path in (0.0, 3.0, 50.0):
            assert rest.loss(path) == pytest.approx(curve.loss(7.0 + path))
            assert rest.metric(path) == pytest.approx(curve.metric(7.0 + path))


def test_a_fork_has_the_bytes_the_pauses_and_the_nodes_of_the_run(recorded: Path) -> None:
    state = read_state(recorded, window=5, until=12)
    assert (state.round, len(state.rows), len(state.nodes)) == (12, 5, 4)
    assert state.model_bytes == pytest.approx(600_000, rel=0.01)
    assert state.evaluation_seconds == pytest.approx(0.02, abs=0.005)
    assert all(len(each) == 5 for each in state.round_trips_ms.values())
    low, high = state.round_trips_ms["dsl-1"][0], state.round_trips_ms["dsl-1"][-1]
    assert 20 <= low < high


def test_what_is_not_known_is_told(recorded: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("rounds.jsonl", "nodes.json"):
        (copy / name).write_text((recorded / name).read_text())
    text = (recorded / "config.yaml").read_text().replace("task: digits", "task: mine.py:task")
    (copy / "config.yaml").write_text(text.replace("partition: iid", "partition: dirichlet"))
    nodes = json.loads((copy / "nodes.json").read_text())
    (copy / "nodes.json").write_text(json.dumps([row for row in nodes if row["node_id"] != "dsl-1"]))
    forked = fork(read_state(copy, window=3))
    told = " | ".join(forked.unknown)
    assert not forked.learns
    assert "no learning curve of task 'mine.py:task'" in told
    assert re.search(r"round trips of .*\bdsl-1\b.*: their whole transfers are put down to bandwidth", told)
    assert "dirichlet shards" in told
    assert "other numbers of connections" in told
    found = what_if(forked, load_config(SystemConfig, copy / "config.yaml"), rounds=3, seeds=1)
    assert found.error < 1
    assert found.then.metric.mean is None
    assert found.then.seconds_per_round.mean is not None


def test_a_run_without_a_round_cannot_be_forked(recorded: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((recorded / "config.yaml").read_text())
    (tmp_path / "rounds.jsonl").write_text("")
    with pytest.raises(InvalidInput, match="no round was finished: nothing to fork"):
        read_state(tmp_path)


def test_paths_reach_the_profiles_of_their_nodes() -> None:
    found = with_paths(
        scenario("good").changed(profiles={"a": {"rtt_ms": 20}}, nodes=[{"id": "a", "profile": "a"}]),
        {"a": Fitted(up=3.0, loss=0.01)},
    )
    profile = found.profiles_of_links()["a"]
    assert (profile.up.bandwidth_mbit, profile.up.loss.mean) == (3.0, 0.01)
    assert profile.down.bandwidth_mbit > 1e9
    assert profile.down.latency.at(0.5) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"round": None}, "record 2: round: Input should be a valid integer"),
        ({"round": 1}, "record 2: round 1 comes after round 1"),
        ({"seconds": float("nan")}, "record 2: seconds: Input should be a finite number"),
        ({"contributors": "cable-0"}, "record 2: contributors: Input should be a valid list"),
        ({"upload_seconds": {}}, "record 2: Value error, upload_seconds has no entry of"),
        ({"codec": {"cable-0": "zip"}}, "record 2: Value error, codec has no entry of"),
        ({"bytes_up": {"cable-0": -1}}, "record 2: bytes_up.cable-0: Input should be greater"),
    ],
)
def test_a_damaged_record_of_a_round_is_named(recorded: Path, tmp_path: Path, change: object, told: str) -> None:
    rows = [json.loads(line) for line in (recorded / "rounds.jsonl").read_text().splitlines()]
    rows[1] |= change
    (tmp_path / "config.yaml").write_text((recorded / "config.yaml").read_text())
    (tmp_path / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=told):
        read_state(tmp_path)


def test_nodes_that_are_no_objects_are_passed_over(recorded: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "rounds.jsonl"):
        (tmp_path / name).write_text((recorded / name).read_text())
    (tmp_path / "nodes.json").write_text("[null, 3, []]")
    assert read_state(tmp_path).round_trips_ms == {}
