"""Bounded YAML: a document that would exhaust memory, time or the stack is an error with its line."""

from typing import Any, Final

import yaml

MAX_DEPTH: Final = 50
"""Deepest nesting. A scenario takes 6; Python's stack holds some 300."""
MAX_NODES: Final = 1_000_000
"""Most keys and values, with aliases expanded. 30,000 events take a third of it."""
MAX_SCALAR_CHARACTERS: Final = 4_000
"""Longest number, date or other value that is not text; Python parses no integer above 4,300 digits."""


def load_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        yaml.YAMLError: the text is not YAML, has a duplicate key (YAML's own loader would keep the last) or an invalid
            value, is nested too deep, or is too large with its aliases expanded.
    """
    return _load(text, _Loader)


def load_texts(text: str) -> Any:
    """Return the value of a YAML text, with every scalar as its text.

    Raises:
        yaml.YAMLError: as `load_yaml`.
    """
    return _load(text, _TextLoader)


def compose_yaml(text: str) -> yaml.Node | None:
    """Return the node tree of a YAML text, which has the line of each key.

    Raises:
        yaml.YAMLError: as `load_yaml`.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def problem_of(error: yaml.YAMLError) -> tuple[int, str]:
    """Return the line and the description of an error."""
    if isinstance(error, yaml.MarkedYAMLError):
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        return line, error.problem or error.context or "invalid YAML"
    if isinstance(error, yaml.reader.ReaderError):
        code = error.character if isinstance(error.character, int) else ord(error.character)
        return 1, f"character {error.position + 1} (U+{code:04X}) is not allowed in YAML"
    return 1, " ".join(str(error).split())


class _Loader(yaml.SafeLoader):
    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._count = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node within the bounds."""
        event = self.peek_event()
        start: Any = event.start_mark
        if self._depth >= MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested over {MAX_DEPTH} levels deep", start)
        before = self._count
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None:
            if isinstance(event, yaml.AliasEvent):
                if node not in self._sizes:
                    raise yaml.composer.ComposerError(None, None, f"*{event.anchor} contains itself", start)
                self._count += self._sizes[node]
            else:
                self._count += 1
                self._sizes[node] = self._count - before
        if self._count > MAX_NODES:
            raise yaml.composer.ComposerError(None, None, f"over {MAX_NODES:,} keys and values", start)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping whose keys are unique plain values."""
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain value", key.start_mark)
            if key.value in seen:
                shown = key.value if len(key.value) <= 80 else key.value[:80] + "…"
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {shown!r}", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value; an invalid one is an error with its line."""
        scalar = isinstance(node, yaml.ScalarNode)
        kind = node.tag.rpartition(":")[2]
        if scalar and kind != "str" and len(node.value) > MAX_SCALAR_CHARACTERS:
            raise yaml.constructor.ConstructorError(
                None, None, f"a value of {len(node.value):,} characters is too long for {kind}", node.start_mark
            )
        if scalar and any("\ud800" <= char <= "\udfff" for char in node.value):
            raise yaml.constructor.ConstructorError(None, None, "an unpaired surrogate", node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
            shown = repr(node.value[:80]) if scalar else "this"
            raise yaml.constructor.ConstructorError(
                None, None, f"{shown} is not a valid {kind}", node.start_mark
            ) from error


class _TextLoader(_Loader):
    """Keeps scalars as text."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (as in the base class)


def _load(text: str, kind: type[_Loader]) -> Any:
    loader = kind(text)
    try:
        return loader.get_single_data()
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise yaml.YAMLError(f"invalid value ({error})") from error
    finally:
        loader.dispose()
