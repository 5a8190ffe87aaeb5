"""`hypergpu trace`: real paths as files that a link can replay."""

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hypergpu.cli.running import AsJson, Authority, Insecure, transport
from hypergpu.common.errors import InvalidInput
from hypergpu.common.files import read_text
from hypergpu.netsim_proxy.link.traces import Row, format_trace, mahimahi_rows, parse_mahimahi
from hypergpu.recording import MAX_PROBE_BYTES, Measured
from hypergpu.recording import record as record_rows
from hypergpu.show import print_json, say

_HELP = """Real paths as files that a link can replay.

Example: hypergpu trace record train.example.org:50051 --out path.csv
"""
app = typer.Typer(help=_HELP, no_args_is_help=True)

Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="The CSV to write.")]


class Format(StrEnum):
    """Foreign formats of traces."""

    MAHIMAHI = "mahimahi"


@app.command()
def record(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Any gRPC server with the health service.")],
    out: Out,
    *,
    seconds: Annotated[float, typer.Option(min=0.1, max=1e7, help="How long to measure.")] = 60.0,
    row_seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="Length of a row.")] = 1.0,
    calls_per_row: Annotated[int, typer.Option(min=1, max=1000, help="Calls that make up a row.")] = 10,
    probe_bytes: Annotated[
        int,
        typer.Option(
            min=0,
            max=MAX_PROBE_BYTES,
            help="Most that is sent at once to measure the bandwidth, best 4 times what the path holds in a round trip"
            " (rate × RTT) or more. 0: do not measure it.",
        ),
    ] = 2_000_000,
    probe_every: Annotated[float, typer.Option(min=0.1, help="Seconds from one bandwidth to the next.")] = 30.0,
    tls_ca: Authority = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Measure the round trips, losses and bandwidth of the path to a gRPC server.

    The bandwidth is that of the way up, as one TCP connection gets it; the way
    down is left open. Measuring it fills the path for a moment, and costs 0.4 to
    4 times --probe-bytes each time: up to 8 MB every 30 seconds by default.
    ≥ marks one that was still growing: more --probe-bytes may tell more.

    Example: hypergpu trace record coordinator.example:50051 --out path.csv
    """
    tls = transport(address, tls_ca, insecure)
    _write(out, "")  # what cannot be kept need not be measured
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
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The trace; of Mahimahi, that of the uplink.")],
    out: Out,
    *,
    trace_format: Annotated[Format, typer.Option("--format", help="What it is.")] = Format.MAHIMAHI,
    down: Annotated[
        Path | None, typer.Option(metavar="FILE", help="That of the downlink; by default the same.")
    ] = None,
    rtt_ms: Annotated[float, typer.Option(min=0, max=1e6, help="Round trip, which such a file does not hold.")] = 40.0,
    row_seconds: Annotated[float, typer.Option(min=0.01, max=3600, help="Length of a row.")] = 0.5,
) -> None:
    """Turn a trace of another emulator into one that a link can replay.

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
