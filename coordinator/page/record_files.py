"""Records of a run directory as server-sent events, read piece by piece; no state of a viewer is kept but its place.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from hypergpu.common.files import state_of
from hypergpu.common.strict_json import MAX_LINE_BYTES
from hypergpu.coordinator.run_dir import EVENTS, ROUNDS, WHAT_IF

LINES: Final = {"event": EVENTS, "round": ROUNDS}
"""Files of lines, by the type of event that a line is sent as. They are only appended to, or replaced."""
WHOLE: Final = {"summary": "summary.json", "nodes": "nodes.json", "what_if": WHAT_IF}
"""Files that are sent whole when they have changed."""
_PIECE_BYTES: Final = 256 << 10
_MAX_WHOLE_BYTES: Final = 16 << 20

FileState = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class Place:
    """Place of a viewer in the records: the bytes of each file of lines that it has, and the whole files."""

    generation: str
    """Files that the bytes are of; others begin when a file is replaced, as by a new run."""
    bytes: tuple[int, ...] = (0,) * len(LINES)
    whole: tuple[FileState, ...] = (None,) * len(WHOLE)

    @property
    def id(self) -> str:
        """Place as the id of an event, from which a viewer resumes."""
        return ".".join([self.generation, *map(str, self.bytes)])


class Piece(NamedTuple):
    """Events that follow a place."""

    events: bytes
    """Empty if everything has been read."""
    place: Place
    """Place after them."""
    more: bool
    """True if more may follow at once."""


def states(directory: Path) -> tuple[FileState, ...]:
    """Return the state of each file, which changes with its content: first those of lines, then the whole ones."""
    return tuple(state_of(directory / name) for name in (*LINES.values(), *WHOLE.values()))


def generation_of(found: Sequence[FileState], server: str) -> str:
    """Return the generation of the files of lines in these states, as one server names it."""
    return "-".join([server, *(str(state[0]) if state else "" for state in found[: len(LINES)])])


def place_of(event_id: str, generation: str) -> Place:
    """Return the place that the id of an event names; the beginning if it is of another generation, or none."""
    named, *counts = event_id.split(".")
    valid = named == generation and len(counts) == len(LINES)
    if not valid or not all(count.isascii() and count.isdigit() and len(count) < 16 for count in counts):
        return Place(generation)
    return Place(generation, tuple(map(int, counts)))


def read_piece(directory: Path, found: Sequence[FileState], place: Place) -> Piece:
    """Return the next events after a place, at most some 256 KiB of lines of each file; `found` are their states."""
    pieces, counts, sizes = [], list(place.bytes), [0 if state is None else state[2] for state in found]
    for (kind, name), state, sent in zip(WHOLE.items(), found[len(LINES) :], place.whole, strict=True):
        if state is not None and state != sent:
            pieces.append(_whole(kind, directory / name, state))
    for number, (kind, name) in enumerate(LINES.items()):
        if sizes[number] > counts[number]:
            data, skipped = _lines(directory / name, counts[number])
            counts[number] += len(data) + skipped
            pieces.append(message("note", f"A line of {name} is too long and is left out.") if skipped else b"")
            pieces.append(_events(kind, data))
    after = replace(place, bytes=tuple(counts), whole=tuple(found[len(LINES) :]))
    if after.bytes != place.bytes:
        pieces.append(f"event: place\nid: {after.id}\ndata:\n\n".encode())
    more = after.bytes != place.bytes and any(size > count for size, count in zip(sizes, counts, strict=False))
    return Piece(b"".join(pieces), after, more)


def faults(directory: Path, place: Place, *, is_written: bool) -> list[str]:
    """Return what is missing from the files of a viewer who has read them up to a place."""
    found = [f"{name} is missing." for name in LINES.values() if not (directory / name).is_file()]
    if is_written:
        return found
    expected = [name for name in WHOLE.values() if name != WHAT_IF]
    found += [f"{name} is missing." for name in expected if not (directory / name).is_file()]
    sizes = zip(LINES.values(), states(directory), place.bytes, strict=False)
    cut = [name for name, state, read in sizes if state is not None and state[2] > read]
    return [*found, *(f"The last line of {name} is cut short and is left out." for name in cut)]


def message(kind: str, data: str) -> bytes:
    """Return a server-sent event; `data` is one line."""
    return f"event: {kind}\ndata: {data}\n\n".encode()


def _lines(path: Path, at: int) -> tuple[bytes, int]:
    """Return the complete lines from a place on, and the bytes to skip: those of a line that is too long."""
    try:
        with path.open("rb") as file:
            file.seek(at)
            data = file.read(_PIECE_BYTES)
            if len(data) == _PIECE_BYTES and b"\n" not in data:
                data += file.read(MAX_LINE_BYTES - _PIECE_BYTES)
    except OSError:
        return b"", 0
    end = data.rfind(b"\n") + 1
    return (data[:end], 0) if end or len(data) < MAX_LINE_BYTES else (b"", len(data))


def _events(kind: str, lines: bytes) -> bytes:
    """Return lines as events. A carriage return would end a line of the stream, and begin another event."""
    head = f"event: {kind}\ndata: ".encode()
    found = lines.replace(b"\r", b" ").split(b"\n")
    return b"".join(head + line + b"\n\n" for line in found if line and not line.isspace())


@lru_cache(maxsize=2 * len(WHOLE))
def _whole(kind: str, path: Path, state: FileState) -> bytes:
    """Return a file as an event, made once for all viewers; `state` tells one content from the next."""
    del state
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_WHOLE_BYTES + 1)
    except OSError as error:
        return message("note", f"{path.name} could not be read: {error.strerror}.")
    if len(data) > _MAX_WHOLE_BYTES:
        return message("note", f"{path.name} is larger than {_MAX_WHOLE_BYTES >> 20} MiB and is left out.")
    # JSON has line ends only between its parts.
    line = b"".join(part.strip() for part in data.replace(b"\r", b" ").split(b"\n"))
    return f"event: {kind}\ndata: ".encode() + line + b"\n\n"
