"""New TCP flows, by their congestion control."""

from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.netsim_proxy.link.bottleneck import Bottleneck
from hypergpu.netsim_proxy.link.congestion import CongestionControl
from hypergpu.netsim_proxy.link.cubic import CubicWindow
from hypergpu.netsim_proxy.link.paced_flow import PacedFlow
from hypergpu.netsim_proxy.link.profiles import Path
from hypergpu.netsim_proxy.link.reno import RenoWindow
from hypergpu.netsim_proxy.link.tcp import TcpFlow
from hypergpu.netsim_proxy.link.window_flow import WindowFlow


def open_flow(
    path: Path,
    draws: KeyedRandom,
    control: CongestionControl = CongestionControl.CUBIC,
    bottleneck: Bottleneck | None = None,
) -> TcpFlow:
    """Return one direction of a new connection."""
    if control is CongestionControl.BBR:
        return PacedFlow(path, draws, bottleneck)
    window = CubicWindow() if control is CongestionControl.CUBIC else RenoWindow()
    return WindowFlow(path, draws, window, bottleneck)
