"""Whole clusters."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.local import Cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    for process in cluster.processes:
        process.kill()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep whole clusters on one worker: they have the machine to themselves but for the unit tests on the other."""
    item.add_marker(pytest.mark.xdist_group("e2e"))
