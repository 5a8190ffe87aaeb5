"""Checkpoints on the disk: whole or refused, counted by number, never a mixture of two."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hypergpu.common.errors import CorruptData, StorageError
from hypergpu.coordinator import files
from hypergpu.coordinator.checkpoints import (
    KEEP_CHECKPOINTS,
    Checkpoint,
    Checkpoints,
    checksum,
    read_tensors,
    write_tensors,
)


def checkpoint(number: int) -> Checkpoint:
    model = {"w": torch.full((3,), float(number)), "steps": torch.tensor(number), "mask": torch.tensor([True, False])}
    return Checkpoint(number, model, {"optimizer.velocity": torch.ones(3)}, {"cursors": [number]}, {"accuracy": "0.5"})


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    kept = Checkpoints(tmp_path / "checkpoints")
    for number in (5, 10):
        kept.save(checkpoint(number))
    return kept


def names(kept: Checkpoints) -> list[str]:
    return sorted(file.name for file in kept.directory.iterdir())


def test_where_nothing_was_saved_there_are_no_rounds(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "nowhere").rounds() == []


def test_what_is_saved_is_read(kept: Checkpoints) -> None:
    read = kept.read(10)
    assert (read.round, read.state) == (10, {"cursors": [10]})
    assert read.metadata["accuracy"] == "0.5"
    for tensors, expected in ((read.model, checkpoint(10).model), (read.server, checkpoint(10).server)):
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_the_file_of_the_model_holds_the_model_alone(kept: Checkpoints) -> None:
    assert set(load_file(kept.model_file(10))) == {"w", "steps", "mask"}
    with safe_open(kept.model_file(10), "pt") as opened:
        assert opened.metadata()["round"] == "10"


@pytest.mark.parametrize("first", [1, 8, 98, 999_998])
def test_the_newest_are_kept_by_number(tmp_path: Path, first: int) -> None:
    kept = Checkpoints(tmp_path)
    for number in range(first, first + 5):
        assert kept.save(checkpoint(number)) == kept.model_file(number)
        assert kept.rounds()[0] == number
    last = [first + 4, first + 3, first + 2]
    assert kept.rounds() == last
    assert len(last) == KEEP_CHECKPOINTS
    assert len(names(kept)) == 2 * KEEP_CHECKPOINTS


def test_other_files_are_left_alone(kept: Checkpoints) -> None:
    others = ["notes.txt", "round-best.safetensors", "round-0000011.safetensors.damaged", "server-12.safetensors"]
    for name in others:
        (kept.directory / name).write_text("mine")
    for number in (15, 20):
        kept.save(checkpoint(number))
    assert kept.rounds() == [20, 15, 10]
    assert set(others) < set(names(kept))


def test_a_half_checkpoint_is_removed_with_the_old(kept: Checkpoints) -> None:
    """The process ended between the two files."""
    shutil.copy(kept.directory / "server-000010.safetensors", kept.directory / "server-000011.safetensors")
    assert kept.rounds() == [10, 5]
    kept.save(checkpoint(15))
    assert not (kept.directory / "server-000011.safetensors").exists()


def flipped(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["round-000010.safetensors", "server-000010.safetensors"])
def test_any_flipped_bit_is_found(kept: Checkpoints, name: str) -> None:
    file = kept.directory / name
    good = file.read_bytes()
    for at in range(len(good)):
        flipped(file, at)
        try:
            read = kept.read(10)
        except CorruptData:
            pass
        else:  # a bit of the file's own bookkeeping, such as the name of the framework or a space that pads
            assert (read.state, dict(read.metadata)["accuracy"]) == ({"cursors": [10]}, "0.5"), at
            assert all(torch.equal(read.model[key], value) for key, value in checkpoint(10).model.items()), at
        file.write_bytes(good)
    kept.read(10)


def directory_in_place_of(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda file: file.write_bytes(file.read_bytes()[:-1]), "cannot be read"),
    "longer": (lambda file: file.write_bytes(file.read_bytes() + b"\0"), "cannot be read"),
    "empty": (lambda file: file.write_bytes(b""), "cannot be read"),
    "gone": (lambda file: file.unlink(), "cannot be read"),
    "a directory": (directory_in_place_of, "cannot be read"),
    "not its kind": (lambda file: file.write_text("hello" * 100), "cannot be read"),
    "a value changed": (lambda file: flipped(file, -1), "does not match its checksum"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["round-000010.safetensors", "server-000010.safetensors"])
def test_a_damaged_file_is_named_with_the_reason(kept: Checkpoints, name: str, damage: str) -> None:
    harm, reason = DAMAGE[damage]
    harm(kept.directory / name)
    with pytest.raises(CorruptData, match=f"{name} {reason}"):
        kept.read(10)
    kept.read(5)


def test_a_file_of_somebody_else_has_no_checksum(kept: Checkpoints) -> None:
    save_file({"w": torch.ones(3)}, kept.model_file(10), {"round": "10"})
    with pytest.raises(CorruptData, match="has no checksum"):
        kept.read(10)
    save_file({"w": torch.ones(3)}, kept.model_file(10))
    with pytest.raises(CorruptData, match="has no checksum"):
        kept.read(10)


def test_files_of_two_saves_are_no_checkpoint(kept: Checkpoints) -> None:
    other = kept.directory / "other"
    other.mkdir()
    Checkpoints(other).save(replace(checkpoint(10), state={"cursors": [11]}))
    shutil.copy(other / "server-000010.safetensors", kept.directory)
    with pytest.raises(CorruptData, match=r"server-000010\.safetensors belongs to another model"):
        kept.read(10)


@pytest.mark.parametrize("kind", ["round", "server"])
def test_a_renamed_file_is_not_of_its_round(kept: Checkpoints, kind: str) -> None:
    shutil.copy(kept.directory / f"{kind}-000005.safetensors", kept.directory / f"{kind}-000010.safetensors")
    with pytest.raises(CorruptData, match="says that it is of round 5"):
        kept.read(10)


@pytest.mark.parametrize(
    ("state", "reason"), [("[1]", "a list"), ("{", "not valid JSON"), ("[" * 100_000, "nested too deep")]
)
def test_a_state_that_is_no_object_is_damage(kept: Checkpoints, state: str, reason: str) -> None:
    server, model = kept.directory / "server-000010.safetensors", kept.model_file(10)
    signature = write_tensors(server, checkpoint(10).server, {"round": "10", "state": state})
    write_tensors(model, checkpoint(10).model, {"round": "10", "server_checksum": signature})
    with pytest.raises(CorruptData, match=reason):
        kept.read(10)


def test_a_save_that_fails_names_the_file_and_keeps_what_was_there(
    kept: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every file that can fail: safetensors' own error is no OSError."""
    before = {name: (kept.directory / name).read_bytes() for name in names(kept)}
    (kept.directory / ".server-000010.safetensors.partial").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*server-000010\.safetensors: .*[Ii]s a directory"):
        kept.save(replace(checkpoint(10), state={}))
    (kept.directory / ".server-000010.safetensors.partial").rmdir()
    assert {name: (kept.directory / name).read_bytes() for name in names(kept)} == before

    def full(file: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hypergpu.coordinator.files.sync_file", full)
    with pytest.raises(StorageError, match=r"server-000015\.safetensors: No space left on device"):
        kept.save(checkpoint(15))
    assert {name: (kept.directory / name).read_bytes() for name in names(kept)} == before


def test_a_model_that_cannot_be_written_leaves_the_checkpoint_of_the_same_round_whole(
    kept: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.sync_file

    def full(file: Path) -> None:
        if "round" in file.name:
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(files, "sync_file", full)
    before = names(kept)
    with pytest.raises(StorageError, match=r"cannot write .*round-000010\.safetensors: No space left on device"):
        kept.save(replace(checkpoint(10), state={"cursors": [11]}))
    assert kept.read(10).state == {"cursors": [10]}
    with pytest.raises(StorageError, match=r"round-000015\.safetensors"):
        kept.save(checkpoint(15))
    assert names(kept) == before


def test_a_figure_that_is_not_finite_is_null_in_the_state(kept: Checkpoints) -> None:
    kept.save(replace(checkpoint(15), state={"loss": math.nan, "nodes": [{"seconds": math.inf}], "late": 1}))
    assert kept.read(15).state == {"loss": None, "nodes": [{"seconds": None}], "late": 1}


def test_later_checkpoints_are_put_out_of_the_way(kept: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("hypergpu.coordinator.checkpoints.sync_directory", synced.append)
    kept.set_aside_after(5)
    assert synced == [kept.directory]
    assert kept.rounds() == [5]
    assert (kept.directory / "round-000010.safetensors.damaged").exists()
    assert (kept.directory / "server-000010.safetensors.damaged").exists()
    kept.set_aside_after(5)
    assert kept.rounds() == [5]


@pytest.mark.parametrize(
    "other",
    [
        {"v": torch.ones(2, 3)},
        {"w": torch.ones(3, 2)},
        {"w": torch.ones(2, 3, dtype=torch.float64)},
        {"w": torch.ones(2, 3, dtype=torch.int32)},
        {"w": torch.ones(2, 3), "x": torch.ones(0)},
        {"w": torch.ones(2, 3).fill_(1.0000001)},
    ],
)
def test_the_checksum_is_of_names_types_shapes_and_values(other: dict[str, torch.Tensor]) -> None:
    tensors = {"w": torch.ones(2, 3)}
    assert checksum(other, {}) != checksum(tensors, {})
    assert checksum(tensors, {"a": "bc"}) != checksum(tensors, {"ab": "c"})
    assert checksum(dict(reversed(list(other.items()))), {"a": "1", "b": "2"}) == checksum(other, {"b": "2", "a": "1"})


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(7),
        torch.zeros(0, 3),
        torch.tensor([True, False]),
        torch.tensor([0.1, -1.7, 3e7]).bfloat16(),
        torch.tensor([0.1, -1.7, 6e4]).half(),
        torch.tensor([0.1 - 2j, 1j, 3e7], dtype=torch.complex64),
        torch.arange(6.0).reshape(2, 3).T,
    ],
    ids=str,
)
def test_every_kind_of_tensor_comes_back(tmp_path: Path, tensor: torch.Tensor) -> None:
    file = tmp_path / "x.safetensors"
    signature = write_tensors(file, {"t": tensor.contiguous()}, {"round": "3"})
    tensors, metadata = read_tensors(file)
    assert metadata == {"format": "pt", "round": "3", "checksum": signature}
    assert (tensors["t"].dtype, tensors["t"].shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(tensors["t"], tensor)


def test_the_state_travels_as_json(kept: Checkpoints) -> None:
    with safe_open(kept.directory / "server-000010.safetensors", "pt") as opened:
        assert json.loads(opened.metadata()["state"]) == {"cursors": [10]}
