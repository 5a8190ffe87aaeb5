"""TensorBoard: event files, written with its own records, so that an error of the disk is met where it happens.

The writers of TensorBoard and PyTorch write on a thread of their own, which ends with its first error.
"""

import itertools
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final

from tensorboard.compat.proto.event_pb2 import Event, SessionLog, SourceMetadata
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from hypergpu.outlets.outlet import Beginning, Ending, Round

OWN_PLACE: Final = "true"
"""Target that stands for a directory in that of the run."""
_OWN_NAME: Final = "tensorboard"
_SETTINGS, _NOTES, _RESULT = "settings", "events", "result"


class TensorBoardOutlet:
    """Event files in a directory of the run's own.

    Args:
        target: `true`, or the directory that holds those of the runs.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._file: IO[bytes] | None = None
        self._started_at = 0.0
        self._last = 0

    def open(self, run: Beginning) -> tuple[str, int]:
        """Begin a new event file, which takes the place of what the others hold after the last round."""
        place = Path(run.id) if run.id else self._new_place(run)
        place.mkdir(parents=True, exist_ok=True)
        self.close()
        # Readers take the files of a directory in the order of their names.
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file = (place / name).open("xb", buffering=0)
        self._started_at, self._last = run.started_at, run.after
        self._write(Event(file_version="brain.Event:2", source_metadata=SourceMetadata(writer="hypergpu")), 0.0)
        # Readers drop whatever other files hold from this step on.
        self._write(Event(step=run.after + 1, session_log=SessionLog(status=SessionLog.START)), 0.0)
        if not run.after:
            self._text(_SETTINGS, _table(run.settings), 0, 0.0)
        return str(place), run.after

    def round(self, closed: Round) -> None:
        """Write a scalar for each figure, and what happened as text, all as one record."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in closed.figures.items()]
        if closed.notes:
            values += text_pb(_NOTES, _list(closed.notes)).value
        self._write(Event(step=closed.number, summary=Summary(value=values)), closed.seconds)
        self._last = closed.number

    def flush(self) -> None:
        """Do nothing: the file is not buffered."""

    def end(self, ending: Ending) -> None:
        """Write the result as text."""
        result = {"state": ending.state, "reason": ending.reason, **ending.figures}
        text = "\n\n".join([_table(result), *([_list(ending.notes)] if ending.notes else [])])
        self._text(_RESULT, text, self._last, ending.figures.get("duration_seconds", 0.0))
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _new_place(self, run: Beginning) -> Path:
        """Return a directory that holds no event files of another run."""
        if self._target == OWN_PLACE:
            return run.directory.absolute() / _OWN_NAME
        place = Path(self._target).absolute() / run.name
        others = (place.with_name(f"{place.name}-{number}") for number in itertools.count(2))
        return next(each for each in itertools.chain([place], others) if not each.exists())

    def _text(self, tag: str, text: str, step: int, seconds: float) -> None:
        self._write(Event(step=step, summary=text_pb(tag, text)), seconds)

    def _write(self, event: Event, seconds: float) -> None:
        """Write a record at a time of the run. One that is written in part is taken back: what follows it is lost."""
        assert self._file is not None
        event.wall_time = self._started_at + seconds
        at = self._file.tell()
        try:
            RecordWriter(_Whole(self._file)).write(event.SerializeToString())
        except OSError:
            self._file.truncate(at)
            self._file.seek(at)
            raise


class _Whole:
    """Raw file of which no write is partial without an error."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        """Write all of the data.

        Raises:
            OSError: it cannot be written.
        """
        while data:
            written = self._file.write(data)
            if not written:
                raise OSError("nothing can be written to it")
            data = data[written:]


def _table(rows: Mapping[str, object]) -> str:
    """Return a table in Markdown."""
    return "\n".join(["| name | value |", "|---|---|", *(f"| {_plain(k)} | {_plain(v)} |" for k, v in rows.items())])


def _list(lines: object) -> str:
    assert isinstance(lines, list | tuple)
    return "\n".join(f"- {_plain(line)}" for line in lines)


def _plain(value: object) -> str:
    """Return a value as text that Markdown shows as it is."""
    text = str(value).replace("\n", " ")
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>#|!" else char for char in text)
