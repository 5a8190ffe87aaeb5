"""A real application of other people behind the proxy: etcd's own client in Go reads, writes, watches and locks."""

import base64
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from hypergpu.protos import netsim_pb2, netsim_pb2_grpc
from tests.e2e.test_proxy import proxy
from tests.patience import patience

ETCD, ETCDCTL = shutil.which("etcd"), shutil.which("etcdctl")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not (ETCD and ETCDCTL),
        reason="NO FOREIGN APPLICATION IS TESTED: needs etcd (apt-get install etcd-server etcd-client)",
    ),
]


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server."""
    folder = tmp_path_factory.mktemp("etcd")
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        client, peer = (f"http://127.0.0.1:{free.getsockname()[1]}" for free in (one, other))
    command = [str(ETCD), f"--data-dir={folder}", f"--listen-client-urls={client}", f"--advertise-client-urls={client}"]
    command += [f"--listen-peer-urls={peer}", "--log-level=error"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        ctl(client, "endpoint", "health", within=30.0)
        yield client.removeprefix("http://")
        server.kill()


def ctl(address: str, *arguments: str, text: str = "", within: float = 0.0) -> str:
    """What etcdctl prints; it must succeed, at the latest `within` seconds from now."""
    until = time.monotonic() + within
    while True:
        command = [str(ETCDCTL), f"--endpoints={address}", *arguments]
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=patience(60),
            env={"ETCDCTL_API": "3"},
            check=False,
        )
        if done.returncode == 0 or time.monotonic() > until:
            assert done.returncode == 0, done.stderr
            return done.stdout


@pytest.mark.parametrize("network", ["--profile=direct", "--profile=perfect", "--profile=good --loss-model=transport"])
def test_etcd_works_as_without_a_proxy(etcd: str, network: str) -> None:
    with proxy(f"--upstream={etcd}", *network.split()) as (found, _):
        address = found["listening"]
        ctl(address, "put", "big", "v" * 100_000)
        assert ctl(address, "get", "big", "--print-value-only").strip() == "v" * 100_000
        lease = ctl(address, "lease", "grant", "60").split()[1]
        ctl(address, "put", f"--lease={lease}", "leased", "x")
        assert "keepalived" in ctl(address, "lease", "keep-alive", "--once", lease)
        ctl(address, "lease", "revoke", lease)
        assert ctl(address, "get", "leased") == ""
        transaction = 'version("big") > "0"\n\nput big yes\n\nput big no\n\n'
        assert ctl(address, "txn", text=transaction).startswith("SUCCESS")
        assert ctl(address, "get", "big", "--print-value-only") == "yes\n"
        assert ctl(address, "lock", "mine", "/bin/echo", "inside") == "inside\n"


def test_watch_goes_on_after_a_disconnection_and_misses_nothing(etcd: str) -> None:
    with proxy(f"--upstream={etcd}", "--profile=perfect") as (found, _):
        address = f"--endpoints={found['listening']}"
        command = [str(ETCDCTL), address, "watch", "--prefix", "--rev=1", "--write-out=json", "seen/"]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"ETCDCTL_API": "3"}) as watch,
            grpc.insecure_channel(found["control"]) as channel,
        ):
            control: Any = netsim_pb2_grpc.NetsimStub(channel)
            for number in range(3):
                ctl(etcd, "put", f"seen/{number}", "before")
            seen = next_keys(watch, 3)
            control.Inject(netsim_pb2.Event(type="disconnect", nodes=["*"], mode="reset", duration_seconds=0.3))
            for number in range(3, 6):
                ctl(etcd, "put", f"seen/{number}", "while it is cut off")
            seen += next_keys(watch, 3)
            watch.kill()
    assert seen == [f"seen/{number}" for number in range(6)]


def next_keys(watch: "subprocess.Popen[str]", count: int) -> list[str]:
    assert watch.stdout is not None
    keys: list[str] = []
    while len(keys) < count:
        events = json.loads(watch.stdout.readline())["Events"]
        keys += [base64.b64decode(event["kv"]["key"]).decode() for event in events]
    return keys
