"""Typed YAML: what does not hold is named with file, line, key, and what was expected."""

from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from common.config.loading import explain
from common.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)
KeyPath = tuple[int | str, ...]


def parse_yaml(model: type[Model], text: str, name: str) -> Model:
    """The `model` that a YAML text holds; `name` is what to call the text in errors.

    Raises:
        ConfigError: it is not YAML, not a mapping, or does not hold; one line per fault, as NAME:LINE: KEY: WHAT.
    """
    try:
        tree = yaml.safe_load(text)
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
    """Each fault with its place."""
    return [
        f"{place(text, name, fault['loc'])}: {explain(model, fault['loc'], fault['type'], fault['msg'])}"
        for fault in error.errors()
    ]


def place(text: str, name: str, path: KeyPath) -> str:
    """NAME:LINE of the key at `path`, or of the nearest around it."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    line = node.start_mark.line if node is not None else 0
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
        else:
            break
    return f"{name}:{line + 1}"
