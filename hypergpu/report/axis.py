"""Axes of charts: tick values, and points in time as labels."""

from math import ceil, floor, log10

_CLOCK_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Return round numbers from `low` to `high`, roughly `about` of them."""
    raw = (high - low) / max(about, 1)
    if not raw > 0:
        return [low]
    power = 10.0 ** floor(log10(raw))
    step = power * min((1, 2, 5, 10), key=lambda multiple: abs(multiple * power - raw))
    return [round(step * n, 12) for n in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def clock_ticks(low: float, high: float, about: int) -> list[float]:
    """Return round times from `low` to `high` seconds: multiples of steps such as 15 s or 10 min."""
    raw = (high - low) / max(about, 1)
    if raw < 1 or raw > _CLOCK_STEPS[-1]:
        return ticks(low, high, about)
    step = min(_CLOCK_STEPS, key=lambda candidate: abs(candidate - raw))
    return [float(step * n) for n in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def clock(seconds: float) -> str:
    """Return a point in time as a label: −5 s, 0, 30 s, 2 min, 2:30, 1 h 30."""
    if seconds < 0:
        return f"−{clock(-seconds)}"
    if seconds < 60:
        return f"{seconds:g} s" if seconds else "0"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02}" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02}" if minutes else f"{hours} h"
