"""`hypergpu trace`: record real paths as files that a link can replay."""

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hypergpu.common.address import is_loopback
from hypergpu.common.errors import InvalidInput
from hypergpu.common.files import read_text
from hypergpu.common.options import ADDRESS, AsJson, Insecure, TlsCa
from hypergpu.common.tls import client_tls
from hypergpu.console import print_json, say
from hypergpu.netsim_proxy.link.traces import Row, format_trace, mahimahi_rows, parse_mahimahi
from hypergpu.path_probe import MAX_PROBE_BYTES, Measured
from hypergpu.path_probe import record as record_rows

_HELP = """Record real paths as files that a link can replay.

Example: hypergpu trace record train.example.org:50051 --out path.csv
"""
app = typer.Typer(help=_HELP, no_args_is_help=True)

Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="CSV file to write.")]


class Format(StrEnum):
    """Trace formats of other emulators."""

    MAHIMAHI = "mahimahi"


Address = Annotated[str, typer.Argument(metavar=ADDRESS, help="Address of any gRPC server with the health service.")]
Seconds = Annotated[float, typer.Option(min=0.1, max=1e7, metavar="SECONDS", help="Duration of the measurement.")]
RowSeconds = Annotated[float, typer.Option(min=0.1, max=3600, metavar="SECONDS", help="Length of a row.")]
CallsPerRow = Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Calls per row.")]
ProbeBytes = Annotated[
    int,
    typer.Option(
        min=0,
        max=MAX_PROBE_BYTES,
        metavar="N",
        help="Largest number of bytes sent at once to measure the bandwidth; best at least 4 times rate × RTT. "
        "0 measures none.",
    ),
]
ProbeEvery = Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Interval of bandwidth measurements.")]


@app.command()
def record(
    address: Address,
    out: Out,
    *,
    seconds: Seconds = 60.0,
    row_seconds: RowSeconds = 1.0,
    calls_per_row: CallsPerRow = 10,
    probe_bytes: ProbeBytes = 2_000_000,
    probe_every: ProbeEvery = 30.0,
    tls_ca: TlsCa = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Measure the round trips, losses and upload bandwidth of the path to a gRPC server.

    The bandwidth is that of one TCP connection. Each measurement fills the path for a moment and sends 0.4 to 4 times
    --probe-bytes: up to 8 MB every 30 seconds by default. ≥ marks a lower bound; more --probe-bytes may find the real
    value.

    Example: hypergpu trace record coordinator.example:50051 --out path.csv
    """
    tls = client_tls(tls_ca, insecure=insecure or is_loopback(address))
    _write(out, "")  # a file that cannot be written is reported before the measurement
    measured = record_rows(
        address,
        tls,
        seconds=seconds,
        row_seconds=row_seconds,
        calls_per_row=calls_per_row,
        probe_bytes=probe_bytes,
        probe_every_seconds=probe_every,
    )
    rows: list[Row] = []
    try:
        asyncio.run(_keep(measured, rows))
    except KeyboardInterrupt:
        if not rows:
            raise
    _write(out, format_trace(rows, f"The path to {address}, measured by hypergpu trace record"))
    if as_json:
        print_json([{key: None if value == math.inf else value for key, value in asdict(row).items()} for row in rows])


@app.command(name="import")
def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Trace file; for Mahimahi, that of the uplink.")],
    out: Out,
    *,
    trace_format: Annotated[Format, typer.Option("--format", help="Format of the file.")] = Format.MAHIMAHI,
    down: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Trace file of the downlink; by default the same file.")
    ] = None,
    rtt_ms: Annotated[
        float, typer.Option(min=0, max=1e6, metavar="MS", help="Round trip time, which the file does not contain.")
    ] = 40.0,
    row_seconds: Annotated[float, typer.Option(min=0.01, max=3600, metavar="SECONDS", help="Length of a row.")] = 0.5,
) -> None:
    """Convert a trace of another emulator into one that a link can replay.

    Example: hypergpu trace import ATT-LTE-driving.up --down ATT-LTE-driving.down --out lte.csv
    """
    up_bins = parse_mahimahi(read_text(file), str(file), row_seconds)
    down_bins = parse_mahimahi(read_text(down), str(down), row_seconds) if down else up_bins
    _write(out, format_trace(mahimahi_rows(up_bins, down_bins, rtt_ms), f"From {file.name} ({trace_format.value})"))


async def _keep(measured: AsyncIterator[Measured], rows: list[Row]) -> None:
    async for found in measured:
        row = found.row
        rows.append(row)
        up = "" if row.up_mbit == math.inf else f"  {'≥' if found.at_least else ' '} {row.up_mbit:8.2f} Mbit/s up"
        say(f"{row.seconds:8.1f} s  {row.rtt_ms:8.2f} ms  {row.loss:6.1%} lost{up}", error=True)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"cannot write {file}: {error.strerror}") from error
