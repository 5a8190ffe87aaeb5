"""Settings of a node."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from hypergpu.common.config.section import ConfigSection
from hypergpu.common.config.whole import Count
from hypergpu.common.data_report import ReportedData
from hypergpu.common.node_terms import MAX_PRICE_PER_HOUR, PriorityClass

Seconds = Annotated[float, Field(ge=0)]


class NodeConfig(ConfigSection):
    """Settings of one node."""

    coordinator: str = "127.0.0.1:50051"
    """HOST:PORT to dial: the coordinator, or a netsim proxy before it."""
    http_proxy: bool = False
    """Dial a coordinator on another machine through the HTTP proxy that https_proxy or http_proxy names, except for
    hosts in no_proxy. The proxy must permit CONNECT to the coordinator's port and must not cut long calls."""
    gpu: str = "auto"
    """`auto` uses the CUDA card of the machine, or else its CPU. A preset (T4, V100, A100, H100, RTX-3090, RTX-4090,
    laptop-cpu) simulates that card on the CPU."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward and backward pass; `auto` is bfloat16 if a real card supports it, else float32."""
    compute_spread: Annotated[float, Field(ge=0, le=2)] = 0.05
    """Spread of a simulated card's step times: standard deviation of their logarithm."""
    http_listen: str = "127.0.0.1:0"
    """HOST:PORT for /metrics and /healthz; port 0 chooses a free one."""
    metrics_address: str = ""
    """HOST:PORT where the coordinator and Prometheus reach /metrics; empty: the listening address, with the address
    that this host dials from in place of a wildcard."""
    region: str = ""
    """Location of the node, such as eu-west, for reports."""
    price_per_hour: Annotated[float, Field(ge=0, le=MAX_PRICE_PER_HOUR)] = 0.0
    """Price of an hour in which this node works for a run, in your currency; see `selector.budget_per_hour`."""
    priority: PriorityClass = "normal"
    """Priority class: nodes of a higher one go first where a budget or a maximum leaves nodes out."""
    report_data: ReportedData = "none"
    """Figures of the samples that this node alone holds (`training.partition=local`) which it sends to the coordinator:
    their `count`, their count in each of the `classes`, or neither. Samples themselves never leave a node."""
    state_dir: Path | None = None
    """Directory that keeps the key of a named node, the last checkpoint of the ledger that it has seen, and the secret
    of its lease, with which its next process joins at once; by default
    hypergpu/leases in $XDG_STATE_HOME or ~/.local/state. Without one, a node that was killed waits for the end of its
    lease."""
    grace_seconds: Seconds = 10.0
    """Time to finish the current work after SIGTERM before it is returned."""
    backoff_base_seconds: Annotated[float, Field(gt=0)] = 0.1
    """Longest first wait after a failed call; doubles with each consecutive failure, with full jitter."""
    backoff_cap_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Longest wait between two attempts."""
    pull_wait_seconds: Annotated[float, Field(gt=0)] = 20.0
    """Longest wait of one request for work at the coordinator."""
    history_size: Count = 100
    """Steps and calls in the history of the metrics collector."""
