"""The control API: decode, call, encode."""

import asyncio
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import grpc

from hypergpu.common import grpc_server, rpc
from hypergpu.common.call_budgets import CallBudgets
from hypergpu.common.clock import monotonic
from hypergpu.common.errors import ConfigError, InvalidInput, ResourceExhausted, UnknownName
from hypergpu.common.roles import ROLES, Role, role_check
from hypergpu.common.text import printable
from hypergpu.common.token import TokenSource
from hypergpu.netsim_proxy.api import convert
from hypergpu.netsim_proxy.api.profile_registry import ProfileRegistry
from hypergpu.netsim_proxy.api.schedule import Entry, Schedule
from hypergpu.netsim_proxy.io.addresses import Address, remove_stale
from hypergpu.netsim_proxy.io.link_registry import LinkRegistry
from hypergpu.netsim_proxy.link.outcomes import LossModel
from hypergpu.protos import netsim_pb2 as pb
from hypergpu.protos import netsim_pb2_grpc

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Netsim"].full_name
_WATCH_SECONDS: Final = (0.1, 1.0)
"""Shortest interval of `Watch`, which is also the default."""
MAX_WATCHERS: Final = 16
_MAX_CALLS: Final = 256
_MAX_SCENARIO_NAME: Final = 4096
"""Characters of a scenario's name, as in the longest path of Linux: clients name a scenario by its file."""
_AT_ONCE: Final = 50
"""Links or events described in one iteration of the event loop."""

ReloadFiles = Callable[[], Awaitable[list[str]]]


class ControlServicer(netsim_pb2_grpc.NetsimServicer):
    """Servicer of `hypergpu.netsim.v1.Netsim`, on the links and the schedule."""

    def __init__(
        self, links: LinkRegistry, schedule: Schedule, catalogue: ProfileRegistry, reload: ReloadFiles | None = None
    ) -> None:
        self._links, self._schedule, self._catalogue, self._reload = links, schedule, catalogue, reload
        self._loading = asyncio.Lock()
        self._watchers = 0
        self._seen: pb.LinkList | None = None
        self._seen_at = -math.inf

    async def ListLinks(self, request: pb.ListLinksRequest, context: Any) -> pb.LinkList:  # noqa: N802
        """Return all links with their counters."""
        return await self._list_links()

    async def SetProfile(self, request: pb.SetProfileRequest, context: Any) -> pb.LinkInfo:  # noqa: N802
        """Change the profile or loss model of a link permanently."""
        if not request.node_id:
            raise InvalidInput('SetProfile needs a node_id, or "*" for every link')
        convert.require_name(request.node_id)
        links = self._links
        loss_model = _loss_model(request.loss_model) if request.loss_model else None
        if request.profile:
            profile = await self._catalogue.described(request.profile, request.region)
            links.set_profile(request.node_id, profile, request.region)
        elif not request.loss_model:
            raise InvalidInput("SetProfile needs a profile, a loss model or both")
        elif request.region:
            raise InvalidInput("a region also needs a profile, to which its distance is added")
        if loss_model is not None:
            links.set_loss_model(request.node_id, loss_model)
        await links.settled()
        return convert.link_to_proto(links.of(None if request.node_id == "*" else request.node_id))

    async def SetUpstreamBandwidth(self, request: pb.SetUpstreamBandwidthRequest, context: Any) -> pb.UpstreamInfo:  # noqa: N802
        """Change the bandwidth of the upstream's access link."""
        links = self._links
        links.set_upstream_bandwidth(convert.bandwidth_from_proto(request, links.access.bandwidth))
        await links.settled()
        return convert.upstream_to_proto(links.access)

    async def Inject(self, request: pb.Event, context: Any) -> pb.EventReply:  # noqa: N802
        """Begin an event now."""
        event = convert.event_from_proto(request)
        self._links.require(event)
        entry = self._schedule.add(event)
        await self._schedule.settled()
        return convert.reply_to_proto(entry)

    async def Schedule(self, request: pb.ScheduleRequest, context: Any) -> pb.EventReply:  # noqa: N802
        """Schedule an event."""
        event = convert.event_from_proto(request.event)
        by_round = request.WhichOneof("due") == "round"
        event = replace(event, scheduled_time=None if by_round else request.after_seconds)
        self._links.require(event)
        entry = self._schedule.add(event, event.scheduled_time, round_number=request.round if by_round else None)
        return convert.reply_to_proto(entry)

    async def ListScheduled(self, request: pb.ListScheduledRequest, context: Any) -> pb.ScheduleList:  # noqa: N802
        """Return the scheduled, active and recent events."""
        return await _listed(self._schedule.entries())

    async def Clear(self, request: pb.ClearRequest, context: Any) -> pb.ClearReply:  # noqa: N802
        """End active events and cancel scheduled ones."""
        if request.node_id:
            convert.require_name(request.node_id)
        cleared = self._schedule.clear(request.node_id or None)
        await self._schedule.settled()
        return pb.ClearReply(cleared=cleared)

    async def AnnounceRound(self, request: pb.AnnounceRoundRequest, context: Any) -> pb.AnnounceRoundReply:  # noqa: N802
        """Begin the events of a round."""
        self._schedule.announce_round(request.round)
        await self._schedule.settled()
        return pb.AnnounceRoundReply()

    async def LoadScenario(self, request: pb.LoadScenarioRequest, context: Any) -> pb.ScheduleList:  # noqa: N802
        """Apply the links and events of a scenario."""
        name = request.name or "scenario"
        if len(name) > _MAX_SCENARIO_NAME:
            raise InvalidInput(f"the scenario's name has {len(name):,} characters: {_MAX_SCENARIO_NAME:,} are allowed")
        async with self._loading:
            entries = await self._catalogue.load_scenario(request.yaml, printable(name), self._links, self._schedule)
        return await _listed(entries)

    async def Reload(self, request: pb.ReloadRequest, context: Any) -> pb.ReloadReply:  # noqa: N802
        """Reload the proxy's files."""
        if self._reload is None:
            raise InvalidInput("this proxy was started without files")
        return pb.ReloadReply(changed=await self._reload())

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.LinkList]:  # noqa: N802
        """Stream all links periodically."""
        shortest, default = _WATCH_SECONDS
        interval = max(shortest, request.interval_seconds) if request.interval_seconds else default
        if self._watchers >= MAX_WATCHERS:
            raise ResourceExhausted(f"{MAX_WATCHERS} clients watch the links already: end another first")
        self._watchers += 1
        try:
            while True:
                if self._seen is None or monotonic() - self._seen_at >= shortest:
                    self._seen_at = monotonic()
                    self._seen = await self._list_links()
                yield self._seen
                await asyncio.sleep(interval)
        finally:
            self._watchers -= 1

    async def _list_links(self) -> pb.LinkList:
        await self._links.settled()
        listed = pb.LinkList(upstream=convert.upstream_to_proto(self._links.access))
        for count, paced in enumerate(list(self._links), 1):
            listed.links.append(convert.link_to_proto(paced))
            if count % _AT_ONCE == 0:
                await asyncio.sleep(0)
        return listed


async def _listed(entries: Iterable[Entry]) -> pb.ScheduleList:
    listed = pb.ScheduleList()
    for count, entry in enumerate(entries, 1):
        listed.events.append(convert.entry_to_proto(entry))
        if count % _AT_ONCE == 0:
            await asyncio.sleep(0)
    return listed


def _loss_model(name: str) -> LossModel:
    try:
        return LossModel(name)
    except ValueError:
        raise UnknownName("loss model", name, LossModel) from None


async def make_server(
    links: LinkRegistry,
    schedule: Schedule,
    catalogue: ProfileRegistry,
    tokens: Mapping[Role, TokenSource],
    reload: ReloadFiles | None = None,
    *,
    budgets: CallBudgets | None = None,
) -> grpc.aio.Server:
    """Return a server with the control API, health and reflection, still to be bound and started."""
    budgets = budgets or CallBudgets()
    server = await grpc_server.make_server(
        [SERVICE],
        admit=_admission(tokens, budgets),
        max_concurrent_rpcs=_MAX_CALLS,
    )
    netsim_pb2_grpc.add_NetsimServicer_to_server(ControlServicer(links, schedule, catalogue, reload), server)
    return server


def _admission(tokens: Mapping[Role, TokenSource], budgets: CallBudgets) -> grpc_server.Admit:
    """Return the check of a caller's role and budget."""
    require_role = role_check(tokens)

    def admit(method: str, context: grpc_server.Context) -> None:
        require_role(method, context)
        budgets.user(grpc_server.peer_host(context), controls=ROLES.get(method) == (Role.OPERATOR,))

    return admit


def bind(server: grpc.aio.Server, address: str) -> str:
    """Let the server listen on HOST:PORT or unix:PATH; return the address with the real port.

    The Unix socket is for the user who runs the proxy alone.

    Raises:
        ConfigError: an address that is malformed or in use.
    """
    path = Address.parse(address).path
    if path is None:
        return rpc.bind(server, address, None)
    remove_stale(path)
    before = os.umask(0o177)
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {address}: {error}") from error
    finally:
        os.umask(before)
    return address


def unbind(address: str) -> None:
    """Remove the file of a Unix socket."""
    Address.parse(address).remove()
