"""The pure link model: profiles, the link itself, and what happens to it."""

from hypergpu.netsim_proxy.link.events import NetworkEvent
from hypergpu.netsim_proxy.link.link import Link
from hypergpu.netsim_proxy.link.outcomes import Cause, Deliver, Direction, Exchange, Fail, Hold, LossModel
from hypergpu.netsim_proxy.link.profiles import PROFILES, Profile, find_profile
from hypergpu.netsim_proxy.link.simulator import NetworkSimulator
from hypergpu.netsim_proxy.link.timeline import Timeline

__all__ = [
    "PROFILES",
    "Cause",
    "Deliver",
    "Direction",
    "Exchange",
    "Fail",
    "Hold",
    "Link",
    "LossModel",
    "NetworkEvent",
    "NetworkSimulator",
    "Profile",
    "Timeline",
    "find_profile",
]
