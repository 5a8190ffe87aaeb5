"""Options shared by several commands: declared once as a dataclass, and added to each command."""

from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

import typer
from typer.core import TyperCommand
from typer.main import get_command

Options = TypeVar("Options")


class OptionGroup(Generic[Options]):
    """Options and arguments declared by the fields of a dataclass."""

    def __init__(self, options: Callable[..., Options]) -> None:
        app = typer.Typer(add_completion=False)
        app.command()(options)
        command = get_command(app)
        assert command.callback is not None
        self._build: Callable[..., Options] = command.callback
        self.parameters = command.params

    def take(self, context: Any) -> None:  # the class of a context is not public
        """Move the values of these options from the parameters of a command to its context, for `of`."""
        values = {str(each.name): context.params.pop(each.name) for each in self.parameters}
        context.meta[self._key] = self._build(**values)

    def of(self, context: typer.Context) -> Options:
        """Return the values of these options."""
        options: Options = context.meta[self._key]
        return options

    @property
    def _key(self) -> str:
        return f"{__name__}.{id(self)}"


class GroupCommand(TyperCommand):
    """Command that also has the options of its groups."""

    groups: ClassVar[tuple[OptionGroup[Any], ...]] = ()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        own = named.get("params") or ()
        named["params"] = [*own, *(each for group in self.groups for each in group.parameters)]
        super().__init__(*arguments, **named)

    def invoke(self, context: Any) -> Any:
        """Run the function with the values of the groups in its context."""
        for group in self.groups:
            group.take(context)
        return super().invoke(context)
