"""Model files: checkpoints from which a run resumes, and models for export.

round-000005.safetensors    the model after round 5: its whole `state_dict`, for plain PyTorch
server-000005.safetensors   what else the run needs to go on: the optimizer of the coordinator, and the state as JSON

Each file carries a checksum of its tensors and metadata. The server file is written first, and the model file names
its checksum: one without the other, or two of different saves, are no checkpoint.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hypergpu.common import strict_json
from hypergpu.common.errors import CorruptData, StorageError
from hypergpu.coordinator.failpoints import Point
from hypergpu.coordinator.files import sync_directory
from hypergpu.coordinator.storage import Storage

KEEP_CHECKPOINTS = 3
DAMAGED = ".damaged"
_MODEL = re.compile(r"round-(\d{6,18})\.safetensors", re.ASCII)
_SERVER = re.compile(r"server-(\d{6,18})\.safetensors", re.ASCII)
_CHECKSUM, _SERVER_CHECKSUM, _STATE, _ROUND = "checksum", "server_checksum", "state", "round"

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to resume after a round."""

    round: int
    model: Tensors
    """Complete `state_dict`."""
    server: Tensors
    """State of the optimizer, and the tensors that are sent but not in the `state_dict`."""
    state: Mapping[str, Any]
    """JSON: configuration, cursors of the shards, counts of the nodes."""
    metadata: Mapping[str, str]
    """Metadata of the model file, such as its accuracy."""


class Checkpoints:
    """The newest checkpoints of a run, by round. Everything that is read is checked."""

    def __init__(self, directory: Path, storage: Storage | None = None) -> None:
        self.directory, self._storage = directory, storage or Storage()

    def model_file(self, number: int) -> Path:
        """Return the path of the model of a checkpoint."""
        return self.directory / f"round-{number:06d}.safetensors"

    def rounds(self) -> list[int]:
        """Return the rounds that have a checkpoint, the newest first."""
        return sorted(self._files(_MODEL), reverse=True)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, remove all but the newest ones, and return the model file.

        Raises:
            StorageError: a file cannot be written; earlier checkpoints are as they were.
        """
        number = str(checkpoint.round)
        state = strict_json.dumps(checkpoint.state)
        try:
            self.directory.mkdir(exist_ok=True)
            server = _signed(checkpoint.server, {_ROUND: number, _STATE: state})
            model = _signed(
                checkpoint.model, {**checkpoint.metadata, _ROUND: number, _SERVER_CHECKSUM: server[_CHECKSUM]}
            )
            file = self.model_file(checkpoint.round)
            files = {self._server_file(checkpoint.round): (checkpoint.server, server), file: (checkpoint.model, model)}
            _write(files, self._storage)
            self._remove_old()
        except OSError as error:
            raise StorageError(f"cannot write to {self.directory}: {error.strerror}") from error
        return file

    def read(self, number: int) -> Checkpoint:
        """Return the checkpoint of a round.

        Raises:
            CorruptData: a file cannot be read, does not match its checksum, or is of another round.
        """
        model, metadata = read_tensors(self.model_file(number))
        server, server_metadata = read_tensors(self._server_file(number))
        for found in (metadata, server_metadata):
            if found.get(_ROUND) != str(number):
                raise CorruptData(f"it says that it is of round {found.get(_ROUND, 'unknown')[:20]}")
        if metadata.get(_SERVER_CHECKSUM) != server_metadata[_CHECKSUM]:
            raise CorruptData(f"{self._server_file(number).name} belongs to another model")
        try:
            state = strict_json.parse_object(server_metadata[_STATE])
        except KeyError as error:
            raise CorruptData("it has no state") from error
        except ValueError as error:
            raise CorruptData(f"its state is {error}") from error
        return Checkpoint(number, model, server, state, metadata)

    def set_aside_after(self, number: int) -> None:
        """Rename the checkpoints of later rounds, so that a run that resumes from `number` does not use them.

        Raises:
            OSError: they cannot be renamed.
        """
        for pattern in (_MODEL, _SERVER):
            for later, file in self._files(pattern).items():
                if later > number:
                    file.replace(file.with_name(file.name + DAMAGED))
        sync_directory(self.directory)

    def _server_file(self, number: int) -> Path:
        return self.directory / f"server-{number:06d}.safetensors"

    def _files(self, pattern: re.Pattern[str]) -> dict[int, Path]:
        if not self.directory.is_dir():
            return {}
        named = ((pattern.fullmatch(file.name), file) for file in self.directory.iterdir())
        return {int(match[1]): file for match, file in named if match}

    def _remove_old(self) -> None:
        kept = set(self.rounds()[:KEEP_CHECKPOINTS])
        for pattern in (_MODEL, _SERVER):
            for number, file in self._files(pattern).items():
                if number not in kept:
                    self._storage.remove(file, Point.CHECKPOINT_REMOVE)


def write_tensors(file: Path, tensors: Tensors, metadata: Mapping[str, str]) -> str:
    """Write a file of tensors atomically, and return the checksum in it.

    Raises:
        StorageError: it cannot be written; the message names the file.
    """
    signed = _signed(tensors, metadata)
    _write({file: (tensors, signed)}, Storage())
    return signed[_CHECKSUM]


def _signed(tensors: Tensors, metadata: Mapping[str, str]) -> dict[str, str]:
    return {"format": "pt", **metadata, _CHECKSUM: checksum(tensors, metadata)}


def _write(files: Mapping[Path, tuple[Tensors, Mapping[str, str]]], storage: Storage) -> None:
    try:
        storage.replace_files({file: partial(_save, file, *content) for file, content in files.items()})
    except OSError as error:
        raise StorageError(f"cannot write {error.filename or next(iter(files))}: {error.strerror}") from error


def _save(file: Path, tensors: Tensors, metadata: Mapping[str, str], place: Path) -> None:
    try:
        save_file(dict(tensors), place, dict(metadata))
    except SafetensorError as error:  # no OSError, also on a full disk
        raise StorageError(f"cannot write {file}: {error}") from error


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a file that this project wrote.

    Raises:
        CorruptData: the file is missing, is no file of tensors, or does not match its checksum.
    """
    tensors, metadata = read_any_tensors(file)
    signature = metadata.get(_CHECKSUM)
    if signature is None:
        raise CorruptData(f"{file.name} has no checksum")
    if signature != checksum(tensors, metadata):
        raise CorruptData(f"{file.name} does not match its checksum")
    return tensors, metadata


def read_any_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a file, wherever it comes from.

    Raises:
        CorruptData: the file is missing, or is no file of tensors.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CorruptData(f"{file.name} cannot be read: {str(reason).removesuffix(f': {file}')}") from error
    return tensors, metadata


def checksum(tensors: Tensors, metadata: Mapping[str, str]) -> str:
    """Return the CRC-32C of tensors, with their names, types and shapes, and of metadata, in hexadecimal digits."""
    described = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in sorted(tensors)]
    told = sorted((key, value) for key, value in metadata.items() if key not in (_CHECKSUM, "format"))
    crc = google_crc32c.value(json.dumps([described, told]).encode())
    for name in sorted(tensors):
        content = tensors[name].detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        if content.size:
            crc = google_crc32c.extend(crc, content)
    return f"{crc:08x}"
