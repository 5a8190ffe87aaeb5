"""Typed YAML: what does not hold is named with file, line, key, and what was expected."""

from typing import Final, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from common.config.loading import explain, load_yaml
from common.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)
KeyPath = tuple[int | str, ...]
_MAX_FAULTS: Final = 20


def parse_yaml(model: type[Model], text: str, name: str) -> Model:
    """The `model` that a YAML text holds; `name` is what to call the text in errors.

    Raises:
        ConfigError: it is not YAML, not a mapping, or does not hold; one line per fault, as NAME:LINE: KEY: WHAT.
    """
    try:
        tree = load_yaml(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{name}:{line}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise ConfigError(f"{name}:1: expected keys and values ({', '.join(model.model_fields)}), found {found}")
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(faults_of(model, error, text, name))) from error


def faults_of(model: type[BaseModel], error: ValidationError, text: str, name: str) -> list[str]:
    """Each fault with its place, as far as anybody would read."""
    faults, node = [], yaml.compose(text, Loader=yaml.SafeLoader)
    found = error.errors()
    for each in found[:_MAX_FAULTS]:
        line, path = _place(node, each["loc"])
        faults.append(f"{name}:{line}: {explain(model, path, each['type'], each['msg'])}")
    return faults + ([f"and {len(found) - _MAX_FAULTS} more"] if len(found) > _MAX_FAULTS else [])


def fault(text: str, name: str, path: KeyPath, message: str) -> ConfigError:
    """An error about what is at `path`, as NAME:LINE: KEY: MESSAGE."""
    line, path = place(text, path)
    return ConfigError(f"{name}:{line}: {'.'.join(map(str, path))}: {message}")


def place(text: str, path: KeyPath) -> tuple[int, KeyPath]:
    """The line of the key at `path`, or of the nearest around it; and the path, with keys for numbers in mappings."""
    return _place(yaml.compose(text, Loader=yaml.SafeLoader), path)


def _place(node: yaml.Node | None, path: KeyPath) -> tuple[int, KeyPath]:
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
