"""Text for people: numbers with their units, names in natural order, and control characters made visible."""

import math
import re
from typing import Final

UNKNOWN: Final = "–"
"""Text for an unknown value; in JSON it is null."""
Number = float | int | None
_SIZE: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([kKMGT]i?)?B?")
_ESCAPES: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_DIGITS: Final = re.compile("([0-9]{1,15})")


def printable(text: str, keep: str = "") -> str:
    """Return `text` with every character that does not print as itself escaped, except those in `keep`.

    Terminal escapes, line breaks and marks that reverse the direction of writing could move the cursor, recolour the
    screen or forge lines in the output of names and reasons that come from elsewhere.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _escape(char) for char in text)


def one_line(text: str) -> str:
    """Return `text` as one printable line, with each run of white space as one space."""
    return printable(" ".join(text.split()))


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that places node_2 before node_10."""
    parts = _DIGITS.split(name)
    return tuple((0, int(part), "") if index % 2 else (1, 0, part) for index, part in enumerate(parts))


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: 1 node, 2 nodes."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def number(value: Number) -> str:
    """Return a number without decimals: 12."""
    return UNKNOWN if value is None else f"{value:.0f}"


def figure(value: Number, digits: int = 4) -> str:
    """Return a number with `digits` significant digits: 0.9514, 12.35, 1,234,567."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(value: Number, digits: int = 1) -> str:
    """Return a share of 1 as a percentage: 95.1 %."""
    return UNKNOWN if value is None else f"{100 * value:.{digits}f} %"


def milliseconds(value: Number) -> str:
    """Return a time in whole milliseconds: 12 ms."""
    return UNKNOWN if value is None else f"{value:.0f} ms"


def mbit(value: Number, least: Number = None) -> str:
    """Return a rate in Mbit/s without its unit, or the rate that a link has at least: 7.9, ≥ 120."""
    shown = least if value is None else value
    if shown is None:
        return UNKNOWN
    digits = 0 if shown >= 99.95 else 1 if shown >= 9.995 else 2
    return f"{'≥ ' if value is None else ''}{shown:.{digits}f}"


def duration(seconds: Number) -> str:
    """Return a duration in the units that suit it: 420 ms, 12.3 s, 3 min 05 s, 2 h 03 min."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} min"


def size(count: Number) -> str:
    """Return a number of bytes in the unit that suits it: 312 B, 4.1 MB."""
    if count is None:
        return UNKNOWN
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.95:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 44 MB, 1.5GiB or 312; a k is 1,000 and a Ki 1,024.

    Raises:
        ValueError: it is no size, or below one byte.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text[:40]!r} is no size; expected a number of bytes, as in 44MB, 1.5GiB or 312000")
    unit = (found[2] or "").upper()
    power = " KMGT".index(unit[0]) if unit else 0
    base: int = 1024 if unit.endswith("I") else 1000
    count = round(float(found[1]) * float(base) ** power)
    if count < 1:
        raise ValueError(f"{text[:40]!r} is less than a byte")
    return count


def _escape(char: str) -> str:
    code = ord(char)
    if char in _ESCAPES:
        return _ESCAPES[char]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
