"""`hypergpu proxy`: nothing but wiring."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial

import structlog
import uvloop
from prometheus_client import CollectorRegistry

from hypergpu.common import log
from hypergpu.common.errors import HyperGPUError
from hypergpu.common.http import HttpServer
from hypergpu.common.malloc import tune_allocator
from hypergpu.common.text import one_line
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
from hypergpu.netsim_proxy.options import parse

_KEPT_BYTES = 4 << 20  # reads are of 256 KiB; more would be memory that an idle proxy never gives back


async def serve(options: argparse.Namespace) -> None:
    """Run the proxy until SIGINT or SIGTERM; SIGHUP rereads its files."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    catalogue = ProfileRegistry(options.upstream_region)
    files = Files(options, catalogue)
    await files.load_profiles()
    lateness = DeliveryLateness(options.lateness_bound_ms / 1000)
    pacer = Pacer(lateness.observe, partial(_enable_realtime, options.realtime))
    ports = LinkRegistry(
        pacer,
        catalogue.profile(options.profile, options.region),
        options.seed,
        loss_model=options.loss_model,
        profiles=catalogue.profile,
        node_profiles=catalogue.of_nodes(options.node_profile),
        region=options.region,
    )
    schedule = Schedule(ports, pacer)
    await files.load(ports, schedule)
    proxy = Proxy(options.upstream, ports, pacer, options.server_tls, options.upstream_tls, link_map=files.link_map)
    passing = PassThrough(
        options.pass_through_upstream or options.upstream,
        ports,
        pacer,
        link_map=lambda: proxy.link_map,
        numbers=proxy.numbers,
    )
    reload = Reload(files, ports, schedule, proxy)
    loop.add_signal_handler(signal.SIGHUP, reload.start)
    control_server = await control.make_server(ports, schedule, catalogue, options.token, reload)
    control_address = control.bind(control_server, options.control)
    health = Health()
    http = HttpServer(options.metrics, routes(_registry(ports, lateness), health)) if options.metrics else None
    passed_at = [await passing.listen(*each) for each in options.pass_through]
    listening_at = [await proxy.listen(*each) for each in options.listen]
    await control_server.start()
    print(f"control on {control_address}", flush=True)
    if http is not None:
        print(f"metrics on {http.address}", flush=True)
    for address in passed_at:
        print(f"passing through on {address}", flush=True)
    for address in listening_at[1:]:
        print(f"also listening on {address}", flush=True)
    if listening_at:
        print(f"listening on {listening_at[0]}", flush=True)
    health.is_accepting = True
    await stop.wait()
    health.is_accepting = False
    await asyncio.gather(passing.drain(options.drain_seconds), proxy.drain(options.drain_seconds))
    await control_server.stop(grace=0.2)
    control.unbind(options.control)
    if http is not None:
        http.close()
    lateness.report()


def _enable_realtime(realtime: bool) -> None:
    structlog.get_logger().info("the network delays what passes", realtime=enable_realtime(realtime))


def _registry(ports: LinkRegistry, lateness: DeliveryLateness) -> CollectorRegistry:
    registry = CollectorRegistry()
    metrics.register(registry, ports, lateness)
    return registry


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the service; the arguments default to those of the process. Exits with 2 after bad input."""
    try:
        tune_allocator(_KEPT_BYTES)
        options = parse(sys.argv[1:] if arguments is None else arguments, os.environ)
        log.configure(options.log_level)
        raise_limit()
        uvloop.run(serve(options))
    except HyperGPUError as error:
        print(f"netsim_proxy: {one_line(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
