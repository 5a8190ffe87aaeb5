"""`hypergpu transfer`: predict transfer times on a link."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hypergpu.common.codecs import find_codec
from hypergpu.common.connections import MAX_CONNECTIONS
from hypergpu.common.errors import InvalidInput
from hypergpu.common.limits import LARGEST_INTEGER
from hypergpu.common.options import AsJson, Seed
from hypergpu.console import new_table, print_json, print_table
from hypergpu.netsim_proxy.config.profile_file import load_profiles
from hypergpu.netsim_proxy.link.congestion import CongestionControl
from hypergpu.netsim_proxy.link.outcomes import Direction, LossModel
from hypergpu.netsim_proxy.link.profiles import Profile, find_profile
from hypergpu.netsim_proxy.link.transfer import Summary, plain_profile, transfer_times

MessageBytes = Annotated[
    int, typer.Option("--bytes", min=1, max=10**10, metavar="N", help="Size of the message, before its codec.")
]
RoundTrip = Annotated[float | None, typer.Option(min=0, max=1e6, metavar="MS", help="Round trip time.")]
Bandwidth = Annotated[
    float | None, typer.Option(min=0, max=1e9, metavar="MBIT", help="Bandwidth in Mbit/s; unlimited by default.")
]
Loss = Annotated[
    float, typer.Option(min=0, max=1, metavar="SHARE", help="Share of lost packets (transport) or RPCs (rpc).")
]
Burst = Annotated[float, typer.Option(min=1, max=100_000, metavar="N", help="Mean number of consecutive losses.")]
QueueBytes = Annotated[
    int,
    typer.Option(
        min=0,
        max=LARGEST_INTEGER,
        metavar="N",
        help="Size of the queue; 0: bandwidth × round trip time, at least 100 kB.",
    ),
]
ProfileName = Annotated[str, typer.Option(metavar="NAME", help="Link profile, instead of the figures above.")]
ProfileFile = Annotated[Path | None, typer.Option(metavar="FILE", help="YAML file of your own profiles.")]
Losses = Annotated[LossModel, typer.Option(help="rpc: lost calls fail. transport: lost packets delay the transfer.")]
Control = Annotated[
    CongestionControl | None, typer.Option(help="Congestion control of TCP; by default that of the profile, or cubic.")
]
PathDirection = Annotated[Direction, typer.Option(help="up: from the node. down: to the node.")]
CodecName = Annotated[
    str, typer.Option("--codec", metavar="NAME", help="Codec of the message: none, bf16, int8, int4 or topk.")
]
ConnectionCount = Annotated[
    int, typer.Option(min=1, max=MAX_CONNECTIONS, metavar="K", help="Connections that share the chunks of the message.")
]
Samples = Annotated[
    int, typer.Option(min=1, max=1_000_000, metavar="N", help="Number of transfers on new and on open connections.")
]


def transfer(
    *,
    nbytes: MessageBytes = 1_000_000,
    rtt_ms: RoundTrip = None,
    bandwidth_mbit: Bandwidth = None,
    loss: Loss = 0.0,
    burst: Burst = 1.0,
    queue_bytes: QueueBytes = 0,
    profile: ProfileName = "",
    profiles: ProfileFile = None,
    loss_model: Losses = LossModel.TRANSPORT,
    congestion_control: Control = None,
    direction: PathDirection = Direction.UP,
    codec: CodecName = "none",
    connections: ConnectionCount = 1,
    samples: Samples = 300,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Predict the time to deliver a message over a link: on new connections, and on open ones.

    Example: hypergpu transfer --rtt-ms 40 --bandwidth-mbit 20 --loss 0.01 --bytes 2000000 --codec int8
    """
    link = _link(profile, profiles, rtt_ms, bandwidth_mbit, loss=loss, burst=burst, queue_bytes=queue_bytes)
    times = transfer_times(
        link.with_congestion_control(congestion_control) if congestion_control else link,
        _encoded_bytes(nbytes, codec),
        loss_model=loss_model,
        samples=samples,
        seed=seed,
        direction=direction,
        connections=connections,
    )
    if as_json:
        print_json({kind: _plain(summary) for kind, summary in times.items()})
        return
    table = new_table("connection", ">mean", ">p50", ">p90", ">lost")
    for kind, summary in times.items():
        seconds = (summary.mean_seconds, summary.p50_seconds, summary.p90_seconds)
        table.add_row(kind, *(f"{value:.4g} s" for value in seconds), f"{summary.lost:.1%}")
    print_table(table)


def _link(
    name: str,
    file: Path | None,
    rtt_ms: float | None,
    bandwidth_mbit: float | None,
    *,
    loss: float,
    burst: float,
    queue_bytes: int,
) -> Profile:
    if name:
        if rtt_ms is not None or bandwidth_mbit is not None or loss:
            raise InvalidInput("give either --profile or the figures of a link")
        return find_profile(name, load_profiles(file) if file else None)
    if rtt_ms is None:
        raise InvalidInput("give --profile, or --rtt-ms with --bandwidth-mbit and --loss")
    try:
        return plain_profile(rtt_ms, math.inf if bandwidth_mbit is None else bandwidth_mbit, loss, burst, queue_bytes)
    except ValueError as error:
        raise InvalidInput(str(error)) from error


def _encoded_bytes(nbytes: int, codec: str) -> int:
    """Return the size of a message of float32 values in a codec."""
    if codec == "none":
        return nbytes
    return find_codec(codec).encoded_bytes(-(-nbytes // 4))


def _plain(summary: Summary) -> dict[str, float | None]:
    """Return the summary with null for NaN, which JSON does not have."""
    return {key: None if math.isnan(value) else value for key, value in asdict(summary).items()}
