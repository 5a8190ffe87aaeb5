"""Group of commands that are imported when they are used: the help of the group and its completion import none."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from hypergpu.common.command_line import Service, new_app


@dataclass(frozen=True, slots=True)
class Entry:
    """Command, and where it is."""

    name: str
    panel: str
    """Panel of the help that lists it."""
    home: str
    """Function, service or application, as "module:name"."""
    summary: str
    """First paragraph of its help."""
    kind: str = "typer.core:TyperCommand"
    """Class of the command, as "module:name"."""

    @property
    def target(self) -> Any:
        """Function, service or application."""
        return _imported(self.home)

    def command(self) -> Any:
        """Return the command; its module is imported."""
        target = self.target
        if not isinstance(target, typer.Typer):
            app = new_app()
            if isinstance(target, Service):
                target.add_to(app)
            else:
                app.command(self.name, cls=_imported(self.kind))(target)
            target = app
        return self._listed(get_command(target))

    def listing(self) -> Any:
        """Return a stand-in, with all that a list of commands shows."""
        return self._listed(TyperCommand(name=self.name, help=self.summary))

    def _listed(self, command: Any) -> Any:  # the class of a command is not public
        command.name, command.rich_help_panel = self.name, self.panel
        return command


class _Commands(Mapping[str, Any]):
    """Commands by name, each made at its first use."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = {entry.name: entry for entry in entries}
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._entries[name].command()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class LazyGroup(TyperGroup):
    """Group whose commands are those of `entries`."""

    entries: ClassVar[Sequence[Entry]] = ()

    def __init__(self, **named: Any) -> None:
        super().__init__(**named | {"commands": _Commands(self.entries)})

    def format_help(self, context: Any, formatter: Any) -> None:
        """Write the help, from summaries."""
        with self._listed():
            super().format_help(context, formatter)

    def shell_complete(self, context: Any, incomplete: str) -> Any:
        """Return the completions of a command's name or of an option."""
        with self._listed():
            return super().shell_complete(context, incomplete)

    @contextmanager
    def _listed(self) -> Iterator[None]:
        """Put stand-ins in the place of the commands."""
        commands, self.commands = self.commands, {entry.name: entry.listing() for entry in self.entries}
        try:
            yield
        finally:
            self.commands = commands


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
