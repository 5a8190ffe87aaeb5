"""Registry of the links by node id. A link is created when its node is first seen or configured."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import structlog

from hypergpu.common.errors import NotFound, ResourceExhausted, suggest
from hypergpu.netsim_proxy.config.bounds import MAX_LINKS
from hypergpu.netsim_proxy.io.pacer import Pacer
from hypergpu.netsim_proxy.io.sweep import Sweep
from hypergpu.netsim_proxy.link.access_lane import NO_LIMIT, AccessLink, UpstreamBandwidth
from hypergpu.netsim_proxy.link.conditions import Blockage, one_way
from hypergpu.netsim_proxy.link.congestion import CongestionControl
from hypergpu.netsim_proxy.link.effect import no_effect_reason
from hypergpu.netsim_proxy.link.events import ALL, UPSTREAM, DisconnectMode, EventDirection, EventType, NetworkEvent
from hypergpu.netsim_proxy.link.link import Link
from hypergpu.netsim_proxy.link.outcomes import LossModel
from hypergpu.netsim_proxy.link.profiles import Profile, find_profile
from hypergpu.netsim_proxy.link.regions import keep_distance
from hypergpu.netsim_proxy.relay.hosts import Hosts
from hypergpu.netsim_proxy.relay.paced_link import PacedLink

log = structlog.get_logger()

DEFAULT_LINK: Final = "default"
"""Name of the link of calls that name no node."""
MAX_RUNNING: Final = 100
"""Largest number of active events on one link: each change of the link examines all of them."""


class _Transport(NamedTuple):
    """Defaults of links: effect of losses, and congestion control where the profile names none."""

    loss_model: LossModel
    congestion_control: CongestionControl


class LinkRegistry:
    """Links by node id. Each has the default profile until another is set; `seed` and its name key its draws."""

    def __init__(
        self,
        pacer: Pacer,
        profile: Profile,
        seed: int,
        *,
        loss_model: LossModel = LossModel.RPC,
        congestion_control: CongestionControl = CongestionControl.CUBIC,
        profiles: Callable[[str], Profile] = find_profile,
        node_profiles: Mapping[str, tuple[Profile, str]] | None = None,
        region: str = "",
        upstream_bandwidth: UpstreamBandwidth = NO_LIMIT,
    ) -> None:
        self.find_profile = profiles
        self.access = AccessLink(upstream_bandwidth)
        self.profile_name, self.region = profile.local_name, region
        self._pacer, self._default, self._seed = pacer, profile, seed
        self._transport = _Transport(loss_model, congestion_control)
        self._links: dict[str, PacedLink] = {}
        self._for_all: list[tuple[NetworkEvent, float]] = []  # events on every link, also those to come; with their end
        self._sweep = Sweep(pacer.settle)
        self.hosts = Hosts()
        for node_id, (of_node, of_region) in (node_profiles or {}).items():
            self._make(pacer.now(), node_id, of_node, of_region)
        pacer.settle()

    def __iter__(self) -> Iterator[PacedLink]:
        return iter(self._links.values())

    def of(self, node_id: str | None) -> PacedLink:
        """Return the link of a caller, made if it is new; without a name, the default link."""
        return self._pacer.run(self.find, node_id or "")

    def find(self, now: float, name: str) -> PacedLink:
        """Return the link of this name, made if it is new; an empty name means the default link.

        The relay calls this; others call `of`, which carries out what the link then asks for.
        """
        name = name or DEFAULT_LINK
        paced = self._links.get(name)
        if paced is None:
            if len(self._links) >= MAX_LINKS and name != DEFAULT_LINK:
                return self.find(now, DEFAULT_LINK)
            paced = self._make(now, name, self._default, self.region)
        elif self._sweep.busy:
            self._sweep.catch_up(paced)
        return paced

    def blocks_opening(self, host: str, link: str = "") -> Blockage | None:
        """Return why no connection from `host` can be opened now, or None.

        A connection is on `link`, or on one that clients of this host have lost, or else on the default link.
        """
        names = [link] if link else self.hosts.presumed(host) or [DEFAULT_LINK]
        now = self._pacer.now()
        blocks = [self.of(name).link.blocked(now) if name in self._links or self._for_all else None for name in names]
        found = [block for block in blocks if block is not None]
        return min(found, key=lambda block: block.until) if len(found) == len(blocks) else None

    def known(self, node_id: str) -> PacedLink:
        """Return the link of a node that has been seen or set up.

        Raises:
            NotFound: there is none; the message lists those that there are.
        """
        paced = self._links.get(node_id)
        if paced is None:
            raise NotFound(f"no link for node {node_id!r}{suggest(node_id, self._links)}")
        self._sweep.catch_up(paced)
        self._pacer.settle()
        return paced

    @property
    def busy(self) -> bool:
        """True if a change has not reached all links yet."""
        return self._sweep.busy

    async def settled(self) -> None:
        """Wait until every change has reached every link."""
        await self._sweep.done()

    def set_default(self, profile: Profile, region: str | None = None) -> None:
        """Set the profile of links that do not exist yet, and their region if given."""
        self._default, self.profile_name = profile, profile.local_name
        if region is not None:
            self.region = region

    def require_room(self, node_ids: Iterable[str]) -> None:
        """Check that each of these nodes has a link or can get one.

        Raises:
            ResourceExhausted: there are as many links as there may be.
        """
        new = sum(node_id not in self._links for node_id in set(node_ids) - {ALL, DEFAULT_LINK})
        if new and len(self._links) + new > MAX_LINKS:
            raise ResourceExhausted(f"{new} more links are too many beside {len(self._links)}: {MAX_LINKS} are allowed")

    def set_profile(self, node_id: str, profile: Profile, region: str = "") -> None:
        """Set the profile of a link; `ALL` means every link, future ones included.

        Raises:
            ResourceExhausted: there are too many links for another one.
        """
        if node_id == ALL:
            self.set_default(profile, region)

        def change(paced: PacedLink) -> None:
            paced.region, paced.profile_name = region, profile.local_name
            now = self._pacer.now()
            paced.link.set_profile(profile, now)
            self._changed(now, paced)

        self._sweep.start(self._named(node_id), change)

    def set_loss_model(self, node_id: str, loss_model: LossModel) -> None:
        """Set the loss model of a link; `ALL` means every link, future ones included.

        Raises:
            ResourceExhausted: there are too many links for another one.
        """
        if node_id == ALL:
            self._transport = self._transport._replace(loss_model=loss_model)

        def change(paced: PacedLink) -> None:
            paced.link.set_loss_model(loss_model)
            self._changed(self._pacer.now(), paced)

        self._sweep.start(self._named(node_id), change)

    def set_upstream_bandwidth(self, bandwidth: UpstreamBandwidth) -> None:
        """Set the bandwidth of the upstream's access link, which all links share."""
        self.access.change(bandwidth, self._pacer.now())

        def change(paced: PacedLink) -> None:
            paced.link.share_access(self.access)
            self._changed(self._pacer.now(), paced)

        self._sweep.start(self._in_use_first(), change)

    def set_congestion_control(self, control: CongestionControl) -> None:
        """Set the congestion control of connections that open from now on, where the profile names none."""
        self._transport = self._transport._replace(congestion_control=control)
        for paced in self:
            paced.link.congestion_control = control

    def require(self, event: NetworkEvent) -> None:
        """Check that an event can happen.

        Raises:
            NotFound: it names a node that has no link.
            UnknownName: it names a profile that does not exist.
            ResourceExhausted: a link has as many running events as it may have.
        """
        now = self._pacer.now()
        for node_id in event.targets:
            if node_id not in (ALL, UPSTREAM) and self._is_full(self.known(node_id), event, now):
                raise ResourceExhausted(f"{MAX_RUNNING} events run on the link of {node_id}: clear some first")
        if ALL in event.targets and event.event_type != EventType.RECOVERY and len(self._for_all) >= MAX_RUNNING:
            raise ResourceExhausted(f"{MAX_RUNNING} events run on all links: clear some first")
        if event.new_profile:
            self.find_profile(event.new_profile)

    def apply(self, event: NetworkEvent) -> None:
        """Apply an event to its links now; links named for the first time are created."""
        if ALL in event.targets:
            self._remember(event)
        named = [self.of(node_id) for node_id in event.targets if node_id not in (ALL, UPSTREAM)]
        links = {paced.name: paced for paced in (self._in_use_first() if ALL in event.targets else named)}
        concerned = [links[name] for name in event.concerned(links)]
        self._sweep.start(concerned, lambda paced: self._apply(paced, event, self._pacer.now()))

    def running(self) -> set[int]:
        """Return the ids of the active events, those for future links included."""
        now = self._pacer.now()
        self._for_all = [(each, end) for each, end in self._for_all if now < end]
        running = {id(each) for each, _ in self._for_all}
        for paced in self:
            running.update(map(id, paced.link.active_events(now)))
        return running

    def clear(self, node_id: str | None = None) -> int:
        """End the events that run on a link, or on all, and return how many there were.

        Raises:
            NotFound: no such link.
        """
        if node_id is None:
            self._for_all.clear()
        links = self._in_use_first() if node_id is None else [self.known(node_id)]
        now = self._pacer.now()
        count = sum(len(paced.link.active_events(now)) for paced in links)

        def end(paced: PacedLink) -> None:
            now = self._pacer.now()
            paced.link.clear(now)
            self._changed(now, paced)

        self._sweep.start(links, end)
        return count

    def _remember(self, event: NetworkEvent) -> None:
        """Keep an event on all links for links that do not exist yet."""
        now = self._pacer.now()
        self._for_all = [(each, end) for each, end in self._for_all if now < end]
        if event.event_type == EventType.RECOVERY:
            self._for_all.clear()
        elif event.event_type == EventType.PROFILE_CHANGE and not event.duration_seconds:
            new = keep_distance(self._default, self.find_profile(event.new_profile))
            self.set_default(one_way(self._default, new, EventDirection(event.direction)))
        elif event.mode != DisconnectMode.HALF_OPEN and len(self._for_all) < MAX_RUNNING:
            self._for_all.append((event, now + (event.duration_seconds or math.inf)))

    def _named(self, node_id: str) -> Sequence[PacedLink]:
        if node_id == ALL:
            return self._in_use_first()
        self.require_room((node_id,))
        return [self.of(node_id)]

    def _in_use_first(self) -> list[PacedLink]:
        return sorted(self, key=lambda paced: not paced.pairs)

    def _make(self, now: float, name: str, profile: Profile, region: str) -> PacedLink:
        link = Link(
            name,
            profile,
            self._seed,
            loss_model=self._transport.loss_model,
            congestion_control=self._transport.congestion_control,
            profiles=self.find_profile,
            access=self.access,
        )
        paced = self._links[name] = PacedLink(now, link, self._pacer.agenda, region)
        self._keep_pace(paced)
        self._for_all = [(event, end) for event, end in self._for_all if now < end]
        for event, end in self._for_all:
            if event.concerns(name):
                left = 0.0 if end == math.inf else end - now
                self._apply(paced, replace(event, duration_seconds=left), now)
        return paced

    @staticmethod
    def _is_full(paced: PacedLink, event: NetworkEvent, now: float) -> bool:
        return event.event_type != EventType.RECOVERY and len(paced.link.active_events(now)) >= MAX_RUNNING

    def _changed(self, now: float, paced: PacedLink) -> None:
        paced.changed(now)
        self._keep_pace(paced)

    def _keep_pace(self, paced: PacedLink) -> None:
        if not paced.transparent:
            self._pacer.begin()

    def _apply(self, paced: PacedLink, event: NetworkEvent, now: float) -> None:
        if self._is_full(paced, event, now):
            log.warning("event dropped: too many run on the link", link=paced.name, running=MAX_RUNNING)
            return
        paced.link.apply(event, now)
        reason = no_effect_reason(event, paced.link.profile)
        if reason:
            log.warning("event without effect", link=paced.name, what=event.summary(), reason=reason)
        is_half_open = event.event_type == EventType.DISCONNECT and event.mode == DisconnectMode.HALF_OPEN
        if is_half_open and event.direction == EventDirection.BOTH:
            paced.black_hole(now)
        self._changed(now, paced)
