"""Any gRPC service behind the proxy: here gRPC's own health service, called directly and through a poor link.

The proxy parses no message and needs no code of the service. A client chooses its link by the metadata `x-node-id`.
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import median

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

CALLS = 5


@contextmanager
def service() -> Iterator[str]:
    """Run the service; yield its address."""
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@contextmanager
def proxy(upstream: str, profile: str) -> Iterator[str]:
    """Run `hypergpu proxy` before a service; yield its address."""
    ports = ("--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0")
    command = [sys.executable, "-m", "hypergpu", "proxy", *ports, f"--upstream={upstream}", f"--profile={profile}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = iter(process.stdout.readline, "")
        try:
            yield next(found[1] for line in printed if (found := re.match(r"listening on (\S+)", line)))
        finally:
            process.terminate()


def milliseconds(address: str) -> float:
    """Return the median time of a call; one that the link loses counts as long as it took to fail."""
    taken = []
    with grpc.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]  # generated without types
        grpc.channel_ready_future(channel).result(timeout=60)
        for _ in range(CALLS):
            began = time.perf_counter()
            try:
                check(health_pb2.HealthCheckRequest(), metadata=[("x-node-id", "client_1")])
            except grpc.RpcError as error:
                print(f"lost: {error.code()}")
            taken.append(1000 * (time.perf_counter() - began))
    return median(taken)


def main() -> None:
    """Print the time of a call on both paths."""
    with service() as address, proxy(address, "poor") as behind:
        print(f"direct: {milliseconds(address):.1f} ms")
        print(f"through a poor link: {milliseconds(behind):.1f} ms")


if __name__ == "__main__":
    main()
