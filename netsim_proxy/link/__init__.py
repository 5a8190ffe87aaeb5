"""The link model: profiles, links and the events on them. No I/O, no clock."""

from hypergpu.netsim_proxy.link.event_queue import EventQueue
from hypergpu.netsim_proxy.link.events import NetworkEvent
from hypergpu.netsim_proxy.link.link import Link
from hypergpu.netsim_proxy.link.outcomes import Blocked, Cause, Deliver, Direction, Fail, LinkRpc, LossModel
from hypergpu.netsim_proxy.link.profiles import PROFILES, Profile, find_profile
from hypergpu.netsim_proxy.link.simulator import NetworkSimulator

__all__ = [
    "PROFILES",
    "Blocked",
    "Cause",
    "Deliver",
    "Direction",
    "EventQueue",
    "Fail",
    "Link",
    "LinkRpc",
    "LossModel",
    "NetworkEvent",
    "NetworkSimulator",
    "Profile",
    "find_profile",
]
