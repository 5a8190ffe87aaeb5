"""Configuration from YAML, environment and command line, in that order of increasing precedence."""

import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hypergpu.common.config.document import load_texts, load_yaml, problem_of
from hypergpu.common.errors import ConfigError, suggest
from hypergpu.common.files import read_text, shown
from hypergpu.common.text import one_line, printable

_PREFIX = "HYPERGPU_"
MAX_YAML_BYTES = 16 << 20
"""Largest YAML file, in bytes. 30,000 events take 3 MB."""
MOST_FAULTS = 20
"""Errors of one file that are reported at once."""
Model = TypeVar("Model", bound=BaseModel)
KeyPath = tuple[str, ...]


def load_config(
    model: type[Model],
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    overrides: Iterable[str] = (),
    options: Mapping[str, object] | None = None,
) -> Model:
    """Build `model` from a YAML file, variables, texts and options; what comes later wins.

    A text is one value, not a document: a text field takes it verbatim, numbers and booleans are parsed from it, and
    YAML is parsed only for lists and sections.

    Args:
        model: what to build.
        file: YAML.
        environment: variables such as `HYPERGPU_TRAINING__ROUNDS`; others are ignored.
        overrides: values of --set, such as `training.rounds=50`.
        options: values of other options by key, such as `{"training.rounds": 50}`; None is none.

    Raises:
        ConfigError: an unreadable file, an unknown key (the message suggests the nearest one), or an invalid value; the
            message names the key and its source.
    """
    tree = _Tree(model, read_yaml(file) if file else {}, shown(file) if file else "")
    for name, text in sorted((environment or {}).items()):
        if name.startswith(_PREFIX) and "__" in name:
            tree.put_text(tuple(name.removeprefix(_PREFIX).lower().split("__")), text, name)
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"--set {item[:80]!r} is not of the form key=value, as in training.rounds=50")
        tree.put_text(tuple(key.strip().split(".")), text, "--set")
    for key, value in (options or {}).items():
        if value is not None:
            path = tuple(key.split("."))
            tree.put(path, value, f"--{path[-1].replace('_', '-')}")
    return tree.built()


@dataclass(slots=True)
class _Tree(Generic[Model]):
    """Values by key, with the source of each."""

    model: type[Model]
    values: dict[str, Any]
    file: str
    origins: dict[KeyPath, str] = field(default_factory=dict)

    def put_text(self, path: KeyPath, text: str, origin: str) -> None:
        """Set a value given as text."""
        key = ".".join(path)
        try:
            value = _value(text, list(_annotations_at(self.model, path)))
        except yaml.YAMLError as error:
            raise ConfigError(
                f"{origin}: {_shown_key(key)}: not valid YAML: {one_line(problem_of(error)[1])}"
            ) from error
        self.put(path, value, origin)

    def put(self, path: KeyPath, value: object, origin: str) -> None:
        """Set a value."""
        branch = self.values
        for depth, part in enumerate(path[:-1]):
            inner = branch.setdefault(part, {})
            if not isinstance(inner, dict):
                told = _shown_key(".".join(path[: depth + 1]))
                raise ConfigError(f"{origin}: {_shown_key('.'.join(path))}: {told} is a value, not a section")
            branch = inner
        branch[path[-1]] = value
        self.origins[path] = origin

    def built(self) -> Model:
        """Return the validated model; an error has one clause per fault, each with its source and key."""
        try:
            return self.model.model_validate(self.values)
        except ValidationError as error:
            raise ConfigError(_listed(map(self._told, error.errors()), error.error_count())) from error

    def _told(self, fault: Any) -> str:
        location = tuple(map(str, fault["loc"]))
        matching = [path for path in self.origins if path == location[: len(path)] or location == path[: len(location)]]
        origin = self.origins[max(matching, key=len)] if matching else self.file or "configuration"
        return f"{origin}: {explain(self.model, fault['loc'], fault)}"


def read_yaml(file: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or is not a mapping; file and line are named.
    """
    text = read_text(file, MAX_YAML_BYTES)
    try:
        loaded = load_yaml(text)
    except yaml.YAMLError as error:
        line, problem = problem_of(error)
        raise ConfigError(f"{shown(file)}:{line}: not valid YAML: {one_line(problem)}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{shown(file)} must hold a mapping of keys to values, not a {type(loaded).__name__}")
    return loaded


def parse(model: type[Model], tree: Mapping[str, Any], where: str) -> Model:
    """Return `tree` as a validated model; an error has one clause per fault, each with its key.

    Raises:
        ConfigError: an unknown key or an invalid value.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        faults = (explain(model, fault["loc"], fault) for fault in error.errors())
        raise ConfigError(f"{where}: " + _listed(faults, error.error_count())) from error


def explain(model: type[BaseModel], location: tuple[int | str, ...], fault: ErrorDetails) -> str:
    """Return a pydantic error in words; for an unknown key, with the nearest known one."""
    key = ".".join(str(part) for part in location)
    kind, message = fault["type"], fault["msg"].removeprefix("Value error, ")
    if kind == "float_type" and isinstance(fault["input"], int):
        message = f"input should be within ±{sys.float_info.max:.4g}"
    if kind == "model_type":
        message = "expected keys and values, as in {key: value}"
    if kind != "extra_forbidden":
        return f"{_shown_key(key)}: {message[0].lower()}{message[1:]}" if key else message
    known = _fields_at(model, location[:-1])
    return f"unknown key '{_shown_key(key)}'{suggest(str(location[-1])[:80], known)}"


def _listed(faults: Iterable[str], count: int) -> str:
    shown_faults = [fault for fault, _ in zip(faults, range(MOST_FAULTS), strict=False)]
    more = f"; and {count - MOST_FAULTS:,} more" if count > MOST_FAULTS else ""
    return "; ".join(shown_faults) + more


def _shown_key(key: str) -> str:
    return printable(key if len(key) <= 120 else key[:120] + "…")


def _value(text: str, annotations: list[Any]) -> object:
    """Return a text as the value of a field: verbatim if the field takes text or parses it, or else parsed as YAML."""
    if not annotations or any(_is_text(each) for each in annotations):
        return text
    if all(_is_scalar(each) for each in annotations):
        if type(None) in annotations and text in {"", "null", "~"}:
            return None
        return text.replace(".", "", 1) if text.lower().lstrip("+-") in {".nan", ".inf"} else text
    items = [item for each in annotations for item in _alternatives(get_args(each)) if item is not Ellipsis]
    return load_texts(text) if items and all(_is_text(item) for item in items) else load_yaml(text)


def _annotations_at(model: type[BaseModel], path: KeyPath) -> Iterator[Any]:
    """Yield the types of the field at `path`; nothing if there is no such field."""
    models = [model]
    for depth, part in enumerate(path):
        fields = [each.model_fields[part] for each in models if part in each.model_fields]
        if depth == len(path) - 1:
            for found in fields:
                yield from _alternatives((found.annotation,))
        models = [each for found in fields for each in _models_in(found.annotation)]


def _alternatives(annotations: Iterable[Any]) -> Iterator[Any]:
    for annotation in annotations:
        origin = get_origin(annotation)
        if origin is Annotated:
            yield from _alternatives(get_args(annotation)[:1])
        elif origin in (Union, types.UnionType):
            yield from _alternatives(get_args(annotation))
        else:
            yield annotation


def _is_text(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return all(isinstance(each, str) for each in get_args(annotation))
    return isinstance(annotation, type) and issubclass(annotation, (str, Path))


def _is_scalar(annotation: Any) -> bool:
    return get_origin(annotation) is Literal or annotation in (bool, int, float, type(None))


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
    """Yield the models in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _is_tagged(model: type[BaseModel], tag: int | str) -> bool:
    """Return whether `tag` selects this model of a union."""
    return any(tag in get_args(field.annotation) for field in model.model_fields.values())
