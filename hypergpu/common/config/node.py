"""How a node computes and talks."""

from typing import Annotated, Literal

from pydantic import Field

from hypergpu.common.config.section import ConfigSection
from hypergpu.common.config.whole import Count

Seconds = Annotated[float, Field(ge=0)]


class NodeConfig(ConfigSection):
    """One worker."""

    coordinator: str = "127.0.0.1:50051"
    """HOST:PORT to dial: the coordinator, or a netsim proxy before it."""
    http_proxy: bool = False
    """Dial a coordinator on another machine through the HTTP proxy that https_proxy or http_proxy names, but for the
    hosts in no_proxy. Such a proxy must permit CONNECT to the coordinator's port and leave long calls alone."""
    gpu: str = "auto"
    """`auto` takes the machine as it is: its CUDA card if there is one, else its CPU. A preset (T4, V100, A100, H100,
    RTX-3090, RTX-4090, laptop-cpu) has the CPU pretend to be that card."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward and backward pass; `auto` is bfloat16 where a real card has it, else float32."""
    compute_spread: Annotated[float, Field(ge=0, le=2)] = 0.05
    """Spread of a simulated card's step times: standard deviation of their logarithm."""
    http_listen: str = "127.0.0.1:0"
    """HOST:PORT for /metrics and /healthz; port 0 takes a free one."""
    metrics_address: str = ""
    """HOST:PORT under which the coordinator and Prometheus reach /metrics; empty: where it listens, with this host's
    name for a wildcard."""
    region: str = ""
    """Where the node is, such as eu-west; for reports."""
    grace_seconds: Seconds = 10.0
    """On SIGTERM, the time to finish the current work before it is handed back."""
    backoff_base_seconds: Annotated[float, Field(gt=0)] = 0.1
    """Longest first wait after a failed call; doubles with each failure in a row, with full jitter."""
    backoff_cap_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Longest wait between two tries."""
    pull_wait_seconds: Annotated[float, Field(gt=0)] = 20.0
    """How long one request for work waits at the coordinator."""
    history_size: Count = 100
    """Steps and calls that the metrics collector remembers."""
