"""Names of shipped tasks and of those in installed distributions, without importing torch."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

SHIPPED = ("chars", "digit_sums", "digits", "mnist5k")
"""Shipped tasks; each trains on real data and needs no network."""
GROUP = "hypergpu.tasks"
"""Group of entry points for tasks of a distribution, each as NAME = "module:factory"."""


def installed() -> Mapping[str, EntryPoint]:
    """Return the tasks of installed distributions by name; a shipped task cannot be replaced."""
    found = sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))
    return {point.name: point for point in found if point.name not in SHIPPED}


def known() -> list[str]:
    """Return the accepted task names and forms."""
    return [*SHIPPED, *installed(), "package.module:factory"]


def choices() -> str:
    """Return the accepted task names and forms as a help text."""
    return f"{', '.join((*SHIPPED, *installed()))}, or your own as package.module:factory"
