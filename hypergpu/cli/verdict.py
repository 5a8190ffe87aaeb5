"""Verdict of a validation: its figures, the limits that it missed, and the exit code."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import typer

from hypergpu.console import print_json, say


def conclude(record: Mapping[str, Any], failures: Sequence[str], show: Callable[[], object], *, as_json: bool) -> None:
    """Print the figures and the verdict of a validation.

    Args:
        record: figures, printed with `as_json`.
        failures: a sentence for each limit that was missed.
        show: prints the figures for people.
        as_json: print JSON.

    Raises:
        typer.Exit: with code 1, if a limit was missed.
    """
    if as_json:
        print_json({**record, "failures": failures, "passed": not failures})
    else:
        show()
        for failure in failures:
            say(f"FAIL  {failure}")
        if not failures:
            say("pass")
    if failures:
        raise typer.Exit(1)
