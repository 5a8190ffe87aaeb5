"""`hypergpu transfer`: what a link does to a transfer, asked of the model."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hypergpu.cli.running import AsJson
from hypergpu.common.config.whole import LARGEST_INTEGER
from hypergpu.common.errors import InvalidInput
from hypergpu.netsim_proxy.config.profile_file import load_profiles
from hypergpu.netsim_proxy.link.outcomes import Direction, LossModel
from hypergpu.netsim_proxy.link.profiles import Profile, find_profile
from hypergpu.netsim_proxy.link.transfer import Summary, plain_profile, transfer_times
from hypergpu.netsim_proxy.link.window import CongestionControl
from hypergpu.show import new_table, print_json, print_table


def transfer(
    *,
    nbytes: Annotated[int, typer.Option("--bytes", min=1, max=10**10, help="Size of the message.")] = 1_000_000,
    rtt_ms: Annotated[float | None, typer.Option(min=0, max=1e6, help="Round trip.")] = None,
    bandwidth_mbit: Annotated[
        float | None, typer.Option(min=0, max=1e9, help="Megabits per second; left out: no limit.")
    ] = None,
    loss: Annotated[float, typer.Option(min=0, max=1, help="Share lost: of packets, or of RPCs.")] = 0.0,
    burst: Annotated[float, typer.Option(min=1, max=100_000, help="Mean length of a run of losses.")] = 1.0,
    queue_bytes: Annotated[
        int,
        typer.Option(
            min=0,
            max=LARGEST_INTEGER,
            help="What may wait for the bandwidth; 0: its product with the round trip, at least 100 kB.",
        ),
    ] = 0,
    profile: Annotated[str, typer.Option(metavar="NAME", help="A link profile, instead of the figures above.")] = "",
    profiles: Annotated[Path | None, typer.Option(metavar="FILE", help="YAML of your own profiles.")] = None,
    loss_model: Annotated[LossModel, typer.Option(help="What a loss looks like.")] = LossModel.TRANSPORT,
    congestion_control: Annotated[CongestionControl, typer.Option(help="Of TCP.")] = CongestionControl.CUBIC,
    direction: Annotated[Direction, typer.Option(help="Up is from the node.")] = Direction.UP,
    samples: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many transfers of either kind.")] = 300,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_INTEGER, help="The same seed gives the same transfers.")] = 0,
    as_json: AsJson = False,
) -> None:
    """What a link does to a transfer: time to deliver a message on a new connection, and the next one on it.

    Example: hypergpu transfer --rtt-ms 40 --bandwidth-mbit 20 --loss 0.01 --bytes 2000000
    """
    times = transfer_times(
        _link(profile, profiles, rtt_ms, bandwidth_mbit, loss=loss, burst=burst, queue_bytes=queue_bytes),
        nbytes,
        loss_model=loss_model,
        samples=samples,
        seed=seed,
        direction=direction,
        congestion_control=congestion_control,
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
            raise InvalidInput("give a --profile or the figures of a link, not both")
        return find_profile(name, load_profiles(file) if file else None)
    if rtt_ms is None:
        raise InvalidInput("give --rtt-ms (and --bandwidth-mbit, --loss), or a --profile")
    try:
        return plain_profile(rtt_ms, math.inf if bandwidth_mbit is None else bandwidth_mbit, loss, burst, queue_bytes)
    except ValueError as error:
        raise InvalidInput(str(error)) from error


def _plain(summary: Summary) -> dict[str, float | None]:
    """NaN is no JSON."""
    return {key: None if math.isnan(value) else value for key, value in asdict(summary).items()}
