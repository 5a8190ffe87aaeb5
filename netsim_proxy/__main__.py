"""`python -m netsim_proxy`: the command line, and nothing but wiring."""

import asyncio
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from prometheus_client import CollectorRegistry, start_http_server

from common import log
from common.errors import ConfigError, HyperGPUError
from common.malloc import keep_buffers
from common.rpc import bind, split_address
from netsim_proxy import control, metrics
from netsim_proxy.lateness import DEFAULT_BOUND_SECONDS, Lateness
from netsim_proxy.link.outcomes import LossModel
from netsim_proxy.pacer import Pacer
from netsim_proxy.ports import Ports
from netsim_proxy.schedule import Schedule
from netsim_proxy.server import Proxy, ServerTls, UpstreamTls
from netsim_proxy.setup import node_profiles, profile_finder

_KEPT_BYTES = 4 << 20  # reads are of 256 KiB; more would be memory that an idle proxy never gives back
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said."""

    listen: str
    upstream: str
    profile: str
    seed: int
    loss_model: LossModel
    profiles: Path | None
    node_profile: list[str]
    scenario: Path | None
    control: str
    token: str | None
    insecure_control: bool
    metrics: str | None
    server_tls: ServerTls | None
    upstream_tls: UpstreamTls | None
    drain_seconds: float
    lateness_bound_ms: float


async def serve(options: Options) -> None:
    """Run the proxy until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    lateness = Lateness(options.lateness_bound_ms / 1000)
    pacer = Pacer(lateness.observe)
    find = profile_finder(options.profiles)
    ports = Ports(
        pacer,
        find(options.profile),
        options.seed,
        loss_model=options.loss_model,
        profiles=find,
        node_profiles=node_profiles(options.node_profile, find),
    )
    schedule = Schedule(ports, pacer)
    proxy = Proxy(options.upstream, ports, pacer, options.server_tls, options.upstream_tls)
    control_server = control.make_server(ports, schedule, options.token)
    control_address = bind(control_server, _guarded(options.control, options), None)
    address = await proxy.listen(options.listen)
    await control_server.start()
    print(f"control on {control_address}", flush=True)
    if options.metrics is not None:
        print(f"metrics on {_serve_metrics(options.metrics, ports, lateness)}", flush=True)
    print(f"listening on {address}", flush=True)
    await stop.wait()
    await proxy.drain(options.drain_seconds)
    await control_server.stop(grace=0.2)
    lateness.report()


def main(  # noqa: PLR0917 - Typer calls it by keyword
    listen: Annotated[str, typer.Option(help="HOST:PORT for clients; port 0 takes a free one.")],
    upstream: Annotated[str, typer.Option(help="HOST:PORT of the gRPC service.")],
    profile: Annotated[str, typer.Option(help="Profile of links that are not set otherwise.")] = "average",
    seed: Annotated[int, typer.Option(help="The same seed gives the same network.")] = 0,
    loss_model: Annotated[LossModel, typer.Option(help="rpc: calls fail; transport: transfers take longer.")] = (
        LossModel.RPC
    ),
    profiles: Annotated[Path | None, typer.Option(help="YAML file of your own profiles.")] = None,
    node_profile: Annotated[list[str] | None, typer.Option(help="node_1=good; may be repeated.")] = None,
    scenario: Annotated[Path | None, typer.Option(help="YAML file of events to schedule at the start.")] = None,
    control: Annotated[str, typer.Option(help="HOST:PORT of the control API.")] = "127.0.0.1:0",
    token: Annotated[
        str | None,
        typer.Option(envvar=["HYPERGPU_TOKEN", "NETSIM_TOKEN"], help="What callers of the control API must show."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(envvar="HYPERGPU_TOKEN_FILE", help="A file that holds the token.")
    ] = None,
    insecure_control: Annotated[
        bool, typer.Option("--insecure-control", help="Let the control API be reached from elsewhere without a token.")
    ] = False,
    metrics: Annotated[str | None, typer.Option(help="HOST:PORT for Prometheus; 127.0.0.1:0 takes a free one.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate for clients: then they must use TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    upstream_tls: Annotated[bool, typer.Option("--upstream-tls", help="Use TLS to the upstream.")] = False,
    upstream_ca: Annotated[Path | None, typer.Option(help="Authority of the upstream's certificate.")] = None,
    upstream_name: Annotated[str | None, typer.Option(help="Name in it, if not the upstream's host.")] = None,
    drain_seconds: Annotated[float, typer.Option(help="How long open calls may go on after SIGTERM.")] = 10.0,
    lateness_bound_ms: Annotated[
        float, typer.Option(help="Deliveries later than this are reported: the run was slower than configured.")
    ] = DEFAULT_BOUND_SECONDS * 1000,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Put a network between gRPC clients and a service: latency, jitter, loss and bandwidth per calling node."""
    try:
        keep_buffers(_KEPT_BYTES)
        log.configure(log_level)
        if (tls_cert is None) != (tls_key is None):
            raise ConfigError("--tls-cert and --tls-key go together")
        if (upstream_ca or upstream_name) and not upstream_tls:
            raise ConfigError("--upstream-ca and --upstream-name need --upstream-tls")
        uvloop.run(
            serve(
                Options(
                    listen=listen,
                    upstream=upstream,
                    profile=profile,
                    seed=seed,
                    loss_model=loss_model,
                    profiles=profiles,
                    node_profile=node_profile or [],
                    scenario=scenario,
                    control=control,
                    token=token or (_text(token_file).strip() if token_file else None),
                    insecure_control=insecure_control,
                    metrics=metrics,
                    server_tls=ServerTls(tls_cert, tls_key) if tls_cert and tls_key else None,
                    upstream_tls=UpstreamTls(upstream_ca, upstream_name) if upstream_tls else None,
                    drain_seconds=drain_seconds,
                    lateness_bound_ms=lateness_bound_ms,
                )
            )
        )
    except (HyperGPUError, ValueError) as error:
        print(f"netsim_proxy: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _guarded(address: str, options: Options) -> str:
    host, _ = split_address(address)
    if host not in _LOOPBACK and not options.token and not options.insecure_control:
        raise ConfigError(f"--control {address} can be reached from elsewhere: give a --token, or --insecure-control")
    return address


def _serve_metrics(address: str, ports: Ports, lateness: Lateness) -> str:
    host, port = split_address(address)
    registry = CollectorRegistry()
    metrics.register(registry, ports, lateness)
    try:
        server, _ = start_http_server(port, host.strip("[]"), registry)
    except OSError as error:
        raise ConfigError(f"cannot listen on {address}: {error.strerror}") from error
    return f"{host}:{server.server_port}"


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(main)
    app(prog_name="python -m netsim_proxy")
