"""`hypergpu doctor`: diagnose this machine's setup, with a fix for each failure."""

import asyncio
import platform
import socket
import time
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from hypergpu.cli.cluster_command import TARGET
from hypergpu.cli.path_advice import find_path, path_gains
from hypergpu.client import Client, connect
from hypergpu.common.address import split_address
from hypergpu.common.errors import HyperGPUError, InvalidInput
from hypergpu.common.options import AsJson
from hypergpu.common.tls import Tls
from hypergpu.console import PlainConsole, marked, print_json, progress
from hypergpu.discovery import HOW_TO_START, Cluster
from hypergpu.protos import coordinator_pb2 as pb

_SKEW_SECONDS = 5.0
"""Largest tolerable difference between clocks; more breaks certificates and dashboards."""


_CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")


@dataclass(frozen=True, slots=True)
class Check:
    """Result of one check."""

    name: str
    ok: bool
    found: str
    fix: str = ""


PathName = Annotated[
    str,
    typer.Option(
        "--path",
        metavar="NAME|FILE",
        help="Say whether transfers over a path would gain from BBR: a CSV file of `trace record`, or a profile.",
    ),
]
MessageBytes = Annotated[
    int, typer.Option("--bytes", min=1, max=10**9, metavar="N", help="Size of a transfer over the path.")
]


def doctor(
    context: typer.Context, path: PathName = "", nbytes: MessageBytes = 10_000_000, as_json: AsJson = False
) -> None:
    """Check versions, addresses, token, clock and the path to the coordinator; each failure comes with its fix.

    Example: hypergpu doctor --coordinator train.example.org:50051 --token-file token --path path.csv
    """
    checks = [*_installed(), *_congestion_control()]
    if path:
        checks += [Check("path", True, str(gain)) for gain in path_gains(find_path(path), nbytes)]
    target = TARGET.of(context)
    try:
        cluster = target.locate()
        tls = target.tls(cluster.coordinator) if cluster.coordinator else None
        proxy_tls = target.proxy_tls(cluster.proxy)
    except InvalidInput as error:
        checks.append(Check("cluster", False, str(error), HOW_TO_START))
    else:
        checks += asyncio.run(_cluster(cluster, tls, proxy_tls))
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        console = PlainConsole()
        for check in checks:
            mark = Text("ok  ", "green") if check.ok else Text("FAIL", "red")
            console.print(mark.append(f" {check.name:<12} {check.found}", "default"), soft_wrap=True)
            if check.fix and not check.ok:
                console.print(marked("{space}[yellow]fix:[/] {fix}", space=" " * 18, fix=check.fix), soft_wrap=True)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def _congestion_control() -> list[Check]:
    """Return the congestion control of this host's TCP, where the kernel tells."""
    try:
        used = _CONGESTION_CONTROL.read_text(encoding="ascii").strip()
    except OSError:
        return []
    return [Check("tcp", True, f"this host sends with {used}")]


def _installed() -> list[Check]:
    checks = [Check("python", True, platform.python_version())]
    for package, fix in (
        ("hypergpu", "make install"),
        ("grpcio", "make install"),
        ("torch", "pip install 'hypergpu[train]', or make install in a checkout"),
    ):
        try:
            checks.append(Check(package, True, version(package)))
        except PackageNotFoundError:
            checks.append(Check(package, False, "not installed", fix))
    return checks


async def _cluster(cluster: Cluster, tls: Tls | None, proxy_tls: Tls | None) -> list[Check]:
    checks = []
    if cluster.coordinator:
        fix = "start it, and check that no firewall blocks its port"
        checks.append(_reach("coordinator", cluster.coordinator, fix))
    if cluster.proxy and not cluster.proxy.startswith("unix:"):
        checks.append(_reach("proxy", cluster.proxy, "start it, or leave --proxy out"))
    if not all(check.ok for check in checks[:1]):
        return checks
    async with connect(cluster, tls, proxy_tls) as client:
        calls = _calls(client) if cluster.coordinator else _links(client)
        return [*checks, *[check async for check in calls]]


def _reach(name: str, address: str, fix: str) -> Check:
    host, port = split_address(address)
    began = time.perf_counter()
    try:
        with closing(socket.create_connection((host.strip("[]"), port), timeout=5.0)):
            return Check(name, True, f"{address} answers in {(time.perf_counter() - began) * 1000:.1f} ms")
    except socket.gaierror as error:
        return Check(name, False, f"{host} has no address: {error.strerror}", "check the host name")
    except OSError as error:
        return Check(name, False, f"{address}: {error.strerror or error}", fix)


async def _calls(client: Client) -> AsyncIterator[Check]:
    try:
        began = time.perf_counter()
        status = await client.call(client.control.GetStatus, pb.GetStatusRequest())
        took = (time.perf_counter() - began) * 1000
    except HyperGPUError as error:
        yield Check("token", False, str(error), "give a token of the coordinator, and its certificate authority")
        return
    yield Check("token", True, f"accepted; a call takes {took:.1f} ms")
    yield Check("run", True, f"{status.run_id}: {status.state}, {progress(status)}")
    if status.version:
        same = status.version == version("hypergpu")
        yield Check("version", same, f"the coordinator runs {status.version}", "install the same version on both sides")
    if status.unix_seconds:
        skew = time.time() - status.unix_seconds
        yield Check(
            "clock", abs(skew) < _SKEW_SECONDS, f"{skew:+.1f} s against the coordinator", "let NTP set both clocks"
        )
    try:
        nodes = await client.nodes()
    except HyperGPUError as error:
        yield Check("nodes", True, f"not shown: {error}")
        return
    lost = [node.node_id for node in nodes if node.state == "lost"]
    found = f"{len(nodes)} known" + (f", lost: {', '.join(lost)}" if lost else "")
    yield Check("nodes", bool(nodes) and not lost, found, "read the logs of those nodes, or start some")
    if client.has_proxy:
        async for check in _links(client):
            yield check


async def _links(client: Client) -> AsyncIterator[Check]:
    try:
        yield Check("links", True, f"{len(await client.links())} known to the proxy")
    except HyperGPUError as error:
        yield Check("links", False, str(error), "give the address of the proxy's control API")
