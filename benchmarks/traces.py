"""Cost of traces: CPU time and rounds of real processes with and without them, and of the spans alone.

A coordinator, a proxy and nodes train on this machine, in turn with and without a receiver of spans.
"""

import argparse
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages

from hypergpu.common.otel_tracer import OtelTracer, otlp_exporter

SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
WARM_UP_ROUNDS = 5


def receive(connection: Any) -> None:
    """Be a receiver of spans that counts them; print its endpoint, and their number when asked."""
    count = 0

    def take(request: Any, _context: Any) -> Any:
        nonlocal count
        count += sum(len(scope.spans) for each in request.resource_spans for scope in each.scope_spans)
        return messages.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    export = grpc.unary_unary_rpc_method_handler(
        take,
        messages.ExportTraceServiceRequest.FromString,
        messages.ExportTraceServiceResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Export": export}),))
    connection.send(f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    with suppress(EOFError):
        while connection.recv():
            connection.send(count)


class Measured(NamedTuple):
    round_seconds: float
    cpu_seconds: float
    """CPU time of all processes, for a round."""


def start(folder: Path, environment: Mapping[str, str], *arguments: str) -> tuple[subprocess.Popen[bytes], Path]:
    log = folder / f"{arguments[0]}-{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        command = [sys.executable, "-P", "-m", "hypergpu", *arguments]
        return subprocess.Popen(command, env={**environment}, stdout=output, stderr=output), log


def address(log: Path) -> str:
    while not (found := re.search(r"^listening on (\S+)$", log.read_text(), re.MULTILINE)):
        time.sleep(0.05)
    return found[1]


def run(nodes: int, rounds: int, endpoint: str) -> Measured:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment |= {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint} if endpoint else {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as ended:
        folder = Path(name)
        processes = []

        def begin(*arguments: str) -> Path:
            process, log = start(folder, environment, *arguments)
            ended.callback(end, process)
            processes.append(process.pid)
            return log

        here = ("--http-listen=127.0.0.1:0", "--insecure")
        settings = ("--rounds=0", f"--min-nodes={nodes}", "--policy=none", f"--out={folder / 'run'}")
        log = begin("coordinator", "--listen=127.0.0.1:0", *here, *settings)
        log = begin("proxy", "--listen=127.0.0.1:0", f"--upstream={address(log)}", "--profile=good")
        joined = [f"--coordinator={address(log)}", f"--set=node.state_dir={folder / 'leases'}", "--insecure"]
        for number in range(nodes):
            begin("node", *joined, f"--node-id=n{number}")
        first, before = wait_for(folder, WARM_UP_ROUNDS), sum(map(cpu_of, processes))
        last, after = wait_for(folder, first + rounds), sum(map(cpu_of, processes))
        rows = [json.loads(line) for line in (folder / "run/rounds.jsonl").read_text().splitlines()[first:last]]
        return Measured(statistics.median(row["seconds"] for row in rows), (after - before) / (last - first))


def wait_for(folder: Path, rounds: int) -> int:
    """Return how many rounds are done, as soon as there are so many."""
    file = folder / "run/rounds.jsonl"
    while not file.exists() or (done := file.read_bytes().count(b"\n")) < rounds:
        time.sleep(0.02)
    return done


def cpu_of(pid: int) -> float:
    """Return the CPU time of a process so far, of all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


def span_microseconds(endpoint: str, count: int = 20_000) -> tuple[float, float]:
    """Return the CPU time of a span on the thread that has it, and on all, until it is sent."""
    tracer = OtelTracer(otlp_exporter(endpoint), "benchmark", {})
    root = tracer.begin("round").context
    began, began_here = time.process_time(), time.thread_time()
    for number in range(count):
        tracer.begin("work", root, round=number, node="node_1", attempt=1, codec="none").end(outcome="accepted")
        if number % 500 == 0:
            time.sleep(0.02)  # the queue is bounded
    here = time.thread_time() - began_here
    tracer.close()
    return 1e6 * here / count, 1e6 * (time.process_time() - began) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=3, help="0 measures the spans alone")
    options = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    multiprocessing.get_context("spawn").Process(target=receive, args=(theirs,), daemon=True).start()
    endpoint = ours.recv()
    here, everywhere = span_microseconds(endpoint)
    print(f"a span: {here:.0f} µs on the thread that has it, {everywhere:.0f} µs of CPU time with its delivery")
    if not options.pairs:
        return
    found: dict[bool, list[Measured]] = {False: [], True: []}
    for _ in range(options.pairs):
        for traced in (False, True):
            found[traced].append(run(options.nodes, options.rounds, endpoint if traced else ""))
            print(f"traces {'on ' if traced else 'off'}: {found[traced][-1]}", flush=True)
    ours.send(True)
    print(f"{ours.recv():,} spans were received")
    for name in Measured._fields:
        off, on = (statistics.median(getattr(each, name) for each in found[traced]) for traced in (False, True))
        print(f"{name}: off {1000 * off:.1f} ms, on {1000 * on:.1f} ms: {100 * (on / off - 1):+.1f} %")


if __name__ == "__main__":
    main()
