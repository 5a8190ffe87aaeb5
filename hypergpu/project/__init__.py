"""A new project: a task, its settings and its test, from templates."""

from importlib.resources import files
from pathlib import Path
from typing import Final

from hypergpu.common.errors import InvalidInput, StorageError
from hypergpu.common.files import shown

_TEMPLATE: Final = ".txt"
"""Ending of a template, so that no tool takes it for a part of this package."""
COMMANDS: Final = (
    ("python -m pytest", "test the task, in seconds"),
    ("hypergpu demo --task my_task:task --rounds 20", "train it on this machine, behind five kinds of network"),
    ("hypergpu coordinator --config config.yaml --insecure", "train it on nodes that dial in, such as"),
    ("hypergpu node --task my_task:task --insecure", "this one, in another terminal"),
)
"""Commands that work in a new project, with what each does."""


def make_project(directory: Path) -> list[Path]:
    """Make a project in a directory that is new or empty; return its files.

    Raises:
        InvalidInput: the directory holds something, or is no directory.
        StorageError: it cannot be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        there = next(directory.iterdir(), None)
        if there is not None:
            fault = f"is not empty, it holds {there.name}"
            raise InvalidInput(f"{shown(directory)} {fault}; give the name of a new directory")
        return [_written(directory, *each) for each in _templates()]
    except (FileExistsError, NotADirectoryError):
        raise InvalidInput(f"{shown(directory)} is not a directory; give the name of a new one") from None
    except OSError as error:
        raise StorageError(f"cannot write to {shown(directory)}: {error.strerror}") from error


def _templates() -> list[tuple[str, str]]:
    """Return the name and the text of each file of a project."""
    found = [each for each in files(__name__).iterdir() if each.name.endswith(_TEMPLATE)]
    return sorted((each.name.removesuffix(_TEMPLATE), each.read_text(encoding="utf-8")) for each in found)


def _written(directory: Path, name: str, text: str) -> Path:
    file = directory / name
    with file.open("x", encoding="utf-8") as out:  # never over a file that has come meanwhile
        out.write(text)
    return file
