"""Log of the closed rounds since a checkpoint: what makes a round last is written here before anybody is told of it.

    rounds-000006.log     the rounds from 6 on, up to the next file
    rounds-000009-2.log   the rounds from 9 on: another file could not be written to

A file is a sequence of frames: a header (magic, kind, round, length and checksum of the body, checksum of the header),
and a body. A closed round is a frame with its record as JSON, after a frame with the mean of its updates if it had any.
The mean is written first, while the model is evaluated.

A process that dies, or a power failure, leaves a torn end at most: frames of the last round that are not whole. Nobody
was told of that round, and it is cut off. Damage anywhere before it is an error.
"""

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from typing import Any, BinaryIO, Final

import google_crc32c
import numpy as np

from hypergpu.common import strict_json
from hypergpu.common.errors import CorruptData
from hypergpu.common.tensors import Flat, Payload
from hypergpu.coordinator.failpoints import Point
from hypergpu.coordinator.storage import Buffer, Storage

_HEADER = struct.Struct("<4s4xQQQI")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES: Final = _HEADER.size + _CHECKSUM.size
_MAGIC: Final = b"HGRL"
_STEP, _ROUND = 1, 2
_NAME = re.compile(r"rounds-(\d{6,18})(?:-(\d{1,6}))?\.log", re.ASCII)
_BLOCK = 1 << 20
_LARGEST_RECORD = 256 << 20
"""Bound of the JSON of a record."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """A whole frame in a file."""

    file: Path
    kind: int
    round: int
    start: int
    """Offset of the body."""
    length: int

    @property
    def end(self) -> int:
        """Offset of what follows."""
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class LoggedRound:
    """Closed round in the log."""

    _record: _Frame
    _step: _Frame | None

    @property
    def number(self) -> int:
        """Number of the round."""
        return self._record.round

    def record(self) -> dict[str, Any]:
        """Return the record, read from the file.

        Raises:
            CorruptData: it is no JSON object.
        """
        if self._record.length > _LARGEST_RECORD:
            raise CorruptData(f"{self._record.file.name}: the record of round {self.number} is too large")
        try:
            return strict_json.parse_object(_body(self._record))
        except ValueError as error:
            raise CorruptData(f"{self._record.file.name}: the record of round {self.number} is {error}") from error

    def mean(self) -> Flat | None:
        """Return the mean of the updates, read from the file; None if there were none.

        Raises:
            CorruptData: it is no array of float32.
        """
        if self._step is None:
            return None
        if self._step.length % 4:
            raise CorruptData(f"{self._step.file.name}: the mean of round {self.number} is no array of float32")
        return np.fromfile(self._step.file, np.float32, self._step.length // 4, offset=self._step.start)

    @property
    def file(self) -> Path:
        """File that holds it."""
        return self._record.file

    @property
    def end(self) -> int:
        """Offset in the file behind it."""
        return self._record.end


@dataclass(frozen=True, slots=True)
class Tail:
    """Bytes behind the last whole record of a file."""

    file: Path
    start: int
    nbytes: int

    def __str__(self) -> str:
        return f"{self.nbytes:,} bytes at the end of {self.file.name}"


@dataclass(frozen=True, slots=True)
class Damage:
    """Damaged place in a file, with a whole record behind it."""

    file: Path
    start: int
    round: int
    """Round of that record."""

    def __str__(self) -> str:
        return f"{self.file.name} is damaged at byte {self.start:,}, before the record of round {self.round}"


@dataclass(frozen=True, slots=True)
class Contents:
    """Contents of the files of a log."""

    rounds: tuple[LoggedRound, ...] = ()
    """Whole records, in the order of the files."""
    tails: tuple[Tail, ...] = ()
    """Torn ends of files."""
    damage: tuple["Damage", ...] = ()
    """Damage that no torn end explains."""

    def after(self, number: int) -> tuple[LoggedRound, ...]:
        """Return the records that follow on a round without a gap."""
        found: list[LoggedRound] = []
        for each in self.rounds:
            if each.number == number + len(found) + 1:
                found.append(each)
        return tuple(found)

    def lost_after(self, number: int) -> str:
        """Return which records do not follow on a round without a gap, in words; empty if all do."""
        followed = number + len(self.after(number))
        damage = [str(each) for each in self.damage if each.round > followed]
        lost = sorted({each.number for each in self.rounds if each.number > followed})
        if damage or not lost:
            return "; ".join(damage)
        return f"rounds {lost[0]} to {lost[-1]} are in the log, and round {followed + 1} before them is not"


class RoundLog:
    """Writer of the log of a run. Each method is called on one thread at a time.

    Args:
        directory: Directory of the checkpoints.
        storage: The disk.
    """

    def __init__(self, directory: Path, storage: Storage | None = None) -> None:
        self._directory, self._storage = directory, storage or Storage()
        self._descriptor = -1
        self._begins_anew = True
        self._step = 0
        """Round whose mean was written last."""
        self.nbytes = 0
        """Bytes written since the last checkpoint."""

    def step(self, number: int, mean: Flat) -> None:
        """Write the mean of the updates of a round that closes; it is not synced yet.

        Raises:
            OSError: the disk is full or broken.
        """
        self._begin_round(number)
        self._step = number
        self._append(_STEP, number, _bytes(mean), Point.LOG_STEP)

    def close_round(self, number: int, record: Mapping[str, Any]) -> None:
        """Write the record of a closed round, and sync it: from here on, the round lasts.

        Raises:
            OSError: the disk is full or broken.
        """
        if self._step != number:
            self._begin_round(number)
        body = strict_json.dumps(record, separators=(",", ":")).encode()
        self._append(_ROUND, number, body, Point.LOG_ROUND)
        self._storage.sync(self._descriptor, Point.LOG_SYNC)

    def begin_file(self) -> None:
        """Write the next round to a new file: a checkpoint replaces this one, or it could not be written to."""
        self._begins_anew = True
        self.nbytes = 0

    def trim(self, number: int) -> None:
        """Remove the files whose rounds are all up to `number`.

        Raises:
            OSError: one cannot be removed.
        """
        files = _files(self._directory)
        for (_, file), (following, _) in pairwise(files):
            if following <= number + 1:
                self._storage.remove(file, Point.LOG_REMOVE)

    def cut(self, contents: Contents, last: int) -> None:
        """Cut off what is torn and what comes after round `last`, before a run goes on from there.

        What follows is synced as well: it was written by a process that may have died before it could.

        Raises:
            OSError: the disk is full or broken.
        """
        ends = {file: 0 for _, file in _files(self._directory)}
        for each in contents.rounds:
            if each.number <= last:
                ends[each.file] = max(ends[each.file], each.end)
        for file, end in ends.items():
            if file.stat().st_size > end:
                self._storage.cut(file, end)
            else:
                self._storage.sync_file(file)
        if ends:
            self._storage.sync_directory(self._directory, Point.LOG_DIRECTORY)

    def close(self) -> None:
        """Close the file. Calling it again has no effect."""
        if self._descriptor >= 0:
            self._storage.close(self._descriptor)
            self._descriptor = -1

    def _append(self, kind: int, number: int, body: Buffer, point: Point) -> None:
        header = _HEADER.pack(_MAGIC, kind, number, len(body), google_crc32c.value(body))
        parts = [header, _CHECKSUM.pack(google_crc32c.value(header)), body]
        self._storage.append(self._descriptor, parts, point)
        self.nbytes += HEADER_BYTES + len(body)

    def _begin_round(self, number: int) -> None:
        """Open the next file, if one is due: a mean and its record are in the same file."""
        if not self._begins_anew:
            return
        self.close()
        self._directory.mkdir(exist_ok=True)
        file = _free_name(self._directory, number)
        self._descriptor = self._storage.open_end(file, Point.LOG_CREATE)
        self._storage.sync_directory(self._directory, Point.LOG_DIRECTORY)
        self._begins_anew = False


def read(directory: Path) -> Contents:
    """Return what the log in a directory holds; everything is checked.

    Raises:
        OSError: a file cannot be read.
    """
    rounds: list[LoggedRound] = []
    tails: list[Tail] = []
    damage: list[Damage] = []
    for first, file in _files(directory):
        step: _Frame | None = None
        good = 0
        for frame in _frames(file):
            if frame.kind == _STEP:
                step = frame
                continue
            rounds.append(LoggedRound(frame, step if step is not None and step.round == frame.round else None))
            step, good = None, frame.end
        size = file.stat().st_size
        if size > good:
            tails.append(Tail(file, good, size - good))
            damage += _damage(file, good, rounds[-1].number + 1 if good else first)
    return Contents(tuple(rounds), tuple(tails), tuple(damage))


def _damage(file: Path, good: int, torn: int) -> list[Damage]:
    """Return what hides a whole record that comes after the last one that can be reached; empty if there is none.

    A record of round `torn` itself is none: a power failure may leave it without the mean before it.
    """
    with file.open("rb") as opened:
        for offset in _offsets_of_magic(opened, good):
            frame = _frame_at(opened, file, offset)
            if frame is not None and frame.kind == _ROUND and frame.round > torn:
                return [Damage(file, good, frame.round)]
    return []


def _offsets_of_magic(opened: BinaryIO, start: int) -> Iterator[int]:
    opened.seek(start)
    before, at = b"", start
    while block := opened.read(_BLOCK):
        data, first = before + block, at - len(before)
        found = data.find(_MAGIC)
        while found >= 0:
            yield first + found
            found = data.find(_MAGIC, found + 1)
        before, at = data[-(len(_MAGIC) - 1) :], first + len(data)
        opened.seek(at)


def _frames(file: Path) -> Iterator[_Frame]:
    """Yield the whole frames from the beginning of a file."""
    with file.open("rb") as opened:
        offset = 0
        while (frame := _frame_at(opened, file, offset)) is not None:
            yield frame
            offset = frame.end


def _frame_at(opened: BinaryIO, file: Path, offset: int) -> _Frame | None:
    """Return the frame at an offset, or None if there is no whole one."""
    opened.seek(offset)
    header = opened.read(HEADER_BYTES)
    if (
        len(header) < HEADER_BYTES
        or google_crc32c.value(header[: _HEADER.size]) != _CHECKSUM.unpack_from(header, _HEADER.size)[0]
    ):
        return None
    magic, kind, number, length, checksum = _HEADER.unpack_from(header)
    if magic != _MAGIC or kind not in (_STEP, _ROUND):
        return None
    crc, left = 0, length
    while left:
        block = opened.read(min(_BLOCK, left))
        if not block:
            return None
        crc, left = google_crc32c.extend(crc, block), left - len(block)
    return _Frame(file, kind, number, offset + HEADER_BYTES, length) if crc == checksum else None


def checksum_of(values: Flat) -> str:
    """Return the CRC-32C of parameters in hexadecimal digits."""
    return f"{google_crc32c.value(_bytes(values)):08x}"


def _bytes(values: Flat) -> Payload:
    return values.view(np.uint8)


def _body(frame: _Frame) -> bytes:
    with frame.file.open("rb") as opened:
        opened.seek(frame.start)
        return opened.read(frame.length)


def _files(directory: Path) -> list[tuple[int, Path]]:
    """Return the files of a log, each with the first round that it may hold, in order."""
    if not directory.is_dir():
        return []
    named = ((_NAME.fullmatch(file.name), file) for file in directory.iterdir())
    found = sorted((int(match[1]), int(match[2] or 1), file) for match, file in named if match)
    return [(first, file) for first, _, file in found]


def _free_name(directory: Path, number: int) -> Path:
    """Return the name of the next file: nothing is written behind what may be torn."""
    names = (f"rounds-{number:06d}{f'-{attempt}' if attempt > 1 else ''}.log" for attempt in count(1))
    return next(directory / name for name in names if not (directory / name).exists())
