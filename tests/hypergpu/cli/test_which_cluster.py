"""Which cluster a command talks to, and which token it shows to whom."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from hypergpu.common.rpc import SERVER_OPTIONS
from hypergpu.discovery import Cluster, announce, find
from hypergpu.protos import netsim_pb2 as net
from hypergpu.protos import netsim_pb2_grpc

Cli = Callable[..., Any]


class LoneProxy(netsim_pb2_grpc.NetsimServicer):
    """Answers everybody, and keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []

    def _keep(self, context: grpc.ServicerContext) -> None:
        self.shown.append({key: str(value) for key, value in context.invocation_metadata()})

    def ListLinks(self, request: net.ListLinksRequest, context: grpc.ServicerContext) -> net.LinkList:
        self._keep(context)
        return net.LinkList(links=[net.LinkInfo(node_id="node_1", profile="poor")])

    def SetProfile(self, request: net.SetProfileRequest, context: grpc.ServicerContext) -> net.LinkInfo:
        self._keep(context)
        return net.LinkInfo(node_id=request.node_id, profile=request.profile)

    def Inject(self, request: net.Event, context: grpc.ServicerContext) -> net.EventReply:
        self._keep(context)
        return net.EventReply(event_id="event-1", summary=request.type)

    def ListScheduled(self, request: net.ListScheduledRequest, context: grpc.ServicerContext) -> net.ScheduleList:
        self._keep(context)
        return net.ScheduleList()

    def Clear(self, request: net.ClearRequest, context: grpc.ServicerContext) -> net.ClearReply:
        self._keep(context)
        return net.ClearReply(cleared=1)


@pytest.fixture
def lone() -> Iterator[tuple[LoneProxy, str]]:
    proxy, server = LoneProxy(), grpc.server(ThreadPoolExecutor(2), options=SERVER_OPTIONS)
    netsim_pb2_grpc.add_NetsimServicer_to_server(proxy, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield proxy, f"127.0.0.1:{port}"
    server.stop(None)


ON_LINKS = [
    ("links",),
    ("profile", "node_1", "good"),
    ("profile", "node_9", "good"),
    ("inject", "latency_spike", "node_1"),
    ("scheduled",),
    ("clear",),
]


@pytest.mark.parametrize("command", ON_LINKS)
@pytest.mark.parametrize("beside", [False, True])
def test_a_proxy_that_runs_alone_needs_no_coordinator_and_is_shown_no_token_of_another(
    cli: Cli, lone: tuple[LoneProxy, str], fakes: Any, command: tuple[str, ...], beside: bool
) -> None:
    proxy, address = lone
    if beside:
        announce(Cluster(fakes.cluster.coordinator, fakes.cluster.proxy, "its-own-secret", "runs/x", os.getpid()))
    result = cli(*command, "--proxy", address)
    assert (result.code, result.err) == (0, "")
    assert proxy.shown
    assert all("authorization" not in shown for shown in proxy.shown)


def test_the_token_that_the_user_gave_is_shown(cli: Cli, lone: tuple[LoneProxy, str]) -> None:
    proxy, address = lone
    assert cli("links", "--proxy", address, "--token", "given").code == 0
    assert proxy.shown[-1]["authorization"] == "Bearer given"


def test_what_needs_a_coordinator_says_so_of_a_proxy_alone(cli: Cli, lone: tuple[LoneProxy, str]) -> None:
    result = cli("nodes", "--proxy", lone[1])
    assert (result.code, "give --coordinator HOST:PORT" in result.err) == (2, True)


def test_tokens_of_a_local_cluster_go_to_its_own_addresses_alone(cli: Cli) -> None:
    announce(Cluster("127.0.0.1:1", "127.0.0.1:2", "secret", "runs/a", os.getpid()))
    for stranger in (find(coordinator="127.0.0.1:9"), find(proxy="127.0.0.1:9")):
        assert (stranger.token, stranger.token_of_proxy) == ("", "")
    own = find(coordinator="127.0.0.1:1")
    assert (own.token, own.proxy, own.token_of_proxy) == ("secret", "127.0.0.1:2", "secret")
    mixed = find(coordinator="127.0.0.1:1", proxy="127.0.0.1:9")
    assert (mixed.token, mixed.token_of_proxy) == ("secret", "")
    mixed = find(coordinator="127.0.0.1:9", proxy="127.0.0.1:2")
    assert (mixed.token, mixed.token_of_proxy) == ("", "secret")
    given = find(coordinator="127.0.0.1:9", proxy="127.0.0.1:2", token="given")
    assert (given.token, given.token_of_proxy) == ("given", "given")


@pytest.fixture
def two(cli: Cli, fakes: Any) -> Iterator[int]:
    """Two local clusters; the one of this process is the newer."""
    where = fakes.cluster
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        announce(Cluster("127.0.0.1:1", "127.0.0.1:2", "other", "/runs/older", other.pid))
        announce(Cluster(where.coordinator, where.proxy, where.token, "/runs/newer", os.getpid()))
        folder = Path(os.environ["XDG_STATE_HOME"]) / "hypergpu" / "clusters"
        os.utime(folder / f"{other.pid}.json", (1, 1))
        yield other.pid
        other.communicate(b"\n")


CHANGES = [
    ("pause",),
    ("resume",),
    ("stop",),
    ("restart",),
    ("include", "node_2"),
    ("exclude", "node_2"),
    ("policy", "aggressive"),
    ("profile", "node_2", "good"),
    ("inject", "latency_spike", "node_2"),
    ("schedule", "disconnect", "node_2", "--round", "3"),
    ("clear",),
    ("scenario", "calm"),
]


@pytest.mark.parametrize("command", CHANGES)
def test_what_changes_something_does_not_guess_among_several(
    cli: Cli, fakes: Any, two: int, command: tuple[str, ...]
) -> None:
    result = cli(*command)
    assert result.code == 2
    for text in ("2 clusters are running here: choose one with --run NAME", "newer", "older", str(two)):
        assert text in result.err
    assert fakes.coordinator.asked == fakes.proxy.asked == []


def test_a_look_takes_the_newest_and_says_so(cli: Cli, two: int) -> None:
    for command in (("nodes",), ("status",), ("links",), ("logs",), ("scheduled",)):
        result = cli(*command)
        assert result.code == 0
        assert result.err == "hypergpu: run newer; the newest of 2, choose another with --run NAME\n"


def test_a_run_is_chosen_by_its_name_directory_or_process(cli: Cli, two: int) -> None:
    for name in ("newer", "/runs/newer", str(os.getpid())):
        result = cli("pause", "--run", name)
        assert (result.code, result.err) == (0, "hypergpu: run newer\n")
    assert "no run is called 'newest' here; running: newer" in cli("pause", "--run", "newest").err
    assert find(run="older").token == "other"


def test_a_home_that_cannot_be_written_costs_the_discovery_alone(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    cluster = Cluster("127.0.0.1:1", "127.0.0.1:2", "secret", "runs/a", os.getpid())
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    announce(cluster)()
    assert "no cluster is running" in cli("nodes").err
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", _no_home)
    capsys.readouterr()
    announce(cluster)()
    printed = capsys.readouterr()
    lines = (printed.out + printed.err).splitlines()
    assert len(lines) == 1
    assert "other terminals cannot find this cluster" in lines[0]
    assert "secret" not in lines[0]
    assert "no cluster is running" in cli("nodes").err


def _no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")
