"""How a node computes and talks."""

from typing import Annotated

from pydantic import Field

from common.config.section import Section


class NodeConfig(Section):
    """One worker."""

    coordinator: str = "127.0.0.1:50051"
    """HOST:PORT to dial: the coordinator, or a netsim proxy before it."""
    gpu: str = "laptop-cpu"
    """A preset of GPU specs; what a simulated node pretends to be."""
    http_listen: str = "127.0.0.1:0"
    """HOST:PORT for /metrics and /healthz; port 0 takes a free one."""
    grace_seconds: Annotated[float, Field(ge=0)] = 10.0
    """On SIGTERM, the time to finish the current work before it is handed back."""
