"""Parameters that a run begins with, from the file of another model."""

from pathlib import Path

import torch

from hypergpu.common.errors import ConfigError, CorruptData, suggest
from hypergpu.common.tensors import Flat
from hypergpu.coordinator.checkpoints import Tensors, read_any_tensors
from hypergpu.coordinator.core.model.aggregation import is_finite
from hypergpu.coordinator.run_dir import BEST_MODEL, LAST_MODEL
from hypergpu.tasks.saved import SavedModel

_COUNTER = "num_batches_tracked"
"""Counter of BatchNorm, which plain training changes and nothing reads."""


def initial_values(source: Path, saved: SavedModel) -> Flat:
    """Return the parameters and state in a safetensors file that holds the `state_dict` of the task's model.

    Args:
        source: the file, or the directory of a run: its best model, or its last one if none was evaluated.
        saved: converter of the task's model.

    Raises:
        ConfigError: the file cannot be read or is of another model, a value is not finite, or a tensor that does not
            travel differs from that of the task.
    """
    file = _file_in(source) if source.is_dir() else source
    try:
        tensors, _ = read_any_tensors(file)
    except CorruptData as error:
        raise ConfigError(f"training.initial_model is {file}: {error}") from error
    _require_known(tensors, saved, file)
    _require_same_at_home(tensors, saved, file)
    try:
        values = saved.values(tensors, {})
    except ValueError as error:
        raise _wrong(file, str(error)) from error
    if not is_finite(values):
        raise _wrong(file, "its values are not all finite")
    return values


def _file_in(run_dir: Path) -> Path:
    for name in (BEST_MODEL, LAST_MODEL):
        if (run_dir / name).is_file():
            return run_dir / name
    raise ConfigError(f"training.initial_model: there is no {BEST_MODEL} or {LAST_MODEL} in {run_dir}")


def _require_known(tensors: Tensors, saved: SavedModel, file: Path) -> None:
    known = {*saved.initial, *saved.travelling}
    for name in tensors:
        if name not in known:
            raise _wrong(file, f"it holds {name!r}, which the model of the task does not{suggest(name, known)}")


def _require_same_at_home(tensors: Tensors, saved: SavedModel, file: Path) -> None:
    """Check the tensors that do not travel: every side makes them itself, from the task."""
    for name, own in saved.initial.items():
        if name in saved.travelling or name.endswith(_COUNTER):
            continue
        found = tensors.get(name)
        if found is None:
            raise _wrong(file, f"{name!r} is missing")
        if name in saved.tied:
            first = tensors.get(saved.tied[name])
            if first is None or not torch.equal(found, first):
                raise _wrong(file, f"{name!r} differs from {saved.tied[name]!r}, to which the task ties it")
            continue
        if found.dtype != own.dtype or not torch.equal(found, own):
            raise _wrong(
                file,
                f"{name!r} differs from that of the task. It is not trained, and every node makes it itself: let the "
                "task's model function load it",
            )


def _wrong(file: Path, why: str) -> ConfigError:
    return ConfigError(f"training.initial_model: {file} is not of this task's model: {why}")
