"""Model files of a run: checkpoints for resuming, and models for export."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from hypergpu.common.errors import CorruptData, InvalidInput, NonFiniteUpdate
from hypergpu.common.metric import MetricSpec, finite
from hypergpu.common.tensors import Flat
from hypergpu.coordinator.checkpoints import Checkpoint, Checkpoints, Tensors, read_tensors, write_tensors
from hypergpu.coordinator.core.model.aggregation import is_finite
from hypergpu.coordinator.core.model.global_model import GlobalModel
from hypergpu.coordinator.core.score import Score
from hypergpu.coordinator.run_dir import BEST_MODEL, CHECKPOINTS, LAST_MODEL
from hypergpu.coordinator.saved_state import Identity
from hypergpu.coordinator.storage import Storage
from hypergpu.tasks.saved import SavedModel


@dataclass(frozen=True)
class Snapshot:
    """Copies of what a checkpoint holds, for a thread that writes them while the model changes."""

    checkpoint: Checkpoint
    best: tuple[Score, Tensors] | None
    """Best model, if it is not on the disk yet."""


class ModelFiles:
    """Checkpoints, the best model and the last one.

    Every method but `write` is called on the compute thread, in order; `write` on any, one call at a time.

    Args:
        path: Directory of the run.
        model: Model with the parameters.
        saved: Builder of a `state_dict` from the parameters; not shared with another thread.
        identity: Identity of the run, which is part of each checkpoint.
        about: Metadata of every file, such as the task.
        storage: Storage of the checkpoints.

    Raises:
        InvalidInput: the model holds a tensor of a type that the file format does not know.
    """

    def __init__(
        self,
        path: Path,
        model: GlobalModel,
        saved: SavedModel,
        identity: Identity,
        about: Mapping[str, str],
        *,
        storage: Storage | None = None,
    ) -> None:
        self._path, self._model, self._saved, self._about = path, model, saved, about
        self._identity = {name: getattr(identity, name) for name in ("samples", "data", "parameter_count", "untrained")}
        self._identity["travelling"] = list(identity.travelling)
        self._checkpoints = Checkpoints(path / CHECKPOINTS, storage)
        self._best: Score | None = None
        self._best_values: Flat | None = None
        """Best model until it is written to the disk."""
        self._best_written: Score | None = None
        """Best model that `write` has written."""
        _require_savable(saved.initial)

    @property
    def best(self) -> Score | None:
        """Best evaluation so far."""
        return self._best

    def restore_best(self) -> None:
        """Restore the best evaluation of an earlier process."""
        with suppress(CorruptData):
            self._best = score_of(read_tensors(self._path / BEST_MODEL)[1])

    @property
    def identity(self) -> Mapping[str, Any]:
        """Identity of the run, as JSON."""
        return self._identity

    @property
    def newest(self) -> Sequence[int]:
        """Rounds that have a checkpoint, the newest first."""
        return self._checkpoints.rounds()

    def evaluated(self, score: Score, values: Flat | None = None) -> None:
        """Remember the model if it is the best so far; the next `checkpoint` or `finish` writes it.

        `values` are its parameters; by default the present ones.
        """
        if score.beats(self._best):
            self._best = score
            self._best_values = np.copy(self._model.values if values is None else values)

    def checkpoint(self, round_number: int, state: Mapping[str, Any], score: Score | None = None) -> Path:
        """Write a checkpoint, and the best model if it is new; see `snapshot` and `write`."""
        return self.write(self.snapshot(round_number, state, score))

    def snapshot(self, round_number: int, state: Mapping[str, Any], score: Score | None = None) -> Snapshot:
        """Return a copy of what a checkpoint holds.

        Args:
            round_number: Latest round of the run.
            state: JSON that the run needs to resume.
            score: Evaluation of the present model; None if it was not evaluated.

        Raises:
            NonFiniteUpdate: the model or its optimizer is not finite.
        """
        values, optimizer = self._model.values, self._model.optimizer_state()
        if not is_finite(values) or not all(map(is_finite, optimizer.values())):
            raise NonFiniteUpdate(f"the model after round {round_number} is not finite", round_number)
        whole = self._saved.state(values)
        server = {f"{_OPTIMIZER}{name}": torch.from_numpy(part.copy()) for name, part in optimizer.items()}
        server |= {f"{_APART}{name}": part for name, part in self._saved.kept_apart(whole, values).items()}
        if self._model.kept is not None:
            server[_KEPT] = torch.from_numpy(self._model.kept.copy())
        checkpoint = Checkpoint(round_number, whole, server, {**self._identity, **state}, self._metadata(score))
        return Snapshot(checkpoint, self._unwritten_best())

    def write(self, snapshot: Snapshot) -> Path:
        """Write a snapshot, the best model first; return the file of the model.

        Raises:
            StorageError: a file cannot be written.
        """
        try:
            self._write_best(snapshot.best)  # first: the log does not hold a round that the checkpoint has
        finally:
            file = self._checkpoints.save(snapshot.checkpoint)
        return file

    def finish(self, round_number: int, score: Score | None = None) -> Path:
        """Write the present model, after `round_number` and with this evaluation, as the result; return its file.

        Raises:
            StorageError: a file cannot be written.
            NonFiniteUpdate: the model is not finite; nothing was written.
        """
        if not is_finite(self._model.values):
            raise NonFiniteUpdate(f"the model after round {round_number} is not finite", round_number)
        file = self._path / LAST_MODEL
        metadata = {"round": str(round_number), **self._metadata(score)}
        write_tensors(file, self._saved.state(self._model.values), metadata)
        self._write_best(self._unwritten_best())
        return file

    def _unwritten_best(self) -> tuple[Score, Tensors] | None:
        if self._best_written is self._best:
            self._best_values = None
        if self._best_values is None or self._best is None:
            return None
        return self._best, self._saved.state(self._best_values)

    def _write_best(self, best: tuple[Score, Tensors] | None) -> None:
        if best is not None:
            score, state = best
            write_tensors(self._path / BEST_MODEL, state, {"round": str(score.round), **self._metadata(score)})
            self._best_written = score

    def _metadata(self, score: Score | None) -> dict[str, str]:
        return {**self._about, **({} if score is None else _described(score))}


_KEYS = frozenset({"format", "checksum", "server_checksum", "state", "round", "task", "loss", "metric"})
_OPTIMIZER = "optimizer."
_APART = "model."
_KEPT = "kept"


def final_round(path: Path) -> int | None:
    """Return the round of the result in a run directory; None if there is none that can be read."""
    try:
        return int(read_tensors(path / LAST_MODEL)[1]["round"])
    except (CorruptData, KeyError, ValueError):
        return None


def optimizer_of(server: Tensors) -> dict[str, Flat]:
    """Return the optimizer's state in a checkpoint."""
    return {
        name.removeprefix(_OPTIMIZER): tensor.numpy() for name, tensor in server.items() if name.startswith(_OPTIMIZER)
    }


def kept_of(server: Tensors) -> Flat | None:
    """Return the values of the model to return to in a checkpoint; None if they are those of its model."""
    kept: Flat | None = server[_KEPT].numpy() if _KEPT in server else None
    return kept


def apart_of(server: Tensors) -> Tensors:
    """Return the tensors of a checkpoint that are sent but not in the `state_dict`."""
    return {name.removeprefix(_APART): tensor for name, tensor in server.items() if name.startswith(_APART)}


def score_of(metadata: Mapping[str, str]) -> Score | None:
    """Return the evaluation in a file's metadata, or None."""
    try:
        spec = MetricSpec.model_validate_json(metadata["metric"])
        key = metric_key(spec)
        value = float(metadata[key]) if key in metadata else None
        score = Score(int(metadata["round"]), float(metadata["loss"]), finite(value), spec)
    except (KeyError, ValueError):
        return None
    return score if score.round >= 1 and math.isfinite(score.loss) else None


def metric_key(spec: MetricSpec) -> str:
    """Return the key of a metric's value in the metadata: its name, unless that is the key of something else."""
    return f"metric {spec.name}" if spec.name in _KEYS else spec.name


def _described(score: Score) -> dict[str, str]:
    """Return the metadata of an evaluated model: its loss, and its metric with name, direction and format."""
    value = {} if score.metric is None else {metric_key(score.spec): repr(score.metric)}
    return {"loss": repr(score.loss), **value, "metric": score.spec.model_dump_json()}


def _require_savable(state: Tensors) -> None:
    for name, tensor in state.items():
        try:
            safetensors.torch.save({name: tensor.reshape(-1)[:0].clone()})
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise InvalidInput(f"{name!r} of the model is {tensor.dtype}, which no checkpoint can hold") from error
