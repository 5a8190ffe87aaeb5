"""The links that the proxy knows, by node id: made when they are first seen or first set up."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from common.clock import monotonic
from common.errors import NotFound, suggest
from netsim_proxy.link.events import ALL, UPSTREAM, DisconnectMode, EventType, NetworkEvent
from netsim_proxy.link.link import Link
from netsim_proxy.link.outcomes import LossModel
from netsim_proxy.link.profiles import Profile, find_profile
from netsim_proxy.pacer import Pacer
from netsim_proxy.port import Port

DEFAULT_LINK: Final = "default"
"""The link of calls that name no node."""
MAX_LINKS: Final = 10_000
"""Ids beyond these share the default link: whoever invents ids must not fill our memory."""


class Ports:
    """Every link has the default profile until told otherwise; `seed` and its name give its draws."""

    def __init__(
        self,
        pacer: Pacer,
        profile: Profile,
        seed: int,
        *,
        loss_model: LossModel = LossModel.RPC,
        profiles: Callable[[str], Profile] = find_profile,
        node_profiles: Mapping[str, tuple[Profile, str]] | None = None,
        region: str = "",
    ) -> None:
        self.find_profile = profiles
        self._pacer, self._default, self._seed, self._loss_model = pacer, profile, seed, loss_model
        self._ports: dict[str, Port] = {}
        self._for_all: list[tuple[NetworkEvent, float]] = []  # events on every link, also those to come; with their end
        self._region = region
        for node_id, (of_node, of_region) in (node_profiles or {}).items():
            self._make(node_id, of_node, of_region)

    def __iter__(self) -> Iterator[Port]:
        return iter(self._ports.values())

    def of(self, node_id: str | None) -> Port:
        """The link of a caller."""
        name = node_id or DEFAULT_LINK
        port = self._ports.get(name)
        if port is None:
            if len(self._ports) >= MAX_LINKS and name != DEFAULT_LINK:
                return self.of(None)
            port = self._make(name, self._default, self._region)
        return port

    def known(self, node_id: str) -> Port:
        """The link of a node that has been seen or set up.

        Raises:
            NotFound: there is none; the message lists those that there are.
        """
        port = self._ports.get(node_id)
        if port is None:
            raise NotFound(f"no link for node {node_id!r}{suggest(node_id, self._ports)}")
        return port

    def set_profile(self, node_id: str, profile: Profile, region: str = "") -> None:
        """Give a link another profile for good; `ALL` means every link, also those not yet seen."""
        if node_id == ALL:
            self._default, self._region = profile, region
        for port in list(self) if node_id == ALL else [self.of(node_id)]:
            port.region = region
            port.link.set_profile(profile, monotonic())
            port.changed()

    def set_loss_model(self, node_id: str, loss_model: LossModel) -> None:
        """Change what losses look like on a link; `ALL` means every link, also those not yet seen."""
        if node_id == ALL:
            self._loss_model = loss_model
        for port in list(self) if node_id == ALL else [self.of(node_id)]:
            port.link.set_loss_model(loss_model)
            port.changed()

    def require(self, event: NetworkEvent) -> None:
        """Check that an event can happen.

        Raises:
            NotFound: it names a node that has no link.
            UnknownName: it names a profile that does not exist.
        """
        for node_id in event.targets:
            if node_id not in (ALL, UPSTREAM):
                self.known(node_id)
        if event.new_profile:
            self.find_profile(event.new_profile)

    def apply(self, event: NetworkEvent) -> None:
        """Let an event happen now to the links it concerns; links named for the first time are made."""
        now = monotonic()
        for node_id in event.targets:
            if node_id not in (ALL, UPSTREAM):
                self.of(node_id)
        if ALL in event.targets:
            if event.event_type == EventType.RECOVERY:
                self._for_all.clear()
            elif event.mode != DisconnectMode.HALF_OPEN:
                self._for_all.append((event, now + (event.duration_seconds or math.inf)))
        for port in list(self):
            if event.concerns(port.name):
                self._apply(port, event, now)

    def runs(self, event: NetworkEvent) -> bool:
        """Whether an event that has begun still runs on some link, or on those to come."""
        now = monotonic()
        self._for_all = [(each, end) for each, end in self._for_all if now < end]
        if any(each is event for each, _ in self._for_all):
            return True
        return any(each is event for port in self for each in port.link.active_events(now))

    def clear(self, node_id: str | None = None) -> int:
        """End the events that run on a link, or on all, and return how many there were.

        Raises:
            NotFound: no such link.
        """
        if node_id is None:
            self._for_all.clear()
        count = 0
        for port in list(self) if node_id is None else [self.known(node_id)]:
            count += port.link.clear(monotonic())
            port.changed()
        return count

    def _make(self, name: str, profile: Profile, region: str) -> Port:
        link = Link(name, profile, self._seed, loss_model=self._loss_model, profiles=self.find_profile)
        port = self._ports[name] = Port(link, self._pacer, region)
        now = monotonic()
        self._for_all = [(event, end) for event, end in self._for_all if now < end]
        for event, end in self._for_all:
            if event.concerns(name):
                left = 0.0 if end == math.inf else end - now
                self._apply(port, replace(event, duration_seconds=left), now)
        return port

    @staticmethod
    def _apply(port: Port, event: NetworkEvent, now: float) -> None:
        port.link.apply(event, now)
        if event.event_type == EventType.DISCONNECT and event.mode == DisconnectMode.HALF_OPEN:
            port.half_open()
        port.changed()
