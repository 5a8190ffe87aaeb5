"""Base of all command lines: help, exit codes, and errors in one line."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, NoReturn, TypeVar

import typer
from typer.core import TyperCommand

from hypergpu.common.errors import HyperGPUError
from hypergpu.common.extras import missing_extra
from hypergpu.common.text import one_line

PREFIX: Final = "hypergpu: "
"""Beginning of every error message."""
BAD_INPUT: Final = 2
"""Exit code after a usage error or any other expected error."""
SERVICE_PANEL: Final = "Run a service"
_INTERRUPTED: Final = 130
_BROKEN_PIPE: Final = 141
"""Exit codes of a shell command that SIGINT or SIGPIPE ended."""

Options = TypeVar("Options")


def new_app(help_text: str | None = None, *, completion: bool = False) -> typer.Typer:
    """Return an application without commands."""
    return typer.Typer(
        help=help_text,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
        add_completion=completion,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",  # joins the lines of a paragraph
    )


@dataclass(frozen=True)
class Service(Generic[Options]):
    """Service that is both a command of `hypergpu` and a program."""

    name: str
    options: Callable[..., Options]
    """Dataclass whose fields are the options and whose docstring is the help text."""
    run: Callable[[Options], int]
    """Function that runs the service with these options and returns the exit code."""

    def add_to(self, app: typer.Typer) -> None:
        """Add the command to an application."""
        run = self.run

        class Command(TyperCommand):
            def invoke(self, context: Any) -> NoReturn:  # the class of a context is not public
                raise typer.Exit(run(super().invoke(context)))

        app.command(self.name, cls=Command, rich_help_panel=SERVICE_PANEL)(self.options)

    def main(self, arguments: Sequence[str] | None = None) -> NoReturn:
        """Run the service and exit; the arguments default to those of the process."""
        app = new_app()
        self.add_to(app)
        run_app(app, sys.argv[1:] if arguments is None else arguments, f"hypergpu {self.name}")


def run_app(app: typer.Typer, arguments: Sequence[str], program: str | None = None) -> NoReturn:
    """Run a command and exit. An expected error is one line on standard error and exit code 2, never a traceback."""
    try:
        code = app(list(arguments), prog_name=program, standalone_mode=False)
    except typer.TyperException as error:
        _fail(error.format_message() + _where_to_look(error))
    except HyperGPUError as error:
        _fail(str(error))
    except ImportError as error:
        if (missing := missing_extra(error)) is None:
            raise
        _fail(str(missing))
    except typer.Abort:
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        sys.stdout = None  # the reader is gone: flushing at exit would fail again
        sys.exit(_BROKEN_PIPE)
    sys.exit(code if isinstance(code, int) else 0)


def complain(message: str) -> None:
    """Print an error as one line on standard error."""
    print(f"{PREFIX}{one_line(message)}", file=sys.stderr)


def _where_to_look(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)  # only usage errors have one
    return f" (see `{context.command_path} --help`)" if context is not None else ""


def _fail(message: str) -> NoReturn:
    complain(message)
    sys.exit(BAD_INPUT)
