"""Recorded paths: round trip, loss and bandwidth over time, to replay on a link.

A trace is CSV with the columns `seconds,rtt_ms,loss,up_mbit,down_mbit`; an empty bandwidth means no limit. Each row
holds until the time of the next one; after the last, the trace begins again.
"""

import csv
import io
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hypergpu.common.csv_lines import cells_of
from hypergpu.common.errors import ConfigError
from hypergpu.netsim_proxy.link.distributions import Uniform
from hypergpu.netsim_proxy.link.profiles import Loss, Path, Profile

COLUMNS = ("seconds", "rtt_ms", "loss", "up_mbit", "down_mbit")
_MAHIMAHI_BYTES = 1504
"""Bytes per line of a Mahimahi trace: one packet."""
_MOST_MILLISECONDS = 100_000_000
_MILLISECONDS = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Row:
    """Properties of the path from `seconds` on."""

    seconds: float
    rtt_ms: float
    loss: float = 0.0
    up_mbit: float = math.inf
    down_mbit: float = math.inf

    def profile(self, name: str) -> Profile:
        """Return the link of this row."""
        latency = Uniform(self.rtt_ms / 2000, self.rtt_ms / 2000)
        loss = Loss(self.loss)
        return Profile(name, up=Path(latency, self.up_mbit, loss), down=Path(latency, self.down_mbit, loss))


class Trace:
    """Rows in order of time, and the length after which they repeat."""

    def __init__(self, name: str, rows: Sequence[Row], length_seconds: float = 0.0) -> None:
        """By default the last row lasts as long as the one before it.

        Raises:
            ValueError: no rows, or times that do not increase from 0.
        """
        self.name = name
        self.rows = tuple(rows)
        self._starts = [row.seconds for row in rows]
        if (
            not rows
            or self._starts[0] != 0
            or any(b <= a for a, b in zip(self._starts, self._starts[1:], strict=False))
        ):
            raise ValueError("the times of a trace must start at 0 and increase")
        last = self._starts[-1] - self._starts[-2] if len(rows) > 1 else math.inf
        self.length_seconds = length_seconds or self._starts[-1] + last
        self._profiles = tuple(row.profile(name) for row in rows)

    def profile(self, name: str) -> Profile:
        """Return a profile that replays this trace from the time a link gets it."""
        return replace(self._profiles[0], name=name, trace=self)

    def profile_at(self, seconds: float) -> Profile:
        """Return the properties `seconds` after the start of the replay; the same object until they change."""
        return self._profiles[bisect_right(self._starts, self._position(seconds)) - 1]

    def next_change(self, seconds: float) -> float:
        """Return when the next row begins, in seconds after the start of the replay; infinite = never."""
        if self.length_seconds == math.inf:
            return math.inf
        position = self._position(seconds)
        index = bisect_right(self._starts, position)
        until = self._starts[index] if index < len(self._starts) else self.length_seconds
        return seconds + until - position

    def _position(self, seconds: float) -> float:
        return seconds if self.length_seconds == math.inf else seconds % self.length_seconds


def parse_trace(text: str, name: str) -> Trace:
    """Parse the CSV text of a trace; lines that begin with # are comments.

    Raises:
        ConfigError: malformed text; the message names NAME:LINE, the column and the expected value.
    """
    rows: list[Row] = []
    header: list[str] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        cells = cells_of(line, f"{name}:{number}")
        if header is None:
            header = _header(cells, f"{name}:{number}")
            continue
        row = _row(dict(zip(header, cells, strict=False)), f"{name}:{number}")
        if row.seconds <= (rows[-1].seconds if rows else -1.0) or (not rows and row.seconds != 0):
            expected = f"more than {rows[-1].seconds:g}" if rows else "0 in the first row"
            raise ConfigError(f"{name}:{number}: seconds: expected {expected}, found {row.seconds:g}")
        rows.append(row)
    if not rows:
        raise ConfigError(f"{name}: expected the columns {','.join(COLUMNS)} and at least one row")
    return Trace(name, rows)


def format_trace(rows: Iterable[Row], comment: str = "") -> str:
    """Return the CSV text of a trace."""
    out = io.StringIO()
    out.writelines(f"# {line}\n" for line in comment.splitlines())
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        bandwidths = ("" if mbit == math.inf else f"{mbit:.6g}" for mbit in (row.up_mbit, row.down_mbit))
        writer.writerow((f"{row.seconds:.6g}", f"{row.rtt_ms:.6g}", f"{row.loss:.6g}", *bandwidths))
    return out.getvalue()


def parse_mahimahi(text: str, name: str, bin_seconds: float = 0.5) -> list[tuple[float, float]]:
    """Return a Mahimahi packet-delivery trace as (start in seconds, Mbit/s) of bins of `bin_seconds`.

    Each line holds a time in whole milliseconds at which one packet of 1,504 bytes may pass; the last one is the length
    of the trace, after which it begins again (mm-link's manual; Netravali et al., "Mahimahi", ATC 2015).

    Raises:
        ConfigError: a line that is not a whole number, or a time before the previous one.
    """
    milliseconds: list[int] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        if not _MILLISECONDS.fullmatch(line.strip()):
            raise ConfigError(f"{name}:{number}: expected a time in whole milliseconds, found {line.strip()[:40]!r}")
        at = int(line)
        if at > _MOST_MILLISECONDS:
            raise ConfigError(f"{name}:{number}: expected {_MOST_MILLISECONDS} (28 hours) or less, found {at}")
        if milliseconds and at < milliseconds[-1]:
            raise ConfigError(f"{name}:{number}: expected {milliseconds[-1]} or more, found {at}")
        milliseconds.append(at)
    if not milliseconds or milliseconds[-1] == 0:
        raise ConfigError(f"{name}: expected times in milliseconds, one a line, the last of them above 0")
    length = milliseconds[-1] / 1000
    counts = [0] * max(1, math.ceil(length / bin_seconds - 1e-9))
    for at in milliseconds:
        counts[min(int(at / 1000 / bin_seconds), len(counts) - 1)] += 1
    bins = []
    for index, count in enumerate(counts):
        start = index * bin_seconds
        width = min(bin_seconds, length - start)
        bins.append((start, count * _MAHIMAHI_BYTES * 8 / width / 1e6))
    return bins


def mahimahi_rows(up: list[tuple[float, float]], down: list[tuple[float, float]], rtt_ms: float) -> list[Row]:
    """Return the rows of a trace from the bins of two Mahimahi files, which have neither latency nor loss.

    An empty bin gets 0.001 Mbit/s: a bandwidth of 0 would be a disconnection.
    """
    least = 0.001
    return [
        Row(start, rtt_ms, 0.0, max(least, up_mbit), max(least, down_mbit))
        for (start, up_mbit), (_, down_mbit) in zip(up, down, strict=False)
    ]


def _header(cells: list[str], where: str) -> list[str]:
    unknown = [cell for cell in cells if cell not in COLUMNS]
    if unknown or not {"seconds", "rtt_ms"} <= set(cells):
        raise ConfigError(f"{where}: expected the columns {','.join(COLUMNS)} (at least the first two), found {cells}")
    return cells


def _row(cells: dict[str, str], where: str) -> Row:
    values = {}
    for column, cell in cells.items():
        try:
            values[column] = float(cell) if cell else {"loss": 0.0}.get(column, math.inf)
        except ValueError:
            raise ConfigError(f"{where}: {column}: expected a number, found {cell!r}") from None
        if (
            not values[column] >= 0
            or (column == "loss" and values[column] > 1)
            or (column in ("seconds", "rtt_ms") and values[column] == math.inf)
        ):
            raise ConfigError(f"{where}: {column}: invalid value {cell or '(empty)'}")
        if column.endswith("mbit") and values[column] == 0:
            raise ConfigError(f"{where}: {column}: expected more than 0; an outage is a disconnection event")
    if not {"seconds", "rtt_ms"} <= values.keys():
        raise ConfigError(f"{where}: expected at least seconds and rtt_ms")
    return Row(**values)
