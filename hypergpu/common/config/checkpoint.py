"""Settings of what makes rounds last: the log of closed rounds, and checkpoints."""

import re
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BeforeValidator

from hypergpu.common.config.section import ConfigSection

_EVERY = re.compile(r"(\d{1,15}(?:\.\d{1,9})?) ?(rounds?|seconds?|MB|%)", re.ASCII)
_MEGABYTE = 1_000_000


class Interval(NamedTuple):
    """Interval between checkpoints; the value that is not 0 counts."""

    rounds: int = 0
    seconds: float = 0.0
    nbytes: int = 0
    """Bytes of the log."""
    share: float = 0.0
    """Share of the time that writing checkpoints may take."""


def interval_of(text: str) -> Interval:
    """Return the interval that a setting describes.

    Raises:
        ValueError: the text describes none.
    """
    found = _EVERY.fullmatch(text.strip())
    number = float(found[1]) if found else 0.0
    if found is None or not number > 0:
        raise ValueError(f"{text[:40]!r} is no interval: say for example '5 rounds', '30 seconds', '200 MB' or '2 %'")
    unit = found[2]
    if unit == "%":
        if number > 100:
            raise ValueError(f"{text[:40]!r} is more than all of the time")
        return Interval(share=number / 100)
    if unit == "MB":
        return Interval(nbytes=max(1, round(number * _MEGABYTE)))
    if unit.startswith("second"):
        return Interval(seconds=number)
    if not number.is_integer():
        raise ValueError(f"{text[:40]!r}: only whole rounds can be counted")
    return Interval(rounds=int(number))


def _text(value: object) -> object:
    """Return a plain number as a number of rounds."""
    return f"{value} rounds" if isinstance(value, int) and not isinstance(value, bool) else value


def _checked(text: str) -> str:
    interval_of(text)
    return text


class CheckpointConfig(ConfigSection):
    """Log of rounds and checkpoints, by which rounds outlast the coordinator."""

    log: bool = True
    """Write each closed round to a log, and tell nobody of it before it is on the disk: a coordinator that dies undoes
    nothing that it told. Without the log, it undoes the rounds since the last checkpoint."""
    every: Annotated[str, BeforeValidator(_text), AfterValidator(_checked)] = "2 %"
    """Interval between checkpoints, which are written in the background: rounds (`5 rounds`), time (`30 seconds`), size
    of the log (`200 MB`), or the share of the time that writing them may take (`2 %`). Where rounds are logged, a
    checkpoint only shortens the log, and is written in any case when the log has 1 GB and 16 models."""

    @property
    def interval(self) -> Interval:
        """Interval between checkpoints."""
        return interval_of(self.every)
