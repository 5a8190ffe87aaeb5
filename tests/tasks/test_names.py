"""Names of tasks that are no shipped ones: entry points of installed distributions, modules of one's own."""

import sys
from pathlib import Path

import pytest

from hypergpu.common import task_names
from hypergpu.common.errors import InvalidInput, UnknownName
from hypergpu.tasks import load_task
from hypergpu.tasks.loading import is_user_task

FACTORY = """
import torch
from torch import nn
from hypergpu.tasks import Task

def tiny():
    data = torch.zeros(8, 2), torch.zeros(8, dtype=torch.int64)
    return Task(model=lambda: nn.Linear(2, 2), train=data, test=data, name="tiny")

def broken():
    raise OSError("no such data")
"""
ENTRY_POINTS = """
[hypergpu.tasks]
tiny = their_tasks:tiny
broken = their_tasks:broken
absent = not_there:factory
digits = their_tasks:tiny
"""


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a distribution that offers tasks."""
    (tmp_path / "their_tasks.py").write_text(FACTORY)
    metadata = tmp_path / "their_tasks-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-tasks\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "their_tasks", raising=False)


@pytest.mark.usefixtures("distribution")
def test_a_task_of_an_installed_distribution_is_loaded_by_its_name() -> None:
    assert load_task("tiny").name == "tiny"
    assert load_task("digits").name == "digits", "a shipped task is never replaced"


@pytest.mark.usefixtures("distribution")
def test_installed_tasks_are_listed_in_errors_and_help() -> None:
    assert list(task_names.installed()) == ["absent", "broken", "tiny"]
    told = "chars, digit_sums, digits, mnist5k, absent, broken, tiny, or your own as package.module:factory"
    assert task_names.choices() == told
    with pytest.raises(UnknownName, match="did you mean 'tiny'"):
        load_task("tinny")


@pytest.mark.usefixtures("distribution")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("broken", "task 'broken': its factory raised OSError: no such data"),
        ("absent", "task 'absent' of their-tasks: loading not_there:factory raised ModuleNotFoundError"),
    ],
)
def test_an_installed_task_that_does_not_hold_is_named_with_its_distribution(name: str, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        load_task(name)


@pytest.mark.parametrize(
    ("spec", "own"),
    [("digits", False), ("hf:mnist", False), ("torchvision:CIFAR10", False), ("tiny", True), ("my.module:task", True)],
)
def test_a_node_may_load_what_is_shipped_without_being_told(spec: str, own: bool) -> None:
    assert is_user_task(spec) is own


def test_a_module_that_our_own_package_hides_is_told() -> None:
    with pytest.raises(
        InvalidInput,
        match=r"no module 'hypergpu\.mine' here or installed; hypergpu is the name of an installed",
    ):
        load_task("hypergpu.mine:task")
    with pytest.raises(InvalidInput, match=r"no module 'not_there' here or installed$"):
        load_task("not_there:task")
