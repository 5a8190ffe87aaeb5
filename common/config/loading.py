"""Configuration from YAML, environment and command line, in that order of increasing precedence."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from common.errors import ConfigError, suggest

_PREFIX = "HYPERGPU_"
Model = TypeVar("Model", bound=BaseModel)


def load_config(
    model: type[Model],
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    overrides: Iterable[str] = (),
) -> Model:
    """Build `model` from a YAML file, variables like `HYPERGPU_TRAINING__ROUNDS`, and `training.rounds=50` texts.

    Raises:
        ConfigError: an unreadable file, an unknown key (the nearest known one is named), or a bad value.
    """
    tree = read_yaml(file) if file else {}
    for name, text in sorted((environment or {}).items()):
        if name.startswith(_PREFIX) and "__" in name:
            _put(tree, name.removeprefix(_PREFIX).lower().split("__"), text, name)
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"{item!r} is not of the form key=value, as in training.rounds=50")
        _put(tree, key.strip().split("."), text, key)
    return parse(model, tree, where=str(file) if file else "configuration")


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or is not a mapping; file and line are named.
    """
    try:
        loaded = load_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{file} must hold a mapping of keys to values, not a {type(loaded).__name__}")
    return loaded


def load_yaml(text: str) -> Any:
    """What a YAML text holds.

    Raises:
        yaml.YAMLError: it is not YAML, or has a key twice, of which YAML's own loader would keep the last.
    """
    return yaml.load(text, _Loader)  # noqa: S506  (it is a safe loader)


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As usual, once no key is there twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse(model: type[Model], tree: Mapping[str, Any], where: str) -> Model:
    """Validate `tree`; one line per fault, each with its key.

    Raises:
        ConfigError: as `load_config`.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        faults = [explain(model, fault["loc"], fault["type"], fault["msg"]) for fault in error.errors()]
        raise ConfigError(f"{where}: " + "; ".join(faults)) from error


def _put(tree: dict[str, Any], path: list[str], text: str, origin: str) -> None:
    for part in path[:-1]:
        branch = tree.setdefault(part, {})
        if not isinstance(branch, dict):
            raise ConfigError(f"{origin}: {part!r} is a value, not a section")
        tree = branch
    tree[path[-1]] = yaml.safe_load(text)


def explain(model: type[BaseModel], location: tuple[int | str, ...], kind: str, message: str) -> str:
    """One fault that pydantic found in `model`, in words; an unknown key with the nearest known one."""
    key = ".".join(str(part) for part in location)
    message = message.removeprefix("Value error, ")
    if kind == "model_type":
        message = "expected keys and values, as in {key: value}"
    if kind != "extra_forbidden":
        return f"{key}: {message[0].lower()}{message[1:]}" if key else message
    known = _fields_at(model, location[:-1])
    return f"unknown key {key!r}{suggest(str(location[-1]), known)}"


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    kinds: list[type[BaseModel]] = []
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None:
            model = next((each for each in kinds if _is_tagged(each, part)), model)  # else an index, or a key of a dict
            continue
        kinds = list(_models_in(field.annotation))
        model = next(iter(kinds), model)
    return list(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation names, alone or among others."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _is_tagged(model: type[BaseModel], tag: int | str) -> bool:
    """Whether `tag` chooses this model of a union."""
    return any(tag in get_args(field.annotation) for field in model.model_fields.values())
