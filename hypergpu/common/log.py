"""Structured logs: one line per event, readable on a terminal, JSON in a container.

Names, reasons and errors come from other machines: their control characters are shown as escapes.
"""

import logging
import sys
from enum import StrEnum
from typing import Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from hypergpu.common import strict_json
from hypergpu.common.text import printable

_TRACEBACKS: Final = frozenset({"exception", "stack"})
"""Texts of several lines."""


class LogLevel(StrEnum):
    """Severity of a log line."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """Format of a service's log."""

    TEXT = "text"
    JSON = "json"


def configure(level: LogLevel = LogLevel.INFO, log_format: LogFormat | None = None) -> None:
    """Send structlog's events to standard error; by default as JSON where stderr is not a terminal."""
    as_json = log_format is LogFormat.JSON if log_format else not sys.stderr.isatty()
    rendering = [structlog.processors.JSONRenderer(strict_json.dumps)] if as_json else _for_people()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=as_json),
            structlog.processors.format_exc_info,
            *rendering,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    _guard_standard_logging()


def configure_cli() -> None:
    """Send the events of a command to standard error; standard output is for its results."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
            structlog.processors.format_exc_info,
            *_for_people(),
        ],
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
    _guard_standard_logging()


def _for_people() -> list[Processor]:
    plain = structlog.dev.plain_traceback  # others show what is in variables
    return [harmless, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]


def harmless(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Return an event whose texts can neither steer a terminal nor forge a line; a traceback keeps its line ends."""
    del logger, method
    return {printable(str(key)): _harmless(key, value) for key, value in event.items()}


def _harmless(key: str, value: object) -> object:
    if not isinstance(value, str):
        return value  # shown by its repr, which has no control characters
    return printable(value, keep="\n" if key in _TRACEBACKS else "")


class _HarmlessFormatter(logging.Formatter):
    """Formats the records of libraries and asyncio."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, with control characters as escapes."""
        return printable(super().format(record), keep="\n")


def _guard_standard_logging() -> None:
    if logging.lastResort is not None:  # it prints where nobody has set up `logging`
        logging.lastResort.setFormatter(_HarmlessFormatter())
