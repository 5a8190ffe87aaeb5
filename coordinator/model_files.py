"""Model files of a run: checkpoints for resuming, and models for export."""

import math
from collections.abc import Mapping
from contextlib import suppress
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
from hypergpu.tasks.saved import SavedModel


class ModelFiles:
    """Checkpoints, the best model and the last one. Every method is called on the compute thread, in order.

    Args:
        path: Directory of the run.
        model: Model with the parameters.
        saved: Builder of a `state_dict` from the parameters; not shared with another thread.
        identity: Identity of the run, which is part of each checkpoint.
        about: Metadata of every file, such as the task.

    Raises:
        InvalidInput: the model holds a tensor of a type that the file format does not know.
    """

    def __init__(
        self, path: Path, model: GlobalModel, saved: SavedModel, identity: Identity, about: Mapping[str, str]
    ) -> None:
        self._path, self._model, self._saved, self._about = path, model, saved, about
        self._identity = {name: getattr(identity, name) for name in ("samples", "data", "parameter_count", "untrained")}
        self._identity["travelling"] = list(identity.travelling)
        self._checkpoints = Checkpoints(path / CHECKPOINTS)
        self._best: Score | None = None
        self._best_values: Flat | None = None
        """Best model until it is written to the disk."""
        _require_savable(saved.initial)

    @property
    def best(self) -> Score | None:
        """Best evaluation so far."""
        return self._best

    def restore_best(self) -> None:
        """Restore the best evaluation of an earlier process."""
        with suppress(CorruptData):
            self._best = score_of(read_tensors(self._path / BEST_MODEL)[1])

    def evaluated(self, score: Score) -> None:
        """Remember the model if it is the best so far; the next `checkpoint` or `finish` writes it."""
        if score.beats(self._best):
            self._best = score
            self._best_values = np.copy(self._model.values)

    def checkpoint(self, round_number: int, state: Mapping[str, Any], score: Score | None = None) -> Path:
        """Write a checkpoint, and the best model if it is new; return the file of the model.

        Args:
            round_number: Latest round of the run.
            state: JSON that the run needs to resume.
            score: Evaluation of the present model; None if it was not evaluated.

        Raises:
            StorageError: a file cannot be written.
            NonFiniteUpdate: the model or its optimizer is not finite; nothing was written.
        """
        values, optimizer = self._model.values, self._model.optimizer_state()
        if not is_finite(values) or not all(map(is_finite, optimizer.values())):
            raise NonFiniteUpdate(f"the model after round {round_number} is not finite", round_number)
        whole = self._saved.state(values)
        server = {f"{_OPTIMIZER}{name}": torch.from_numpy(part.copy()) for name, part in optimizer.items()}
        server |= {f"{_APART}{name}": part for name, part in self._saved.kept_apart(whole, values).items()}
        if self._model.kept is not None:
            server[_KEPT] = torch.from_numpy(self._model.kept.copy())
        metadata = self._metadata(score)
        file = self._checkpoints.save(Checkpoint(round_number, whole, server, {**self._identity, **state}, metadata))
        self._write_best()
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
        self._write_best()
        return file

    def _write_best(self) -> None:
        if self._best_values is not None and self._best is not None:
            metadata = {"round": str(self._best.round), **self._metadata(self._best)}
            write_tensors(self._path / BEST_MODEL, self._saved.state(self._best_values), metadata)
            self._best_values = None

    def _metadata(self, score: Score | None) -> dict[str, str]:
        return {**self._about, **({} if score is None else _described(score))}


_KEYS = frozenset({"format", "checksum", "server_checksum", "state", "round", "task", "loss", "metric"})
_OPTIMIZER = "optimizer."
_APART = "model."
_KEPT = "kept"


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
