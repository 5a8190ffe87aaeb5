"""Typed YAML: each fault is reported with file, line, key and expected value."""

from typing import Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from hypergpu.common.config.document import compose_yaml, load_yaml, problem_of
from hypergpu.common.config.loading import MOST_FAULTS, explain
from hypergpu.common.errors import ConfigError
from hypergpu.common.text import one_line, printable

Model = TypeVar("Model", bound=BaseModel)
KeyPath = tuple[int | str, ...]
_MAX_KEY: Final = 80
"""Longest part of a key in a message, in characters."""


def parse_yaml(model: type[Model], text: str, name: str) -> Model:
    """Return the `model` in a YAML text; errors call the text `name`.

    Raises:
        ConfigError: it is not YAML, not a mapping, or does not hold; one clause per fault, as NAME:LINE: KEY: WHAT.
    """
    try:
        tree = load_yaml(text)
    except yaml.YAMLError as error:
        line, problem = problem_of(error)
        raise ConfigError(f"{name}:{line}: not valid YAML: {one_line(problem)}") from error
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise ConfigError(f"{name}:1: expected keys and values ({', '.join(model.model_fields)}), found {found}")
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(faults_of(model, error, text, name))) from error
    except (OverflowError, RecursionError) as error:
        raise ConfigError(f"{name}: a value is out of range ({error})") from error


def faults_of(model: type[BaseModel], error: ValidationError, text: str, name: str) -> list[str]:
    """Return the first faults, each with its place."""
    root = compose_yaml(text)
    faults = []
    for found in error.errors()[:MOST_FAULTS]:
        line, path = _place(root, found["loc"])
        faults.append(f"{name}:{line}: {explain(model, path, found)}")
    if error.error_count() > MOST_FAULTS:
        faults.append(f"and {error.error_count() - MOST_FAULTS:,} more")
    return faults


def fault(text: str, name: str, path: KeyPath, message: str) -> ConfigError:
    """Return an error about the value at `path`, as NAME:LINE: KEY: MESSAGE."""
    line, path = _place(compose_yaml(text), path)
    shown = ".".join(str(key)[:_MAX_KEY] for key in path)
    return ConfigError(f"{name}:{line}: {printable(shown)}: {message}")


def _place(node: Any, path: KeyPath) -> tuple[int, KeyPath]:
    """Return the line of the key at `path`, or of the nearest enclosing one, and the path with keys for numbers."""
    line, named = (node.start_mark.line if node is not None else 0), list(path)
    for depth, part in enumerate(path):
        if isinstance(node, yaml.MappingNode):
            at = [key.value for key, _ in node.value]
            if str(part) not in at and not (isinstance(part, int) and part < len(at)):
                break
            key, node = node.value[at.index(str(part)) if str(part) in at else int(part)]
            line, named[depth] = key.start_mark.line, key.value
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
        else:
            break
    return line + 1, tuple(named)
