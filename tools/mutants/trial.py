"""One mutant against its tests, in a forked process."""

import ast
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tools.mutants.changes import Mutant, mutated

UNNOTICED = 0
NOTICED = 1
HARNESS_FAILED = 3


@dataclass(frozen=True)
class Outcome:
    """Result of a mutant."""

    mutant: Mutant
    noticed: bool
    how: str


class _Loader(importlib.abc.Loader):
    def __init__(self, path: str, tree: ast.Module) -> None:
        self._path, self._tree = path, tree

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = self._path
        exec(compile(self._tree, self._path, "exec"), module.__dict__)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module, changed."""

    def __init__(self, name: str, loader: _Loader) -> None:
        self._name, self._loader = name, loader
        self.used = False

    def find_spec(self, fullname: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        self.used = True
        return importlib.util.spec_from_loader(fullname, self._loader)


def try_mutant(mutant: Mutant, tests: Sequence[str], seconds: float) -> Outcome:
    """Run the tests against one mutant in a forked process; one that hangs counts as noticed."""
    if not tests:
        return Outcome(mutant, False, "no test reaches it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: the child runs tests alone
        child = os.fork()
    if child == 0:
        code = HARNESS_FAILED
        with contextlib.suppress(BaseException):
            os.setpgid(0, 0)
            code = _run_in_child(mutant, tests)
        os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return _judged(mutant, os.waitstatus_to_exitcode(status))
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return Outcome(mutant, True, "it hangs")


def _judged(mutant: Mutant, code: int) -> Outcome:
    if code == HARNESS_FAILED:
        return Outcome(mutant, False, "the harness failed")
    return Outcome(mutant, code != UNNOTICED, "a test fails" if code else "no test fails")


def _run_in_child(mutant: Mutant, tests: Sequence[str]) -> int:
    import pytest  # noqa: PLC0415  (the parent has loaded it; the child runs it)

    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    module = module_of(mutant.file)
    finder = _Finder(module, _Loader(str(Path.cwd() / mutant.file), mutated(mutant)))
    sys.meta_path.insert(0, finder)
    options = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(Path.cwd()),
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    ]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = int(pytest.main([*options, *tests]))
    if not finder.used:
        return HARNESS_FAILED
    return UNNOTICED if code == 0 else NOTICED


def module_of(file: str) -> str:
    """Name that a file is imported by; a service's folder is a link in the package."""
    linked = Path("hypergpu", file)
    return ".".join((linked if linked.is_file() else Path(file)).with_suffix("").parts)


def preload() -> None:
    """Load what is not ours once, so that each child begins with it."""
    sys.path.insert(0, str(Path.cwd()))
    for name in ("pytest", "_pytest.assertion.rewrite", "pytest_asyncio", "hypothesis", "numpy", "torch", "pydantic"):
        importlib.import_module(name)
    from hypothesis import settings  # noqa: PLC0415

    settings.register_profile("mutants", derandomize=True, database=None, max_examples=50, deadline=None)
    settings.load_profile("mutants")
