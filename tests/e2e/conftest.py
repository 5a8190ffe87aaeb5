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
