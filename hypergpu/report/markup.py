"""HTML and SVG in which every text is escaped unless it was built here."""

from html import escape
from math import isfinite

VOID = frozenset({"meta", "input", "br", "col"})


class Markup(str):
    """Text that is already markup. Only `tag`, `join` and the package's own style and script create it."""

    __slots__ = ()


Child = Markup | str | float | int | None


def tag(name: str, /, *children: Child, **attributes: str | float | int | bool | None) -> Markup:
    """Return an element. Children that are not `Markup` are escaped; None and False leave an attribute out.

    `class_` and `for_` stand for the words that Python reserves, `data_tooltip` for `data-tooltip`.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """Return the concatenation of pieces; None is skipped."""
    return Markup("".join(text(child) for child in children if child is not None))


def text(child: Child) -> str:
    """Return a piece as markup."""
    if isinstance(child, Markup):
        return child
    return escape(short(child) if isinstance(child, float) else str(child))


def short(value: float) -> str:
    """Return a coordinate with at most two decimals, which is finer than a pixel."""
    if not isfinite(value):
        return "0"
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _attribute(key: str, value: str | float | int | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    return f' {name}="{escape(short(value) if isinstance(value, float) else str(value))}"'
