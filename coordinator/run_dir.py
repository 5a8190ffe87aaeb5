"""The directory of a run: what was configured, what happened, what came out. Readable whenever the process ends.

config.yaml     the configuration, whole
rounds.jsonl    one line for each round
events.jsonl    one line for each event and decision
nodes.json      every node as it stands
summary.json    the result so far
checkpoints/    round-000005.safetensors: the model by tensor, the optimiser, and what is needed to go on
earlier/1/      the same of the run that was here before, if another was begun in its place
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from common.config import SystemConfig
from common.errors import ConfigError
from common.tensors import Flat

KEEP_CHECKPOINTS = 3
_OWN = ("config.yaml", "rounds.jsonl", "events.jsonl", "nodes.json", "summary.json", "checkpoints")
_MADE_OF_IT = ("report.html", "simulated")
"""What `hypergpu` makes of a run, beside it."""


@dataclass(frozen=True)
class Checkpoint:
    """The state after a round."""

    round: int
    tensors: Mapping[str, Flat]
    state: Mapping[str, Any]
    """JSON: the cursors of the shards, the nodes' counts, the run's name."""


@dataclass(frozen=True)
class Spent:
    """What a run took so far, as far as its files tell."""

    seconds: float = 0.0
    traffic: Mapping[str, int] = field(default_factory=dict)
    """`bytes_sent` and `bytes_received`."""


def set_aside(path: Path, *others: str) -> None:
    """Keep the run that is in `path` already under `earlier/`, and `others`: a second must not cost the first.

    Raises:
        ConfigError: it cannot be moved.
    """
    if not (path / "config.yaml").exists():
        return
    earlier = path / "earlier"
    try:
        earlier.mkdir(exist_ok=True)
        aside = earlier / str(1 + max((int(d.name) for d in earlier.iterdir() if d.name.isdigit()), default=0))
        aside.mkdir()
        for name in (*_OWN, *_MADE_OF_IT, *others):
            if (path / name).exists():
                (path / name).rename(aside / name)
    except OSError as error:
        raise ConfigError(f"cannot set the run in {path} aside: {error.strerror}") from error


class RunDir:
    """Writes a run's files; whole files are replaced at one stroke, lines are appended and flushed.

    Raises:
        ConfigError: the directory cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._checkpoints = path / "checkpoints"
        try:
            self._checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot write the run to {path}: {error.strerror}") from error
        self._rounds: TextIO | None = None
        self._events: TextIO | None = None

    def begin(self, config: SystemConfig, resumed_round: int = 0) -> None:
        """Write the configuration; set an earlier run aside, or on resuming drop what came after the checkpoint."""
        if not resumed_round:
            set_aside(self.path)
            self._checkpoints.mkdir(exist_ok=True)
        self._replace("config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        rounds = [row for row in self._lines("rounds.jsonl") if row.get("round", 0) <= resumed_round]
        for name, rows in (("rounds.jsonl", rounds), ("events.jsonl", self._lines("events.jsonl"))):
            self._replace(name, "".join(_line(row) for row in rows))
        self._rounds = (self.path / "rounds.jsonl").open("a", encoding="utf-8")
        self._events = (self.path / "events.jsonl").open("a", encoding="utf-8")

    def round(self, row: Mapping[str, Any]) -> None:
        """One round is over."""
        self._append(self._rounds, row)

    def event(self, row: Mapping[str, Any]) -> None:
        """Something happened."""
        self._append(self._events, row)

    def nodes(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """The nodes as they stand."""
        self._replace("nodes.json", json.dumps(list(rows), indent=1))

    def summary(self, result: Mapping[str, Any]) -> None:
        """The result as it stands."""
        self._replace("summary.json", json.dumps(result, indent=1))

    def checkpoint(self, checkpoint: Checkpoint) -> Path:
        """Keep the state after a round; the oldest but a few are removed."""
        file = self._checkpoints / f"round-{checkpoint.round:06d}.safetensors"
        partial = file.with_suffix(".partial")
        metadata = {"round": str(checkpoint.round), "state": json.dumps(checkpoint.state)}
        save_file(dict(checkpoint.tensors), partial, metadata)
        _sync(partial)
        partial.replace(file)
        for old in sorted(self._checkpoints.glob("round-*.safetensors"))[:-KEEP_CHECKPOINTS]:
            old.unlink()
        return file

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that can be read; None where there is none."""
        for file in sorted(self._checkpoints.glob("round-*.safetensors"), reverse=True):
            try:
                with safe_open(file, framework="numpy") as opened:
                    metadata = opened.metadata()
                    tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (not a mapping)
                return Checkpoint(int(metadata["round"]), tensors, json.loads(metadata["state"]))
            except (SafetensorError, OSError, KeyError, ValueError):
                continue
        return None

    def spent(self) -> Spent:
        """What the run took until its process ended."""
        seconds = max((float(row.get("seconds", 0.0)) for row in self._lines("events.jsonl")), default=0.0)
        try:
            result = json.loads((self.path / "summary.json").read_text(encoding="utf-8"))
            traffic = {name: int(result[name]) for name in ("bytes_sent", "bytes_received")}
        except (OSError, ValueError, TypeError, KeyError, OverflowError):
            traffic = {}  # it ended before it wrote one, or somebody has edited it
        return Spent(seconds, traffic)

    def close(self) -> None:
        """No more lines will come."""
        for file in (self._rounds, self._events):
            if file is not None:
                file.close()

    def _lines(self, name: str) -> Iterable[dict[str, Any]]:
        file = self.path / name
        if not file.exists():
            return
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the last line of a process that was killed
            if isinstance(row, dict):
                yield row

    def _replace(self, name: str, text: str) -> None:
        partial = self.path / f".{name}.partial"
        partial.write_text(text, encoding="utf-8")
        _sync(partial)
        partial.replace(self.path / name)

    @staticmethod
    def _append(file: TextIO | None, row: Mapping[str, Any]) -> None:
        if file is not None and not file.closed:
            file.write(_line(row))
            file.flush()


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, separators=(",", ":"), default=str) + "\n"


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
