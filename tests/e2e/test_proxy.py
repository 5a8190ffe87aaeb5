"""`hypergpu proxy` as it is started: what it prints, what bad input gets, how it ends."""

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from hypergpu.netsim_proxy.link.traces import Row, format_trace
from hypergpu.path_probe import record
from hypergpu.protos import netsim_pb2 as net
from hypergpu.protos import netsim_pb2_grpc
from tests.e2e.local import Cluster
from tests.patience import patience

pytestmark = pytest.mark.e2e


@contextmanager
def proxy(*arguments: str) -> Iterator[tuple[dict[str, str], subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "hypergpu", "proxy", "--listen=127.0.0.1:0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found: dict[str, str] = {}
        while "listening" not in found:
            word, _, address = process.stdout.readline().strip().partition(" on ")
            assert address, "it ended"
            found[word] = address
        try:
            yield found, process
        finally:
            process.kill()


@pytest.fixture
def slow_begun() -> threading.Event:
    """Set when a slow call has reached the upstream."""
    return threading.Event()


@pytest.fixture
def upstream(slow_begun: threading.Event) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(4))

    def slowly(request: bytes, context: grpc.ServicerContext) -> bytes:
        slow_begun.set()
        time.sleep(0.5)
        return request

    slow: Any = grpc.unary_unary_rpc_method_handler(slowly)
    echo: Any = grpc.unary_unary_rpc_method_handler(lambda request, _: request)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", {"Echo": echo, "Slow": slow}),))
    checks = health.HealthServicer()
    checks.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


def test_same_seed_same_network(upstream: str, tmp_path: Path) -> None:
    scenario = tmp_path / "s.yaml"
    scenario.write_text("links: {far: poor}\nevents: []\n")

    def lost() -> list[int]:
        arguments = ["--profile=unstable", "--seed=7", f"--upstream={upstream}", "--node-profile=n=fast"]
        arguments += [f"--scenario={scenario}", f"--profiles={tmp_path / 'p.yaml'}", "--http-listen=127.0.0.1:0"]
        (tmp_path / "p.yaml").write_text("profiles:\n  fast: {rtt_ms: [1, 2], loss: 0.3}\n")
        with proxy(*arguments) as (found, _), grpc.insecure_channel(found["listening"]) as channel:
            echo: Any = channel.unary_unary("/t.T/Echo")
            out: list[int] = []
            for number in range(30):
                try:
                    echo(b"", metadata=(("x-node-id", "n"),), timeout=patience(5))
                except grpc.RpcError as error:
                    assert error.code() == grpc.StatusCode.UNAVAILABLE
                    out.append(number)
            with urlopen(f"http://{found['metrics']}/metrics") as reply:
                text = reply.read().decode()
            assert f'netsim_losses_total{{cause="loss",link="n"}} {len(out)}.0' in text
            assert 'netsim_profile{link="far",profile="poor"} 1.0' in text
            return out

    first = lost()
    assert first == lost() and 2 <= len(first) <= 18


def test_a_path_is_recorded_as_it_is_and_replays_as_it_was_recorded(upstream: str, tmp_path: Path) -> None:
    file, before = tmp_path / "path.csv", Row(0, 40, 0, 20, 100)

    async def recorded(address: str) -> Row:
        found = record(address, None, seconds=0.2, row_seconds=0.2, calls_per_row=5, probe_bytes=500_000)
        (row,) = [measured.row async for measured in found]
        return row

    def is_close(row: Row) -> bool:
        return row.up_mbit == pytest.approx(before.up_mbit, rel=0.1) and before.rtt_ms < row.rtt_ms < before.rtt_ms + 15

    for _ in range(2):
        file.write_text(format_trace([before]))
        with proxy("--profile=path", f"--profiles={file}", f"--upstream={upstream}") as (found, _):
            # What else the machine does may hold up one measurement, and hardly five in turn.
            rows: list[Row] = []
            while not (rows and is_close(rows[-1])) and len(rows) < 5:
                rows.append(asyncio.run(recorded(found["listening"])))
        assert is_close(rows[-1]), (before, rows)
        before = rows[-1]


def test_sigterm_drains(upstream: str, slow_begun: threading.Event) -> None:
    arguments = ("--profile=direct", f"--upstream={upstream}")
    with proxy(*arguments) as (found, process), grpc.insecure_channel(found["listening"]) as channel:
        slow: Any = channel.unary_unary("/t.T/Slow")
        call = slow.future(b"done", timeout=patience(5))
        assert slow_begun.wait(patience(5))
        process.send_signal(signal.SIGTERM)
        assert call.result() == b"done"
        assert process.wait(patience(5)) == 0


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--upstream=127.0.0.1:1", "--profile=goood"], "did you mean 'good'"),
        (["--upstream=nowhere"], "HOST:PORT"),
        (["--upstream=127.0.0.1:1", "--listen=127.0.0.1:{busy}"], "cannot listen on 127.0.0.1:"),
        (["--upstream=127.0.0.1:1", "--control=127.0.0.1:{busy}"], "cannot listen on 127.0.0.1:"),
        (["--upstream=127.0.0.1:1", "--control=0.0.0.0:0"], "--operator-token"),
        (["--upstream=127.0.0.1:1", "--scenario=none.yaml"], "cannot read none.yaml"),
        (["--upstream=127.0.0.1:1", "--node-profile=n1"], "NODE=PROFILE"),
        (["--upstream=127.0.0.1:1", "--seed=x"], "--seed"),
        (["--upstream=127.0.0.1:1", "--tls-cert=x"], "--tls-key"),
        (["--upstream=127.0.0.1:1", "--tls-client-ca=x"], "--tls-client-ca needs --tls-cert"),
        (["--upstream=127.0.0.1:1", "--upstream-cert=x", "--upstream-tls"], "--upstream-key"),
        (["--upstream=127.0.0.1:1", "--upstream-cert=x", "--upstream-key=y"], "need --upstream-tls"),
        (["--upstream=127.0.0.1:1", "--client-link=10.0.0.0/8"], "expected a key and a link"),
        (["--upstream=127.0.0.1:1", "--client-link=rack=a"], "'rack' is no network"),
        (["--upstream=127.0.0.1:1", "--pass-through=5432"], "HOST:PORT"),
        (["--upstream=127.0.0.1:1", "--control=unix:/dev/null"], "which is no socket"),
        ([], "--upstream"),
    ],
)
def test_bad_input_gets_one_line(cluster: Cluster, arguments: list[str], what: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        busy = [argument.format(busy=server.getsockname()[1]) for argument in arguments]
        process = cluster.start("proxy", "proxy", "--listen=127.0.0.1:0", *busy)
        assert process.wait() == 2, process.text
    assert process.text.count("\n") == 1 and what in process.text


def test_bad_input_is_told_on_the_error_stream() -> None:
    command = [sys.executable, "-m", "hypergpu", "proxy", "--upstream=nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(30), check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_probes_are_answered_beside_connections_that_drip(upstream: str) -> None:
    with proxy(f"--upstream={upstream}", "--http-listen=127.0.0.1:0") as (found, process):
        host, _, port = found["metrics"].rpartition(":")
        dripping = [socket.create_connection((host, int(port))) for _ in range(100)]
        for sock in dripping:
            sock.sendall(b"G")
        for path, told in (("healthz", b"running\n"), ("readyz", b"accepting clients\n")):
            with urlopen(f"http://{found['metrics']}/{path}", timeout=patience(5)) as reply:
                assert reply.read() == told
        status = Path(f"/proc/{process.pid}/status")
        if status.exists():  # no thread per connection
            threads = next(line for line in status.read_text().splitlines() if line.startswith("Threads:"))
            assert int(threads.split()[1]) < 40
        for sock in dripping:
            sock.close()


def test_a_hangup_rereads_the_files_and_drops_no_connection(
    upstream: str, slow_begun: threading.Event, tmp_path: Path
) -> None:
    profiles, link_map = tmp_path / "p.yaml", tmp_path / "map.yaml"
    profiles.write_text("profiles: {lab: {rtt_ms: 1}}\n")
    link_map.write_text("addresses: {127.0.0.0/8: by_address}\n")
    arguments = [f"--upstream={upstream}", f"--profiles={profiles}", "--profile=lab", f"--link-map={link_map}"]
    arguments += ["--listen=127.0.0.1:0=by_port", f"--pass-through=unix:{tmp_path}/tcp.sock=tcp"]
    with (
        proxy(*arguments) as (found, process),
        grpc.insecure_channel(found["listening"]) as channel,
        grpc.insecure_channel(found["also listening"]) as second,
        grpc.insecure_channel(found["passing through"]) as third,
        grpc.insecure_channel(found["control"]) as control,
    ):
        echo: Any = channel.unary_unary("/t.T/Echo")
        slow: Any = channel.unary_unary("/t.T/Slow")
        netsim: Any = netsim_pb2_grpc.NetsimStub(control)
        for each in (channel, second, third):
            one: Any = each.unary_unary("/t.T/Echo")
            assert one(b"x", timeout=patience(5)) == b"x"
        listed = netsim.ListLinks(net.ListLinksRequest()).links
        assert {(link.node_id, link.up.latency_high_ms) for link in listed} == {
            ("by_address", 0.5),
            ("by_port", 0.5),
            ("tcp", 0.5),
        }
        call = slow.future(b"open", timeout=patience(5))
        assert slow_begun.wait(patience(5))
        profiles.write_text("profiles: {lab: {rtt_ms: 80}}\n")
        process.send_signal(signal.SIGHUP)
        assert call.result() == b"open"
        began = time.monotonic()
        assert echo(b"x", timeout=patience(5)) == b"x" and time.monotonic() - began >= 0.08
        profiles.write_text("profiles: {lab: 5}\n")
        process.send_signal(signal.SIGHUP)
        with pytest.raises(grpc.RpcError) as caught:
            netsim.Reload(net.ReloadRequest())
        assert "p.yaml:1" in (caught.value.details() or "") and process.poll() is None
        assert echo(b"x", timeout=patience(5)) == b"x"
