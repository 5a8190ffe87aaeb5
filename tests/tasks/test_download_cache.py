"""Downloaded data sets, without a network: what is kept, checked, shared between processes and said when it fails."""

import fcntl
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from hypergpu.common.errors import InvalidInput, UnknownName
from hypergpu.tasks import Task, load_task
from hypergpu.tasks.download_cache import cache_directory, ensure_downloaded


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "cache"
    monkeypatch.setenv("HYPERGPU_DATA", str(directory))
    return directory


class Download:
    """Writes one file and counts how often it was asked to."""

    def __init__(self, content: bytes = b"pixels", fails: Exception | None = None) -> None:
        self.content, self.fails, self.calls = content, fails, 0

    def __call__(self, directory: Path) -> None:
        self.calls += 1
        assert list(directory.iterdir()) == []
        (directory / "raw").mkdir()
        (directory / "raw" / "images").write_bytes(self.content)
        if self.fails is not None:
            raise self.fails


def test_a_data_set_is_downloaded_once(cache: Path) -> None:
    download = Download()
    first = ensure_downloaded("hf:mnist", download)
    assert (first / "raw" / "images").read_bytes() == b"pixels"
    assert ensure_downloaded("hf:mnist", download) == first
    assert download.calls == 1
    assert sorted(path.name for path in cache.iterdir()) == [f".{first.name}.lock", first.name]


def test_names_that_differ_in_a_slash_are_kept_apart() -> None:
    directories = {ensure_downloaded(name, Download()) for name in ("hf:a/b", "hf:a-b", "hf:a//b", "hf:../b")}
    assert len(directories) == 4
    assert {directory.parent for directory in directories} == {cache_directory()}


def test_a_failed_download_leaves_nothing_and_is_tried_again(cache: Path) -> None:
    with pytest.raises(InvalidInput, match="hf:mnist cannot be downloaded: ConnectionError: no route to host"):
        ensure_downloaded("hf:mnist", Download(fails=ConnectionError("no route to host")))
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
    download = Download()
    ensure_downloaded("hf:mnist", download)
    assert download.calls == 1


def test_what_a_killed_process_left_behind_is_not_used_and_removed(cache: Path) -> None:
    name = ensure_downloaded("hf:mnist", Download()).name
    ensure_downloaded("hf:other", Download())
    (cache / name).rename(cache / f".{name}.partial-dead")
    (cache / f".{name}.partial-dead" / "manifest.json").unlink()
    download = Download()
    assert ensure_downloaded("hf:mnist", download).name == name
    assert download.calls == 1
    assert not list(cache.glob(".*partial*"))


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _flip(file: Path) -> None:
    file.write_bytes(b"Pixels")


def _remove(file: Path) -> None:
    file.unlink()


def _spoil_manifest(file: Path) -> None:
    (file.parent.parent / "manifest.json").write_text("{}")


def _remove_manifest(file: Path) -> None:
    (file.parent.parent / "manifest.json").unlink()


@pytest.mark.parametrize("damage", [_truncate, _flip, _remove, _spoil_manifest, _remove_manifest])
def test_a_damaged_data_set_is_downloaded_again(damage: Callable[[Path], None], cache: Path) -> None:
    directory = ensure_downloaded("hf:mnist", Download())
    damage(directory / "raw" / "images")
    download = Download()
    with capture_logs() as logged:
        assert ensure_downloaded("hf:mnist", download) == directory
    assert download.calls == 1
    assert (directory / "raw" / "images").read_bytes() == b"pixels"
    assert [entry["event"] for entry in logged] == ["a data set is damaged; downloading it again"]
    assert not list(cache.glob(".*partial*"))


def test_a_damaged_data_set_stays_when_it_cannot_be_downloaded_again() -> None:
    directory = ensure_downloaded("hf:mnist", Download())
    _flip(directory / "raw" / "images")
    with pytest.raises(InvalidInput, match="cannot be downloaded"):
        ensure_downloaded("hf:mnist", Download(fails=TimeoutError()))
    assert (directory / "raw" / "images").read_bytes() == b"Pixels"


def test_a_process_waits_for_another_that_downloads_the_same_set(cache: Path) -> None:
    name = ensure_downloaded("hf:mnist", Download()).name
    complete = cache / f"{name}-complete"
    (cache / name).rename(complete)
    descriptor = os.open(cache / f".{name}.lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    second = Download()
    found: list[Path] = []
    with capture_logs() as logged:
        waiting = threading.Thread(target=lambda: found.append(ensure_downloaded("hf:mnist", second)))
        waiting.start()
        while not logged:
            threading.Event().wait(0.001)
        complete.rename(cache / name)
        os.close(descriptor)
        waiting.join()
    assert found == [cache / name]
    assert second.calls == 0
    assert [entry["event"] for entry in logged] == ["waiting for another process that downloads the data set"]


def test_a_file_system_without_locks_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert (ensure_downloaded("hf:mnist", Download()) / "raw" / "images").is_file()


def test_a_complete_data_set_needs_no_right_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    directory = ensure_downloaded("hf:mnist", Download())

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("mkdir", "rename"):
        monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr(os, "open", refuse)
    assert ensure_downloaded("hf:mnist", Download()) == directory


def test_a_cache_that_cannot_be_written_says_what_to_do(cache: Path) -> None:
    cache.write_text("a file where the directory belongs")
    with pytest.raises(
        InvalidInput, match=r"cannot be stored in .*cache: .*; set HYPERGPU_DATA to a directory that can"
    ):
        ensure_downloaded("hf:mnist", Download())


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HYPERGPU_DATA", "~/data")
    assert cache_directory() == tmp_path / "data"
    monkeypatch.setenv("HYPERGPU_DATA", "")
    assert cache_directory() == tmp_path / ".cache" / "hypergpu"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(InvalidInput, match="set HYPERGPU_DATA to a directory"):
        cache_directory()


def parts_of(task: Task) -> list[Any]:
    """Inputs and targets for training, then held-out ones."""
    assert isinstance(task.train, tuple)
    assert isinstance(task.test, tuple)
    return [*task.train, *task.test]


class FakeSet:
    """A data set in torchvision's manner: two files, made where `download` is asked for."""

    def __init__(self, root: Path, *, train: bool, download: bool) -> None:
        file = Path(root) / f"{train}.npy"
        if download:
            np.save(file, np.full((6 if train else 3, 4, 4), 7 * train, np.uint8))
        self.data = np.load(file)
        self.targets = [at % 3 for at in range(len(self.data))]


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("torchvision.datasets")
    module.__dict__.update(__all__=("Fake",), Fake=FakeSet)
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
    return module


@pytest.mark.usefixtures("torchvision")
def test_a_torchvision_set_becomes_a_task() -> None:
    task = load_task("torchvision:Fake")
    assert task.name == "torchvision:Fake"
    assert [tuple(part.shape) for part in parts_of(task)] == [(6, 1, 4, 4), (6,), (3, 1, 4, 4), (3,)]
    assert tuple(task.model()(parts_of(task)[0]).shape) == (6, 3)
    with pytest.raises(UnknownName, match="did you mean 'Fake'"):
        load_task("torchvision:Fakes")


def test_a_set_that_is_not_of_images_says_so_with_its_place(torchvision: ModuleType) -> None:
    class Flat(FakeSet):
        def __init__(self, root: Path, *, train: bool, download: bool) -> None:
            super().__init__(root, train=train, download=download)
            self.data = self.data.reshape(-1)

    torchvision.__dict__["Fake"] = Flat
    with pytest.raises(InvalidInput, match=r"torchvision:Fake in .*cache/torchvision-Fake-.* is not a set of images"):
        load_task("torchvision:Fake")


def test_a_set_of_the_hub_becomes_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    downloads: list[str] = []

    class Part(dict[str, Any]):
        def save_to_disk(self, path: str) -> None:
            Path(path).mkdir()
            np.savez(Path(path) / "part.npz", **self)

    def load_dataset(name: str, *, split: str, cache_dir: str) -> Part:
        downloads.append(f"{name} {split}")
        (Path(cache_dir) / "blob").write_bytes(b"raw")
        count = {"train": 5, "test": 2}[split]
        return Part(image=np.ones((count, 4, 4, 3), np.uint8), label=np.arange(count))

    def load_from_disk(path: str) -> Any:
        return dict(np.load(Path(path) / "part.npz"))

    fake = SimpleNamespace(load_dataset=load_dataset, load_from_disk=load_from_disk)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    for _ in range(2):
        task = load_task("hf:somebody/digits")
        assert [tuple(part.shape) for part in parts_of(task)] == [(5, 3, 4, 4), (5,), (2, 3, 4, 4), (2,)]
    assert downloads == ["somebody/digits train", "somebody/digits test"]
    assert not list(cache_directory().rglob("blob"))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InvalidInput, match=r"datasets is not installed: pip install 'hypergpu\[hf\]'"):
        load_task("hf:mnist")
