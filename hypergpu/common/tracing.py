"""Traces of rounds and work units across processes, where the standard variables of OpenTelemetry ask for them.

Without them nothing is done: no library is imported, and no call carries a context. https://www.w3.org/TR/trace-context/
"""

import re
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol

TRACEPARENT: Final = "traceparent"
"""Metadata key of the context of a call."""
_TRACEPARENT: Final = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-(0[01])")
_LONGEST: Final = 55

Value = str | int | float | bool


class OpenSpan(Protocol):
    """Span that has begun."""

    @property
    def context(self) -> str:
        """Context for spans below this one, in any process; empty if there are no traces."""
        ...

    def end(self, **attributes: Value) -> None:
        """End the span, with what is known by then. Calling it again has no effect."""
        ...


class Tracer(Protocol):
    """Maker of spans."""

    @property
    def is_on(self) -> bool:
        """False if spans go nowhere."""
        ...

    def begin(self, name: str, parent: str = "", **attributes: Value) -> OpenSpan:
        """Begin a span below the context `parent`, or else a trace."""
        ...

    def span(self, name: str, parent: str = "", **attributes: Value) -> AbstractContextManager[str]:
        """Return a context manager whose time is a span, and whose value is its context; an error is its outcome."""
        ...

    def record(self, name: str, parent: str, began: float, ended: float, **attributes: Value) -> None:
        """Add a span between two times of the monotonic clock."""
        ...

    def close(self) -> None:
        """Deliver what is left, as far as the receiver takes it within seconds."""
        ...


class NoTracer:
    """Tracer of a process without traces."""

    is_on: Final = False
    context: Final = ""

    def begin(self, name: str, parent: str = "", **attributes: Value) -> OpenSpan:
        """Return a span that does nothing."""
        del name, parent, attributes
        return self

    def end(self, **attributes: Value) -> None:
        """Do nothing."""

    def span(self, name: str, parent: str = "", **attributes: Value) -> AbstractContextManager[str]:
        """Return a context manager that does nothing."""
        del name, parent, attributes
        return _NOTHING

    def record(self, name: str, parent: str, began: float, ended: float, **attributes: Value) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


_NOTHING: Final = nullcontext("")
NO_TRACER: Final[Tracer] = NoTracer()


def context_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """Return the valid context in the metadata of a call; empty if there is none."""
    value = next((value for key, value in metadata or () if key == TRACEPARENT), "")
    return value if isinstance(value, str) and parts_of(value) is not None else ""


def parts_of(context: str) -> tuple[int, int, int] | None:
    """Return the trace, the span and the flags in a context; None if it is not valid."""
    found = _TRACEPARENT.fullmatch(context) if len(context) == _LONGEST else None
    return (int(found[1], 16), int(found[2], 16), int(found[3], 16)) if found else None
