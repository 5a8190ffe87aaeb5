"""Loading of tasks by name."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from hypergpu.common import task_names
from hypergpu.common.errors import HyperGPUError, InvalidInput, UnknownName
from hypergpu.tasks.base import Task
from hypergpu.tasks.seeding import seeded

TASK_NAMES = task_names.SHIPPED

_IMPORT_SEED = 0
_LOADERS = ("hf", "torchvision")
_OWN_PACKAGE = "hypergpu"
"""Package that hides a user's module of the same name."""
_MOVED = {"tasks": "from hypergpu.tasks import Task", "common": "from hypergpu.common import ..."}
"""Packages of ours that could be imported by these names before 0.2.0, each with the import to write now."""


def load_task(spec: str, seed: int = 0) -> Task:
    """Return the task of a name; the same seed gives the same task in every process.

    Factories run under `seed`: a `random_split` without a generator of its own splits alike on every side of a run. A
    module is imported once per process, under a constant seed. A factory that caches its result keeps that of the first
    seed.

    Args:
        spec: a shipped task; `package.module:factory`, also found from the current directory, where `factory`
            is a function without arguments that returns a `Task`, or a `Task` itself; the name of an entry point in the
            group `hypergpu.tasks` of an installed distribution; or, with a network, `torchvision:NAME` or `hf:NAME`.
        seed: seed of the factory's random numbers.

    Raises:
        UnknownName: no such task; the message suggests the nearest known one.
        InvalidInput: the module cannot be imported, or the factory raised or did not return a task.
    """
    prefix, colon, rest = spec.partition(":")
    if not colon:
        if spec not in TASK_NAMES:
            return _made(spec, seed, _offered(spec))
        return _made(spec, seed, importlib.import_module(f"hypergpu.tasks.{spec}").task)
    if prefix in _LOADERS:
        loader = importlib.import_module("hypergpu.tasks.loaders")
        return _made(spec, seed, lambda: getattr(loader, prefix)(rest))
    return _made(spec, seed, _find(spec, prefix, rest))


def require_found(spec: str) -> None:
    """Check that a user's task can be imported, without running its factory, which needs the run's seed.

    Raises:
        UnknownName: the module has no such factory.
        InvalidInput: the module cannot be imported.
    """
    module, _, attribute = spec.partition(":")
    _find(spec, module, attribute)


def is_user_task(spec: str) -> bool:
    """Return whether a name refers to a user's code, not to a shipped task or loader."""
    prefix, colon, _ = spec.partition(":")
    return prefix not in _LOADERS if colon else spec not in TASK_NAMES


def _offered(name: str) -> object:
    """Return the factory that an installed distribution offers under a name."""
    offered = task_names.installed().get(name)
    if offered is None:
        raise UnknownName("task", name, task_names.known())
    try:
        with seeded(_IMPORT_SEED):
            loaded: object = offered.load()
    except Exception as error:
        of = offered.dist.name if offered.dist else "an installed distribution"
        raise InvalidInput(f"task {name!r} of {of}: loading {offered.value} raised {_described(error)}") from error
    return loaded


def _find(spec: str, module_name: str, attribute: str) -> object:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # the command `hypergpu`, unlike `python -m`, does not search here
    if not module_name or not attribute:
        raise InvalidInput(f"task {spec!r} is not of the form package.module:factory")
    try:
        with seeded(_IMPORT_SEED):
            module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            package = module_name.partition(".")[0]
            ours = f"; {package} is the name of an installed package: rename yours" if package == _OWN_PACKAGE else ""
            raise InvalidInput(f"task {spec!r}: there is no module {error.name!r} here or installed{ours}") from error
        raise InvalidInput(f"task {spec!r}: importing {module_name} raised {_described(error)}") from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise UnknownName(f"factory in {module_name}", attribute, known) from None


def _made(spec: str, seed: int, factory: Callable[[], object] | object) -> Task:
    made = factory
    if callable(factory):
        try:
            with seeded(seed):
                made = factory()
        except HyperGPUError:
            raise
        except Exception as error:
            raise InvalidInput(f"task {spec!r}: its factory raised {_described(error)}") from error
    if not isinstance(made, Task):
        raise InvalidInput(f"task {spec!r}: its factory returned a {type(made).__name__}, not a hypergpu.tasks.Task")
    return made


def _described(error: BaseException) -> str:
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, ModuleNotFoundError) and error.name in _MOVED:
        return f"{text}; since 0.2.0 the names are in hypergpu.{error.name}: write `{_MOVED[error.name]}`"
    return text
