"""Cost of the proxy, against a direct connection and other proxies, in one run.

`python benchmarks/proxy.py` measures all in four minutes, `python benchmarks/proxy.py throughput rate` these parts;
`--json` prints JSON; `--toxiproxy BINARY` adds toxiproxy, and HAProxy takes part where it is installed. Figures of one
run compare; those of two machines do not.
"""

import argparse
import json
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

from hypergpu.protos import netsim_pb2, netsim_pb2_grpc

MIB = 1 << 20
OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
METADATA = (("x-node-id", "bench"),)


def serve(pipe: Any) -> None:
    """The service: echoes, takes and gives megabytes, and tells how many it has been able to give."""
    given = [0]

    def give(request: bytes, _: Any) -> Iterator[bytes]:
        count, *size = map(int, request.split())
        given[0], part = 0, bytes(size[0] if size else MIB)
        for _ in range(count):
            given[0] += 1
            yield part

    server = grpc.server(futures.ThreadPoolExecutor(128), options=OPTIONS)
    handlers: dict[str, Any] = {
        "Echo": grpc.unary_unary_rpc_method_handler(lambda request, _: request),
        "Take": grpc.stream_unary_rpc_method_handler(lambda parts, _: b"%d" % sum(map(len, parts))),
        "Give": grpc.unary_stream_rpc_method_handler(give),
        "Given": grpc.unary_unary_rpc_method_handler(lambda *_: b"%d" % given[0]),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Bench", handlers),))
    pipe.send(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    server.wait_for_termination()


class Client:
    """The service through one address, and what is measured there."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address, OPTIONS)
        self._echo: Any = self.channel.unary_unary("/bench.Bench/Echo")
        self._take: Any = self.channel.stream_unary("/bench.Bench/Take")
        self._give: Any = self.channel.unary_stream("/bench.Bench/Give")
        self.echo(b"")

    def echo(self, message: bytes) -> float:
        began = time.perf_counter()
        self._echo(message, metadata=METADATA)
        return time.perf_counter() - began

    def up(self, mebibytes: int = 44) -> float:
        """MiB/s of a stream of 1 MiB messages."""
        part, began = bytes(MIB), time.perf_counter()
        self._take((part for _ in range(mebibytes)), metadata=METADATA)
        return mebibytes / (time.perf_counter() - began)

    def down(self, mebibytes: int = 44) -> float:
        began = time.perf_counter()
        received = sum(len(part) for part in self._give(b"%d" % mebibytes, metadata=METADATA))
        return received / MIB / (time.perf_counter() - began)

    def unary_ms(self, calls: int = 200) -> float:
        return statistics.median(self.echo(bytes(100)) for _ in range(calls)) * 1000

    def calls_per_second(self, callers: int = 8, calls: int = 1000) -> float:
        with futures.ThreadPoolExecutor(callers) as pool:
            began = time.perf_counter()
            list(pool.map(lambda _: self.echo(bytes(100)), range(calls)))
            return calls / (time.perf_counter() - began)


@contextmanager
def netsim(upstream: str, *more: str) -> Iterator[tuple[str, int, dict[str, str]]]:
    """Our proxy: its address, process id, and the addresses of `control` and `metrics`."""
    command = [sys.executable, "-m", "hypergpu", "proxy", "--listen=127.0.0.1:0", f"--upstream={upstream}"]
    command += ["--http-listen=127.0.0.1:0", "--seed=1", "--log-level=error", *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found: dict[str, str] = {}
        while "listening" not in found:
            word, _, address = process.stdout.readline().strip().partition(" on ")
            found[word] = address
        try:
            yield found["listening"], process.pid, found
        finally:
            process.terminate()


@contextmanager
def haproxy(upstream: str) -> Iterator[str]:
    """HAProxy in TCP mode, one thread, default buffers."""
    port = _free_port()
    text = f"""global
  nbthread 1
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
listen bench
  bind 127.0.0.1:{port}
  server one {upstream}
"""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "haproxy.cfg"
        file.write_text(text)
        with _running(["haproxy", "-db", "-f", str(file)]):
            yield f"127.0.0.1:{port}"


@contextmanager
def toxiproxy(binary: str, upstream: str) -> Iterator[str]:
    """toxiproxy-server without toxics."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "toxiproxy.json"
        file.write_text(json.dumps([{"name": "bench", "listen": f"127.0.0.1:{port}", "upstream": upstream}]))
        with _running([binary, "-config", str(file), "-port", str(_free_port())]):
            yield f"127.0.0.1:{port}"


def throughput(rounds: int, toxiproxy_binary: str | None) -> dict[str, dict[str, float]]:
    """Medians of each way, measured in turn so that what disturbs one disturbs all."""
    with ExitStack() as stack:
        upstream = stack.enter_context(service())
        ways = {"direct": upstream}
        ours, pid, _ = stack.enter_context(netsim(upstream, "--profile=direct"))
        ways["netsim"] = ours
        if shutil.which("haproxy"):
            ways["haproxy"] = stack.enter_context(haproxy(upstream))
        if toxiproxy_binary:
            ways["toxiproxy"] = stack.enter_context(toxiproxy(toxiproxy_binary, upstream))
        clients = {name: Client(address) for name, address in ways.items()}
        figures: dict[str, dict[str, list[float]]] = {name: {} for name in clients}
        for _ in range(rounds):
            for measure in ("up", "down", "unary_ms", "calls_per_second"):
                for name, client in clients.items():
                    figures[name].setdefault(measure, []).append(getattr(client, measure)())
        out = {
            name: {measure: statistics.median(values) for measure, values in measures.items()}
            for name, measures in figures.items()
        }
        base = out["direct"]
        for name in ways:
            row = out[name]
            for measure in ("up", "down", "calls_per_second"):
                # The ratio is taken within each round, so that a slow minute of the machine does not count.
                pairs = zip(figures[name][measure], figures["direct"][measure], strict=True)
                row[f"{measure}_ratio"] = statistics.median(ours / direct for ours, direct in pairs)
            row["added_ms"] = row["unary_ms"] - base["unary_ms"]
        out["netsim"]["resident_mb"] = _resident_mb(pid)
        for client in clients.values():
            client.channel.close()
    return out


def accuracy(calls: int = 100, rounds: int = 20) -> dict[str, float]:
    """Return the lateness of deliveries of 100 simultaneous RPCs, by the proxy's count, and the fastest round trip."""
    with service() as upstream, netsim(upstream, "--profile=good", "--loss-model=transport") as (address, _, found):
        client = Client(address)
        fastest = 1.0
        with futures.ThreadPoolExecutor(calls) as pool:
            for _ in range(rounds):
                fastest = min(fastest, *pool.map(client.echo, [b"x"] * calls))
        buckets = _buckets(found["metrics"])
        client.channel.close()
    total = buckets[-1][1]
    return {
        "deliveries": total,
        "late_p50_ms_at_most": next(bound for bound, count in buckets if count >= 0.5 * total) * 1000,
        "late_p99_ms_at_most": next(bound for bound, count in buckets if count >= 0.99 * total) * 1000,
        "fastest_round_trip_ms": fastest * 1000,  # the profile's is 10 ms
    }


def rate(streams: int, seconds: float = 2.0) -> dict[str, float]:
    """The rate that several streams of one link, on up to four connections, get together once they flow."""
    share = 0.02  # of the 10 Gbit/s of `perfect`, which loses nothing
    received = [0] * streams

    def read(index: int, call: Any) -> None:
        with suppress(grpc.RpcError):
            for part in call:
                received[index] += len(part)

    with service() as upstream, netsim(upstream, "--profile=perfect") as (address, _, found):
        clients = [Client(address) for _ in range(min(streams, 4))]
        with grpc.insecure_channel(found["control"], OPTIONS) as channel:
            event = netsim_pb2.Event(type="bandwidth_collapse", nodes=["*"], factor=share)
            stub: Any = netsim_pb2_grpc.NetsimStub(channel)
            stub.Inject(event)
        calls = [clients[i % len(clients)]._give(b"1000000 32768", metadata=METADATA) for i in range(streams)]
        with futures.ThreadPoolExecutor(streams) as pool:
            pool.map(read, range(streams), calls)
            time.sleep(1.0)
            before, began = sum(received), time.perf_counter()
            time.sleep(seconds)
            mbit = (sum(received) - before) * 8 / (time.perf_counter() - began) / 1e6
            for call in calls:
                call.cancel()
        for client in clients:
            client.channel.close()
    return {"configured_mbit": 10_000 * share, "measured_mbit": mbit}


def ahead(profile: str | None, warm_mebibytes: int, slow_mebibytes: int = 0) -> int:
    """MiB by which a writer is ahead of a reader that stopped after so many, the last of them one each 50 ms.

    Without the proxy where `profile` is None.
    """
    with ExitStack() as stack:
        address = upstream = stack.enter_context(service())
        if profile is not None:
            address = stack.enter_context(netsim(upstream, f"--profile={profile}", "--loss-model=transport"))[0]
        client, beside = Client(address), Client(upstream)
        call = client._give(b"100000", metadata=METADATA)
        for left in range(warm_mebibytes, 0, -1):
            next(call)
            if left <= slow_mebibytes:
                time.sleep(0.05)
        ask: Any = beside.channel.unary_unary("/bench.Bench/Given")
        last, given = -1, 0
        while given != last:
            time.sleep(0.5)
            last, given = given, int(ask(b""))
        call.cancel()
        for each in (client, beside):
            each.channel.close()
    return given - warm_mebibytes


def stalled(seconds: float = 2.0) -> dict[str, float]:
    """Resident memory while readers stand still, and its slope under traffic that is delayed."""
    with service() as upstream, netsim(upstream, "--profile=perfect") as (address, pid, _):
        clients = [Client(address) for _ in range(4)]
        before = _resident_mb(pid)
        calls = [client._give(b"200", metadata=METADATA) for client in clients]
        for call in calls:
            next(call)
        time.sleep(seconds)
        held = _resident_mb(pid)
        for call in calls:
            call.cancel()
        points = []
        for _ in range(30):
            for client in clients:
                client.down(8)
                client.up(8)
                client.unary_ms(20)
            points.append(_resident_mb(pid))
        for client in clients:
            client.channel.close()
    late = points[10:]  # the first rounds still fill buffers
    slope = statistics.linear_regression(range(len(late)), late).slope
    return {"before_mb": before, "stalled_mb": held, "after_mb": points[-1], "slope_mb_per_64_mib": slope}


@contextmanager
def service() -> Iterator[str]:
    """The service in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()


@contextmanager
def _running(command: list[str]) -> Iterator[None]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        time.sleep(0.5)
        try:
            yield
        finally:
            process.terminate()


def _free_port() -> int:
    import socket  # noqa: PLC0415

    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def _resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def _buckets(address: str) -> list[tuple[float, float]]:
    from urllib.request import ProxyHandler, build_opener  # noqa: PLC0415

    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415

    with build_opener(ProxyHandler({})).open(f"http://{address}/metrics") as reply:
        families = text_string_to_metric_families(reply.read().decode())
    samples = [s for f in families if f.name == "netsim_pacer_lateness_seconds" for s in f.samples]
    return [(float(s.labels["le"]), s.value) for s in samples if s.name.endswith("_bucket")]


def stopped_readers() -> dict[str, int]:
    """Return the largest lead of writers in MiB: the maximum of two runs each."""
    kinds = {"cold": (1, 0), "warm": (256, 0), "slow": (60, 40)}
    profiles = (None, "direct", "perfect", "good")
    tries = [(profile, kind) for profile in profiles for kind in kinds if (profile, kind) != ("good", "warm")]
    return {
        f"{profile or 'no proxy'}, {kind}": max(ahead(profile, *kinds[kind]) for _ in range(2))
        for profile, kind in tries
    }


def rates() -> dict[str, float]:
    """Throughput of one stream and of several, in Mbit/s on a link of 200."""
    return {f"{streams}_streams": rate(streams)["measured_mbit"] for streams in (1, 4, 16)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without one")
    parser.add_argument("--rounds", type=int, default=7, help="how often each figure is measured")
    parser.add_argument("--toxiproxy", metavar="BINARY", help="toxiproxy-server, to be measured too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    binary = options.toxiproxy or shutil.which("toxiproxy-server")
    result: dict[str, Any] = {}
    for part in options.parts or PARTS:
        print(f"measuring {part} ...", file=sys.stderr)
        result[part] = throughput(options.rounds, binary) if part == "throughput" else PARTS[part]()
        if not options.json:
            show(part, result[part])
    if options.json:
        print(json.dumps(result, indent=2))


PARTS: dict[str, Any] = {
    "throughput": throughput,
    "accuracy": accuracy,
    "rate": rates,
    "ahead_mib": stopped_readers,
    "memory": stalled,
}


def show(part: str, result: dict[str, Any]) -> None:
    """A table, or a line."""
    if part != "throughput":
        print(part, ", ".join(f"{key} {value:.4g}" for key, value in result.items()))
        return
    print(f"{'':12}{'up':>12}{'down':>12}{'8 callers':>12}{'unary':>10}{'added':>10}")
    for name, row in result.items():
        ratios = "".join(f"{row[f'{measure}_ratio']:>12.2f}" for measure in ("up", "down", "calls_per_second"))
        print(f"{name:12}{ratios}{row['unary_ms']:>7.2f} ms{row['added_ms']:>7.2f} ms")
    print(f"netsim resident: {result['netsim']['resident_mb']:.1f} MB")


if __name__ == "__main__":
    main()
