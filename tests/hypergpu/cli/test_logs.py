"""`hypergpu logs NAME`: what one process of the cluster printed."""

import json
import os
import stat
from pathlib import Path

import pytest

from hypergpu.discovery import Cluster, announce
from tests.hypergpu.conftest import Cli, Fakes


@pytest.fixture
def local(cli: Cli, fakes: Fakes, tmp_path: Path) -> Cli:
    """A local cluster, announced as `hypergpu demo` does."""
    logs = tmp_path / "runs" / "r" / "logs"
    logs.mkdir(parents=True)
    (logs / "node_2.log").write_text("".join(f"line {number}\n" for number in range(60)))
    (logs / "coordinator.log").write_text("round 1\n")
    (logs / "netsim_proxy.log").write_text("ready\n")
    where = fakes.cluster
    announce(Cluster(where.coordinator, where.proxy, where.token, str(tmp_path / "runs" / "r"), os.getpid()))
    return cli


def test_the_last_lines_of_a_node_of_a_local_cluster(local: Cli) -> None:
    assert local("logs", "node_2").out.splitlines() == [f"line {number}" for number in range(10, 60)]
    assert local("logs", "node_2", "--last", "2").out == "line 58\nline 59\n"
    assert local("logs", "node_2", "-n", "0").out == ""
    assert local("logs", "netsim").out == "ready\n"
    assert json.loads(local("logs", "coordinator", "--json").out) == {"line": "round 1"}


def test_a_process_that_is_not_there_names_those_that_are(local: Cli) -> None:
    for name in ("node_3", "../secret", "/etc/passwd"):
        refused = local("logs", name)
        assert refused.code == 2
        assert "coordinator" in refused.err
        assert refused.out == ""


def test_the_log_of_a_node_elsewhere_is_said_to_be_there(on_fakes: Cli) -> None:
    refused = on_fakes("logs", "node_2")
    assert (refused.code, refused.out) == (2, "")
    assert "the log of node_2 is on the machine that runs it" in refused.err


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (("node-3",), "--no-log-prefix --tail=50 --index=3 node"),
        (("coordinator", "-n", "5"), "--no-log-prefix --tail=5 coordinator"),
        (("node-12", "--follow"), "--no-log-prefix --tail=50 --follow --index=12 node"),
    ],
)
def test_the_log_of_a_container_is_asked_of_compose(  # noqa: PLR0917  (fixtures)
    cli: Cli, fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], asked: str
) -> None:
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *port\\ coordinator*) echo {fakes.cluster.coordinator};; *port\\ netsim*) echo;; '
        f'*exec*) echo {fakes.cluster.token};; "compose logs "*) shift 2; echo "$*";; esac\n'
    )
    docker.chmod(docker.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(docker.parent), prepend=":")
    (tmp_path / "docker-compose.yml").write_text("")
    assert cli("logs", *arguments).out == f"{asked}\n"
