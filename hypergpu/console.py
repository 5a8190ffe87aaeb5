"""Output: tables for people, JSON for scripts."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from google.protobuf.message import Message
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from hypergpu.common import strict_json
from hypergpu.common.text import printable
from hypergpu.protos import coordinator_pb2 as pb

_WIDEST = 10_000
"""Width in columns of a table outside a terminal."""
_PLACE = re.compile(r"\{(\w+)\}")
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
    """Return a message as a dictionary by field name; None for an unset optional number."""
    return {field.name: _plain(known(message, field.name)) for field in message.DESCRIPTOR.fields}


def known(message: Message, name: str) -> Any:
    """Return the value of a field; None for an unset optional number."""
    field = message.DESCRIPTOR.fields_by_name[name]
    optional = field.has_presence and field.message_type is None
    return None if optional and not message.HasField(name) else getattr(message, name)


def print_json(value: Any) -> None:
    """Print messages, or plain values, as JSON; a number that is not finite is null."""
    print(strict_json.dumps(_plain(value), indent=2))


class PlainConsole(Console):
    """A console that interprets neither markup nor control characters.

    Output contains text from nodes, files and other users. Only `rich.text.Text` sets styles.
    """

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **how: Any) -> Text:
        """Render text with control characters as escapes."""
        return super().render_str(printable(text, keep="\n"), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render with control characters as escapes, those in a `Text` too."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable() or segment.text == "\n":
                yield segment
            else:
                yield Segment(printable(segment.text, keep="\n"), segment.style)


def new_console(width: int = 100, *, stderr: bool = False) -> PlainConsole:
    """Return a console on standard output or error, `width` columns wide if that is no terminal."""
    console = PlainConsole(stderr=stderr)
    return console if console.is_terminal else PlainConsole(stderr=stderr, width=width)


def say(text: object = "", *, end: str = "\n", error: bool = False) -> None:
    """Print text with control characters as escapes."""
    print(printable(str(text), keep="\n"), end=end, file=sys.stderr if error else None, flush=True)


def marked(template: str, **values: object) -> Text:
    """Return a text with the styles of rich's markup in `template`; markup in `values` is shown as it is."""
    styles = Text.from_markup(template, emoji=False)
    out, at = Text(), 0
    for place in _PLACE.finditer(styles.plain):
        out.append_text(styles[at : place.start()])
        value = Text(printable(str(values[place[1]])))
        for span in styles[place.start() : place.end()].spans:
            value.stylize(span.style)
        out.append_text(value)
        at = place.end()
    return out.append_text(styles[at:])


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table, as wide as the terminal; without a terminal, as wide as its content."""
    console = console or new_console()
    if not console.file.isatty():
        needed = Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum
        file, console = console.file, PlainConsole(width=max(console.width, needed))
        console.file = file
    console.print(table)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error if that is a terminal; call the yielded function with done and total."""
    console = PlainConsole(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def new_table(*headings: str, title: str | None = None) -> Table:
    """Return an empty table; a column whose heading starts with ">" is right-aligned."""
    table = Table(
        title=None if title is None else Text(printable(title)),
        box=None,
        pad_edge=False,
        header_style="bold",
        title_justify="left",
        padding=(0, 2, 0, 0),
    )
    for heading in headings:
        right = heading.startswith(">")
        table.add_column(Text(printable(heading.removeprefix(">"))), justify="right" if right else "left", no_wrap=True)
    return table


def styled(text: str, styles: dict[str, str]) -> Text:
    """Return `text` in its colour."""
    return Text(printable(text), styles.get(text.lower(), ""))


def progress(status: pb.Status) -> str:
    """Return the progress of a run: round 7 of 25, or round 7 without a limit."""
    return f"round {status.round}" + (f" of {status.rounds}" if status.rounds else "")


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return as_dict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, str | int | float | bool | None):
        return value
    return [_plain(item) for item in value]
