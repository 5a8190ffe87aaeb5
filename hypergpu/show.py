"""Printing: tables for people, JSON for scripts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from google.protobuf.message import Message
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from common import strict_json
from common.metric import UNKNOWN
from protos import coordinator_pb2 as pb

QUALITY_STYLE = {
    "excellent": "bright_green",
    "good": "green",
    "fair": "yellow",
    "poor": "dark_orange",
    "critical": "red",
    "offline": "bright_black",
    "unknown": "bright_black",
}
STATE_STYLE = {
    "working": "cyan",
    "done": "green",
    "lost": "red",
    "left": "bright_black",
    "quarantined": "magenta",
    "excluded": "yellow",
}


def as_dict(message: Message) -> dict[str, Any]:
    """Every field under the name it has in the .proto file; None for an optional number that is not set."""
    return {field.name: _plain(known(message, field.name)) for field in message.DESCRIPTOR.fields}


def known(message: Message, name: str) -> Any:
    """The value of a field; None for an optional number that is not set."""
    field = message.DESCRIPTOR.fields_by_name[name]
    optional = field.has_presence and field.message_type is None
    return None if optional and not message.HasField(name) else getattr(message, name)


def print_json(value: Any) -> None:
    """Print messages, or plain values, as JSON; a number that is not finite is null."""
    print(strict_json.dumps(_plain(value), indent=2))


def new_console(width: int = 100) -> Console:
    """Standard output; `width` columns where it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=width)


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal, or as it needs to be where there is none."""
    new_console(width=160).print(table)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, told how many of how many are done; nothing where that is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def new_table(*headings: str, title: str | None = None) -> Table:
    """A light table; a heading that starts with ">" is right-aligned."""
    table = Table(
        title=title, box=None, pad_edge=False, header_style="bold", title_justify="left", padding=(0, 2, 0, 0)
    )
    for heading in headings:
        right = heading.startswith(">")
        table.add_column(heading.removeprefix(">"), justify="right" if right else "left", no_wrap=True)
    return table


def styled(text: str, styles: dict[str, str]) -> str:
    """`text` in its colour."""
    style = styles.get(text.lower())
    return f"[{style}]{text}[/]" if style else text


def duration(seconds: float) -> str:
    """For people: 0.4 s, 12 s, 3:05, 2:03:09."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def milliseconds(value: float | None) -> str:
    """For people: 12 ms, –."""
    return UNKNOWN if value is None else f"{value:.0f} ms"


def number(value: float | None) -> str:
    """For people: a whole number, –."""
    return UNKNOWN if value is None else f"{value:.0f}"


def share(value: float | None, digits: int = 0) -> str:
    """For people: 12 %, –."""
    return UNKNOWN if value is None else f"{100 * value:.{digits}f} %"


def counted(count: int, noun: str) -> str:
    """For people: 1 node, 2 nodes."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def progress(status: pb.Status) -> str:
    """Return how far a run is: round 7 of 25, or round 7 where no end is set."""
    return f"round {status.round}" + (f" of {status.rounds}" if status.rounds else "")


def size(count: float) -> str:
    """Bytes for people: 312 B, 4.1 MB."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return as_dict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, str | int | float | bool | None):
        return value
    return [_plain(item) for item in value]
