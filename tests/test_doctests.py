"""Examples in docstrings give what they show."""

import doctest
from importlib import import_module

import pytest
from structlog.testing import capture_logs

from tests.test_architecture import ROOT, tracked


def modules_with_examples() -> list[str]:
    """Return the modules of the package whose docstrings show an example."""
    files = [file.relative_to(ROOT) for file in tracked("hypergpu", "coordinator", "node", "netsim_proxy")]
    shown = [file for file in files if file.suffix == ".py" and ">>> " in (ROOT / file).read_text()]
    return [
        ".".join(("hypergpu", *file.with_suffix("").parts)).replace("hypergpu.hypergpu", "hypergpu") for file in shown
    ]


def test_there_are_examples() -> None:
    assert {"hypergpu.tasks.metrics", "hypergpu.node.service"} <= set(modules_with_examples())


@pytest.mark.parametrize("module", modules_with_examples())
def test_examples_give_what_they_show(module: str) -> None:
    with capture_logs():  # they go to standard output otherwise
        failed, tried = doctest.testmod(import_module(module), optionflags=doctest.ELLIPSIS)
    assert (failed, tried > 0) == (0, True)
