"""Files of a run as outlets read them: appended lines, piece by piece, and what was written at the end."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import yaml

from hypergpu.common import strict_json
from hypergpu.common.config.document import load_yaml
from hypergpu.common.errors import ConfigError
from hypergpu.common.files import read_text
from hypergpu.common.text import printable
from hypergpu.coordinator.run_dir import EVENTS, ROUNDS
from hypergpu.outlets.figures import figures_of, round_of
from hypergpu.outlets.outlet import Ending, Round

_UNTOLD: Final = frozenset({"round_started", "round_closed", "waiting", "gain_measured"})
"""Kinds of events that a round's figures tell."""
_MOST_NOTES: Final = 100
"""Notes of one round."""
_LONGEST_NOTE: Final = 500
_FILES: Final = ("config.yaml", ROUNDS, EVENTS, "summary.json", "nodes.json")
_MAX_SUMMARY_BYTES: Final = 64 << 20
_LONGEST_RUN_SECONDS: Final = 100 * 365.25 * 86_400


class AppendedLines:
    """Objects in a file of JSON lines that a process appends to; invalid lines are skipped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def next(self) -> dict[str, Any] | None:
        """Return the next object; None if no complete line is left for now.

        Raises:
            OSError: the file cannot be read.
        """
        if self._file is None and not self._path.exists():
            return None
        self._file = file = self._file or self._path.open("rb")
        while True:
            at = file.tell()
            line = file.readline(strict_json.MAX_LINE_BYTES)
            if not line.endswith(b"\n") and len(line) < strict_json.MAX_LINE_BYTES:
                file.seek(at)
                return None
            with contextlib.suppress(ValueError):
                return strict_json.parse_object(line)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while (row := self.next()) is not None:
            yield row

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class RunFiles:
    """Records of a run, each of which is yielded once.

    Args:
        directory: Run directory.
        after: Last round that is not wanted any more.
    """

    def __init__(self, directory: Path, after: int = 0) -> None:
        self._directory, self._after = directory, after
        self._rounds, self._events = AppendedLines(directory / ROUNDS), AppendedLines(directory / EVENTS)
        self._event: Mapping[str, Any] | None = None
        """Next event, which is of a later round than was yielded."""

    def rounds(self) -> Iterator[Round]:
        """Yield the rounds that have been written since the last call."""
        for row in self._rounds:
            closed = round_of(row)
            if closed is not None and closed.number > self._after:
                notes = self._notes(closed.seconds)
                self._after = closed.number
                yield replace(closed, notes=notes)

    def close(self) -> None:
        """Close the files."""
        self._rounds.close()
        self._events.close()

    def ending(self) -> Ending:
        """Return what is known after the last round."""
        summary: Mapping[str, Any] = {}
        with contextlib.suppress(ConfigError):
            summary = strict_json.read_object(self._directory / "summary.json", _MAX_SUMMARY_BYTES)
        state, reason = (str(summary.get(name) or "")[:_LONGEST_NOTE] for name in ("state", "reason"))
        files = [self._directory / name for name in _FILES]
        figures = figures_of({name: value for name, value in summary.items() if not isinstance(value, dict)})
        return Ending(state, reason, figures, self._notes(math.inf), [file for file in files if file.is_file()])

    def _notes(self, until: float) -> list[str]:
        """Return the notes up to a time, without those of rounds that are not wanted any more."""
        notes: list[str] = []
        left_out = 0
        while True:
            self._event = event = self._event if self._event is not None else self._events.next()
            if event is None or _number(event.get("seconds")) > until:
                return [*notes, f"{left_out} more are in {EVENTS}"] if left_out else notes
            self._event = None
            text = event.get("text")
            if event.get("kind") in _UNTOLD or not isinstance(text, str) or _number(event.get("round")) < self._after:
                continue
            if len(notes) < _MOST_NOTES:
                notes.append(printable(text[:_LONGEST_NOTE]))
            else:
                left_out += 1


def settings_of(directory: Path) -> dict[str, Any]:
    """Return the settings of a run by dotted key; none if they cannot be read."""
    try:
        found = load_yaml(read_text(directory / "config.yaml"))
    except (ConfigError, yaml.YAMLError, RecursionError):
        return {}
    return dict(_flat(found)) if isinstance(found, dict) else {}


def last_round(directory: Path) -> int:
    """Return the number of the last round on record; 0 if there is none."""
    lines = AppendedLines(directory / ROUNDS)
    with contextlib.closing(lines):
        return max((closed.number for row in lines if (closed := round_of(row)) is not None), default=0)


def started_at(directory: Path) -> float:
    """Return when a run began, in seconds since the epoch: when the last record was written, less its time."""
    lines = AppendedLines(directory / EVENTS)
    with contextlib.closing(lines):
        seconds = max((_number(row.get("seconds")) for row in lines), default=0.0)
    return newest(directory) - min(seconds, _LONGEST_RUN_SECONDS)


def newest(directory: Path) -> float:
    """Return when a record of a run was last written, in seconds since the epoch."""
    found = (directory / name for name in (ROUNDS, EVENTS))
    return max((file.stat().st_mtime for file in found if file.is_file()), default=time.time())


def _number(value: object) -> float:
    """Return a number of a file; 0 for what is none."""
    return value if isinstance(value, int | float) and math.isfinite(value) else 0.0


def _flat(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
