"""Numbers for people."""

from math import ceil, floor, log10

Number = float | int | None
NONE = "–"
_CLOCK_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)


def figure(value: Number, digits: int = 4) -> str:
    """`digits` significant digits: 0.9514, 12.35, 1,234,567."""
    if value is None:
        return NONE
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(value: Number) -> str:
    """A share as 95.1 %."""
    return NONE if value is None else f"{100 * value:.1f} %"


def duration(seconds: Number) -> str:
    """0.42 s, 12.3 s, 3 min 05 s, 2 h 03 min."""
    if seconds is None:
        return NONE
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} min"


def size(count: Number) -> str:
    """Bytes as 312 B, 4.1 MB."""
    if count is None:
        return NONE
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from `low` to `high`, roughly `about` of them."""
    raw = (high - low) / max(about, 1)
    if not raw > 0:
        return [low]
    power = 10.0 ** floor(log10(raw))
    step = power * min((1, 2, 5, 10), key=lambda multiple: abs(multiple * power - raw))
    return [round(step * n, 12) for n in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def clock_ticks(low: float, high: float, about: int) -> list[float]:
    """As `ticks`, on steps that clocks have, where they reach."""
    raw = (high - low) / max(about, 1)
    if raw < 1 or raw > _CLOCK_STEPS[-1]:
        return ticks(low, high, about)
    step = min(_CLOCK_STEPS, key=lambda candidate: abs(candidate - raw))
    return [float(step * n) for n in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def clock(seconds: float) -> str:
    """A point in time on an axis: −5 s, 0, 30 s, 2 min, 2:30, 1 h 30."""
    if seconds < 0:
        return f"−{clock(-seconds)}"
    if seconds < 60:
        return f"{seconds:g} s" if seconds else "0"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02}" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02}" if minutes else f"{hours} h"
