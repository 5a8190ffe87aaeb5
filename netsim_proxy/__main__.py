"""`hypergpu proxy`: the process around the proxy."""

import asyncio
import os
import signal
from dataclasses import dataclass
from functools import partial

import grpc
import structlog
import uvloop
from prometheus_client import CollectorRegistry

from hypergpu.common import log
from hypergpu.common.command_line import Service
from hypergpu.common.http import HttpServer
from hypergpu.common.malloc import tune_allocator
from hypergpu.common.trace_settings import make_tracer
from hypergpu.common.tracing import Tracer
from hypergpu.netsim_proxy.api import control_service as control
from hypergpu.netsim_proxy.api import metrics
from hypergpu.netsim_proxy.api.health import Health, routes
from hypergpu.netsim_proxy.api.profile_registry import ProfileRegistry
from hypergpu.netsim_proxy.api.reload import Files, Reload
from hypergpu.netsim_proxy.api.schedule import Schedule
from hypergpu.netsim_proxy.io.descriptors import raise_limit
from hypergpu.netsim_proxy.io.lateness import DeliveryLateness
from hypergpu.netsim_proxy.io.link_registry import LinkRegistry
from hypergpu.netsim_proxy.io.pacer import Pacer
from hypergpu.netsim_proxy.io.passthrough import PassThrough
from hypergpu.netsim_proxy.io.realtime import enable_realtime
from hypergpu.netsim_proxy.io.server import Proxy
from hypergpu.netsim_proxy.options import ProxyOptions, ProxySettings, check

_KEPT_BYTES = 4 << 20  # reads are of 256 KiB; more would be memory that an idle proxy never gives back
_CONTROL_GRACE_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """Servers of the proxy, and their shared objects."""

    proxy: Proxy
    pass_through: PassThrough
    control: grpc.aio.Server
    reload: Reload
    health: Health
    lateness: DeliveryLateness
    registry: CollectorRegistry


def run(options: ProxyOptions) -> int:
    """Run the proxy until SIGINT or SIGTERM; return the exit code.

    Raises:
        HyperGPUError: invalid options, or an address or file that cannot be used.
    """
    tune_allocator(_KEPT_BYTES)
    settings = check(options, os.environ)
    log.configure(options.log_level, options.log_format)
    raise_limit()
    tracer = make_tracer("hypergpu-proxy", os.environ)
    try:
        uvloop.run(_serve(options, settings, tracer))
    finally:
        tracer.close()
    return 0


async def _serve(options: ProxyOptions, settings: ProxySettings, tracer: Tracer) -> None:
    """Run the proxy until SIGINT or SIGTERM; SIGHUP rereads its files."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    parts = await _build(options, settings, tracer)
    loop.add_signal_handler(signal.SIGHUP, parts.reload.start)
    http = await _listen(options, settings, parts)
    parts.health.is_accepting = True
    await stop.wait()
    parts.health.is_accepting = False
    await asyncio.gather(parts.pass_through.drain(options.drain_seconds), parts.proxy.drain(options.drain_seconds))
    await parts.control.stop(grace=_CONTROL_GRACE_SECONDS)
    control.unbind(options.control)
    if http is not None:
        http.close()
    parts.lateness.report()


async def _build(options: ProxyOptions, settings: ProxySettings, tracer: Tracer) -> _Parts:
    catalogue = ProfileRegistry(options.upstream_region)
    files = Files(options, settings, catalogue)
    await files.load_profiles()
    lateness = DeliveryLateness(options.lateness_bound_ms / 1000)
    pacer = Pacer(lateness.observe, partial(_enable_realtime, options.realtime), tracer=tracer)
    ports = LinkRegistry(
        pacer,
        catalogue.profile(options.profile, options.region),
        options.seed,
        loss_model=options.loss_model,
        congestion_control=options.congestion_control,
        profiles=catalogue.profile,
        node_profiles=catalogue.of_nodes(options.node_profile or ()),
        region=options.region,
        upstream_bandwidth=settings.upstream_bandwidth,
    )
    schedule = Schedule(ports, pacer)
    await files.load(ports, schedule)
    proxy = Proxy(settings.upstream, ports, pacer, settings.server_tls, settings.upstream_tls, link_map=files.link_map)
    pass_through = PassThrough(
        settings.pass_through_upstream, ports, pacer, link_map=lambda: proxy.link_map, numbers=proxy.numbers
    )
    reload = Reload(files, ports, schedule, proxy)
    return _Parts(
        proxy=proxy,
        pass_through=pass_through,
        control=await control.make_server(ports, schedule, catalogue, settings.tokens, reload),
        reload=reload,
        health=Health(),
        lateness=lateness,
        registry=_registry(ports, lateness),
    )


async def _listen(options: ProxyOptions, settings: ProxySettings, parts: _Parts) -> HttpServer | None:
    """Open every address and print it; the line "listening on" comes last, when clients can connect."""
    control_address = control.bind(parts.control, options.control)
    http = HttpServer(options.http_listen, routes(parts.registry, parts.health)) if options.http_listen else None
    passed_at = [await parts.pass_through.listen(*each) for each in settings.pass_through]
    listening_at = [await parts.proxy.listen(*each) for each in settings.listen]
    await parts.control.start()
    print(f"control on {control_address}", flush=True)
    if http is not None:
        print(f"metrics on {http.address}", flush=True)
    for address in passed_at:
        print(f"passing through on {address}", flush=True)
    for address in listening_at[1:]:
        print(f"also listening on {address}", flush=True)
    if listening_at:
        print(f"listening on {listening_at[0]}", flush=True)
    return http


def _enable_realtime(wanted: bool) -> None:
    structlog.get_logger().info("proxy started", realtime=enable_realtime(wanted))


def _registry(ports: LinkRegistry, lateness: DeliveryLateness) -> CollectorRegistry:
    registry = CollectorRegistry()
    metrics.register(registry, ports, lateness)
    return registry


service = Service("proxy", ProxyOptions, run)
main = service.main


if __name__ == "__main__":
    main()
