import asyncio
import io
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hypergpu.cli import inspect
from hypergpu.client import connect
from hypergpu.discovery import Cluster, announce, state_dir
from hypergpu.netsim_proxy.config.profile_file import parse_profiles
from hypergpu.protos import coordinator_pb2 as pb

Cli = Callable[..., Any]


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_every_command_and_succeeds(cli: Cli, arguments: list[str]) -> None:
    result = cli(*arguments)
    assert result.code == 0
    for command in (
        "demo",
        "status",
        "nodes",
        "links",
        "inject",
        "schedule",
        "pause",
        "policy",
        "doctor",
        "up",
        "scale",
    ):
        assert command in result.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nodes"], "no cluster is running here: start one with `hypergpu demo`"),
        (["nodes", "--coordinator", "nowhere"], "HOST:PORT"),
        (["nodes", "--coordinator", "h:1", "--token-file", "missing"], "--token-file: cannot read missing"),
        (["staus"], "Did you mean 'status'"),
        (["nodes", "--jsno"], "--json"),
        (["demo", "--rounds", "none"], "--rounds"),
        (["demo", "--nodes", "0"], "--nodes"),
        (["scale", "3"], "docker-compose.yml"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(cli: Cli, arguments: list[str], told: str) -> None:
    result = cli(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert told in result.err


def test_a_coordinator_that_is_not_there_is_named(cli: Cli, silent_port: int) -> None:
    result = cli("nodes", "--coordinator", f"127.0.0.1:{silent_port}")
    assert result.code == 2
    assert f"no coordinator answers at 127.0.0.1:{silent_port}" in result.err


def test_a_server_that_is_another_is_told_apart(cli: Cli, fakes: Any) -> None:
    where = fakes.cluster
    result = cli("links", "--coordinator", where.coordinator, "--proxy", where.coordinator, "--token", where.token)
    assert result.code == 2
    assert f"the server at {where.coordinator} is not a netsim proxy: give --proxy HOST:PORT" in result.err


def test_a_wrong_token_is_told_apart_from_a_dead_cluster(cli: Cli, fakes: Any) -> None:
    result = cli("nodes", "--coordinator", fakes.cluster.coordinator, "--token", "wrong")
    assert result.code == 2
    assert "rejects the token" in result.err


def test_nodes_as_json_lists_each_in_natural_order(on_fakes: Cli) -> None:
    nodes = json.loads(on_fakes("nodes", "--json").out)
    assert [(node["node_id"], node["state"], node["rounds_contributed"]) for node in nodes] == [
        ("node_2", "working", 7),
        ("node_10", "idle", 3),
    ]


def test_nodes_for_people_holds_the_same(on_fakes: Cli) -> None:
    out = on_fakes("nodes").out
    assert "node_10" in out
    assert "working" in out


def test_status_shows_progress_links_and_the_reason_of_a_decision(on_fakes: Cli) -> None:
    out = on_fakes("status").out
    for text in ("round 7 of 25", "accuracy 94.0 %", "policy reactive", "poor", "high_latency"):
        assert text in out
    tree = json.loads(on_fakes("status", "--json").out)
    assert tree["round"] == 7
    assert tree["decisions"][0]["reason"] == "high_latency"
    assert {node["node_id"] for node in tree["nodes"]} == {"node_2", "node_10"}


def test_watching_ends_with_the_run(on_fakes: Cli, fakes: Any) -> None:
    fakes.coordinator.status.state = "completed"
    assert "completed" in on_fakes("status", "--watch").out


def test_watching_in_a_pipe_takes_a_line_for_each_round_and_ends_with_what_ended_the_run(
    on_fakes: Cli, fakes: Any
) -> None:
    fakes.coordinator.last_statuses = 3
    result = on_fakes("status", "--watch", "--interval", "0.1")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].strip().endswith("training, round 7 of 25: accuracy 94.0 %  loss 0.31")
    assert lines[-1] == "the run is over: [25] rounds"
    assert len(lines) == 2


def test_watching_a_coordinator_that_is_gone_before_the_end_is_an_error(on_fakes: Cli, fakes: Any) -> None:
    fakes.coordinator.last_statuses = 1
    fakes.coordinator.over = threading.Event()
    fakes.coordinator.over.set = lambda: None  # nothing is heard of an end
    result = on_fakes("status", "--watch", "--interval", "0.1")
    assert result.code == 2
    assert "no coordinator answers" in result.err
    assert "training, round 7 of 25" in result.out


@pytest.mark.parametrize("last", [1, 3])
def test_the_last_frame_stays_on_the_terminal(fakes: Any, monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    """What is written after the other screen is left (rmcup) is what the user keeps."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, height=30)
    monkeypatch.setattr(inspect, "new_console", lambda: console)
    fakes.coordinator.last_statuses = last

    async def watch() -> None:
        async with connect(fakes.cluster) as client:
            await inspect._watch(client, 0.1)

    asyncio.run(watch())
    kept = out.getvalue().rpartition("\x1b[?1049l")[2]
    assert "round 7" in kept
    assert "high_latency" in kept
    assert kept.rstrip().endswith("the run is over: [25] rounds")


def test_what_was_not_measured_is_a_dash_and_null(on_fakes: Cli, fakes: Any) -> None:
    fakes.coordinator.nodes.append(pb.NodeInfo(node_id="node_3", state="preparing", quality="unknown"))
    row = next(line for line in on_fakes("nodes").out.splitlines() if line.startswith("node_3"))
    assert row.split()[:7] == ["node_3", "preparing", "unknown", "–", "–", "–", "–"]
    node = json.loads(on_fakes("nodes", "--json").out)[-1]
    told = {name: node[name] for name in ("node_id", "quality", "score", "latency_ms", "loss_rate", "batch_size")}
    assert told == {"node_id": "node_10", "quality": "good", "score": 81.0} | dict.fromkeys(
        ("latency_ms", "loss_rate", "batch_size")
    )
    fakes.coordinator.status.ClearField("loss")
    fakes.coordinator.status.metric.ClearField("value")
    assert "accuracy –  loss –" in on_fakes("status").out
    tree = json.loads(on_fakes("status", "--json").out)
    assert (tree["loss"], tree["accuracy"], tree["metric"]["value"], tree["round_seconds"]) == (None,) * 4
    assert tree["metric"]["name"] == "accuracy"


def test_status_writes_the_metric_as_it_says(on_fakes: Cli, fakes: Any) -> None:
    metric = pb.Metric(name="[r2]", better="higher", format="number", value=0.461)
    fakes.coordinator.status.metric.CopyFrom(metric)
    assert "[r2] 0.461  loss 0.31" in on_fakes("status").out
    assert json.loads(on_fakes("status", "--json").out)["[r2]"] == 0.461
    fakes.coordinator.status.metric.CopyFrom(pb.Metric(name="loss", better="lower", format="number", value=0.31))
    assert on_fakes("status").out.count("0.31") == 1


def test_links_tell_what_is_injected_lately_apart_from_the_mean_of_all_time(on_fakes: Cli, fakes: Any) -> None:
    link = fakes.proxy.links[0]
    link.up.mean_delay_ms, link.up.recent_delay_ms, link.down.mean_delay_ms = 300.0, 12.0, 200.0
    heading, row = on_fakes("links").out.splitlines()[:2]
    assert "injected lately up" in heading
    assert "mean up" in heading
    assert row.index("12 ms") < row.index("300 ms") < row.index("200 ms")
    shown = on_fakes("status").out
    assert "injected now" in shown
    assert "12 ms" in shown
    assert "500 ms" in shown


def test_logs_are_lines_or_records(on_fakes: Cli) -> None:
    assert "round 6 closed" in on_fakes("logs").out
    lines = on_fakes("logs", "--json", "--last", "1").out.splitlines()
    assert [json.loads(line) for line in lines] == [{}]


@pytest.mark.parametrize("command", ["pause", "resume", "stop"])
def test_steering_says_how_the_run_stands(on_fakes: Cli, command: str) -> None:
    assert "run run-1: training, round 7 of 25" in on_fakes(command).out
    assert json.loads(on_fakes(command, "--json").out)["run_id"] == "run-1"


def test_a_restart_tells_of_the_new_run(on_fakes: Cli) -> None:
    assert on_fakes("restart").out == "run run-2: training, round 1 of 25, policy reactive\n"


def test_a_run_without_an_end_is_shown_without_one(on_fakes: Cli, fakes: Any) -> None:
    fakes.coordinator.status.rounds = 0
    assert "round 7, policy" in on_fakes("pause").out
    shown = on_fakes("status").out
    assert "round 7" in shown
    assert "of 0" not in shown
    assert "until stopped" in shown


def test_the_policy_is_set_and_an_unknown_one_refused(on_fakes: Cli, fakes: Any) -> None:
    assert on_fakes("policy", "aggressive").code == 0
    assert fakes.coordinator.asked[-1].policy == "aggressive"
    refused = on_fakes("policy", "wild")
    assert (refused.code, refused.err) == (2, "hypergpu: unknown policy 'wild'\n")


@pytest.mark.parametrize(
    ("arguments", "rule"), [(["include"], "include"), (["exclude"], "exclude"), (["exclude", "--clear"], "automatic")]
)
def test_rules_reach_the_coordinator(on_fakes: Cli, fakes: Any, arguments: list[str], rule: str) -> None:
    assert f"node_2: {rule}" in on_fakes(*arguments, "node_2").out
    assert fakes.coordinator.asked[-1].rule == pb.SetNodeRuleRequest.Rule.Value(rule.upper())


def test_an_unknown_node_names_the_known(on_fakes: Cli) -> None:
    for arguments in (["exclude", "node_3"], ["inject", "latency_spike", "node_3"], ["profile", "node_3", "good"]):
        result = on_fakes(*arguments)
        assert result.code == 2
        assert "unknown node 'node_3'" in result.err
        assert "known: node_10, node_2" in result.err


def test_links_and_their_profiles(on_fakes: Cli, fakes: Any, tmp_path: Path) -> None:
    assert json.loads(on_fakes("links", "--json").out)[0]["rpcs_lost"] == 2
    assert "poor" in on_fakes("links").out
    assert on_fakes("profile", "*", "good", "--loss-model", "transport").code == 0
    assert fakes.proxy.asked[-1].loss_model == "transport"
    (tmp_path / "mine.yaml").write_text(text := "profiles: {mine: {rtt_ms: [1, 2]}}")
    assert on_fakes("profile", "node_2", "mine.yaml").code == 0
    assert fakes.proxy.asked[-1].profile == text
    (tmp_path / "path.csv").write_text("seconds,rtt_ms\n0,30\n")
    assert on_fakes("profile", "node_2", "path.csv").code == 0
    assert parse_profiles(fakes.proxy.asked[-1].profile, "")["path"].trace
    (tmp_path / "wrong.yaml").write_text("profiles:\n  mine: {rtt: 3}\n")
    assert "wrong.yaml:2: unknown key" in on_fakes("profile", "node_2", "wrong.yaml").err


def test_the_bandwidth_of_the_upstream(on_fakes: Cli, fakes: Any) -> None:
    shown = "to all nodes: 300 Mbit/s, 2 MB waiting; from all nodes: no limit"
    assert shown in on_fakes("upstream-bandwidth").out.replace("2.0 MB", "2 MB")
    assert not fakes.proxy.asked
    assert "to all nodes: 500 Mbit/s" in on_fakes("upstream-bandwidth", "--down-mbit", "500").out
    assert fakes.proxy.asked[-1].down_mbit == 500
    assert not fakes.proxy.asked[-1].HasField("up_mbit")


def test_an_event_now_or_later(on_fakes: Cli, fakes: Any) -> None:
    assert "latency_spike at node_2" in on_fakes("inject", "latency_spike", "node_2", "--duration", "5").out
    assert fakes.proxy.asked[-1].duration_seconds == 5
    assert on_fakes("schedule", "profile_change", "node_2", "--profile", "good", "--round", "9").code == 0
    assert (fakes.proxy.asked[-1].round, fakes.proxy.asked[-1].event.profile) == (9, "good")
    assert on_fakes("schedule", "disconnect", "*", "--after", "1.5", "--mode", "reset").code == 0
    assert fakes.proxy.asked[-1].after_seconds == 1.5
    assert "either --round N or --after SECONDS" in on_fakes("schedule", "disconnect", "*").err
    assert on_fakes("inject", "limit_data", "*", "--bytes", "1000", "--direction", "up").code == 0
    event = fakes.proxy.asked[-1]
    assert (event.limit_bytes, event.direction) == (1000, "up")
    assert on_fakes("schedule", "slow_close", "*", "--after", "1", "--close-after", "2.5").code == 0
    event = fakes.proxy.asked[-1].event
    assert (event.close_after_seconds, event.direction) == (2.5, "both")


def test_the_proxy_rereads_its_files(on_fakes: Cli, fakes: Any) -> None:
    assert on_fakes("reload").out == "reloaded: map.yaml\n"
    assert fakes.proxy.asked[-1].DESCRIPTOR.name == "ReloadRequest"


def test_a_scenario_is_read_here_and_scheduled_there(on_fakes: Cli, fakes: Any, tmp_path: Path) -> None:
    (tmp_path / "storm.yaml").write_text("events: []")
    assert "round 10" in on_fakes("scenario", "storm.yaml").out
    assert (fakes.proxy.asked[-1].name, fakes.proxy.asked[-1].yaml) == ("storm.yaml", "events: []")
    assert "cannot read calm.yaml" in on_fakes("scenario", "calm.yaml").err
    assert on_fakes("scenario", "calm").code == 0
    assert "nodes:" in fakes.proxy.asked[-1].yaml


def test_events_are_listed_and_cleared(on_fakes: Cli, fakes: Any) -> None:
    assert "over" in on_fakes("scheduled").out
    assert json.loads(on_fakes("scheduled", "--json").out)[0]["event"]["type"] == "recovery"
    assert on_fakes("clear", "node_2").out == "1 event ended or cancelled\n"
    assert fakes.proxy.asked[-1].node_id == "node_2"
    assert "unknown node 'node_3'" in on_fakes("clear", "node_3").err


def test_without_a_proxy_links_say_how_to_name_one(cli: Cli, fakes: Any) -> None:
    where = ("--coordinator", fakes.cluster.coordinator, "--token", fakes.cluster.token)
    result = cli("links", *where)
    assert (result.code, "--proxy HOST:PORT" in result.err) == (2, True)
    assert cli("status", *where).code == 0


def test_a_running_local_cluster_is_found_and_a_dead_one_is_not(cli: Cli, fakes: Any) -> None:
    where = fakes.cluster
    withdraw = announce(Cluster(where.coordinator, where.proxy, where.token, "runs/x", os.getpid()))
    (file,) = state_dir().iterdir()
    assert file.stat().st_mode & 0o077 == 0
    found = cli("nodes", "--json")
    assert (found.code, found.err) == (0, "hypergpu: run x\n")
    withdraw()
    assert not file.exists()
    announce(Cluster(where.coordinator, where.proxy, where.token, "runs/x", 2**22 + 1))
    assert "no cluster is running" in cli("nodes").err


def test_the_doctor_finds_a_healthy_cluster_and_names_what_is_wrong(on_fakes: Cli, cli: Cli, silent_port: int) -> None:
    healthy = {check["name"]: check for check in json.loads(on_fakes("doctor", "--json").out)}
    assert all(check["ok"] for check in healthy.values())
    assert "accepted" in healthy["token"]["found"]
    result = cli("doctor", "--coordinator", f"127.0.0.1:{silent_port}")
    assert result.code == 1
    assert "FAIL" in result.out
    assert "firewall" in result.out
    assert "start one with" in cli("doctor").out
