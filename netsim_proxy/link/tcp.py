"""How long TCP takes."""

import math
from enum import StrEnum

from common.draws import Draws
from netsim_proxy.link.loss import PacketLoss
from netsim_proxy.link.profiles import Path


class CongestionControl(StrEnum):
    """How the window grows and falls."""

    CUBIC = "cubic"
    RENO = "reno"


class TcpFlow:
    """One direction of one connection."""

    def __init__(self, path: Path, draws: Draws, control: CongestionControl) -> None:
        self._path = path
        self._loss = PacketLoss(path.loss, draws)

    def send(self, now: float, nbytes: int, round_trip: float, one_way: float) -> float:
        """When the last of `nbytes` has arrived."""
        return now + one_way + round_trip * self._loss.take(math.ceil(nbytes / 1448))
