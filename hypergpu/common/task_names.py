"""Names of tasks, shipped and offered by installed distributions; known without importing torch."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

SHIPPED = ("chars", "digits", "mnist5k")
"""Tasks that are shipped; each trains on real data and needs no network."""
GROUP = "hypergpu.tasks"
"""The group of entry points by which a distribution offers tasks, each as NAME = "module:factory"."""


def installed() -> Mapping[str, EntryPoint]:
    """Return the tasks of installed distributions by name; a shipped one is never replaced."""
    found = sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))
    return {point.name: point for point in found if point.name not in SHIPPED}


def known() -> list[str]:
    """Return what can be said for a task."""
    return [*SHIPPED, *installed(), "package.module:factory"]


def choices() -> str:
    """Return the same for a help text."""
    return f"{', '.join((*SHIPPED, *installed()))}, or your own as package.module:factory"
