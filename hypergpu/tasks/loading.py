"""From a name on the command line to a `Task`."""

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


def load_task(spec: str, seed: int = 0) -> Task:
    """Return the task that `spec` names; the same seed gives the same task in every process.

    Factories run under `seed`: a `random_split` without a generator of its own splits alike on every side of a run.
    A module is imported once in a process, so what it draws when it is imported is seeded by a constant.

    Args:
        spec: a shipped task; `package.module:factory`, also found from the current directory, where `factory`
            is a function without arguments that returns a `Task`, or a `Task` itself; the name of an entry point in the
            group `hypergpu.tasks` of an installed distribution; or, for users with a network, `torchvision:NAME` or
            `hf:NAME`.

    Raises:
        UnknownName: no such task; the nearest known one is named.
        InvalidInput: the module cannot be imported, the factory fails, or it gives something else.
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
    """Check that a user's task can be imported, without running its factory: that is done under the run's seed.

    Raises:
        UnknownName, InvalidInput: as `load_task`.
    """
    module, _, attribute = spec.partition(":")
    _find(spec, module, attribute)


def is_user_task(spec: str) -> bool:
    """Whether `spec` names a user's code rather than a shipped task or loader."""
    prefix, colon, _ = spec.partition(":")
    return prefix not in _LOADERS if colon else spec not in TASK_NAMES


def _offered(name: str) -> object:
    """Return what an installed distribution offers under this name."""
    offered = task_names.installed().get(name)
    if offered is None:
        raise UnknownName("task", name, task_names.known())
    try:
        with seeded(_IMPORT_SEED):
            loaded: object = offered.load()
    except Exception as error:
        of = offered.dist.name if offered.dist else "an installed distribution"
        raise InvalidInput(f"task {name!r} of {of}: loading {offered.value} raised {_told(error)}") from error
    return loaded


def _find(spec: str, module_name: str, attribute: str) -> object:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # `hypergpu` as a command, unlike `python -m`, does not look here
    if not module_name or not attribute:
        raise InvalidInput(f"task {spec!r} is not of the form package.module:factory")
    try:
        with seeded(_IMPORT_SEED):
            module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and module_name.startswith(error.name):
            package = module_name.partition(".")[0]
            ours = f"; {package} is the name of an installed package: rename yours" if package == _OWN_PACKAGE else ""
            raise InvalidInput(f"task {spec!r}: there is no module {error.name!r} here or installed{ours}") from error
        raise InvalidInput(f"task {spec!r}: importing {module_name} raised {_told(error)}") from error
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
            raise InvalidInput(f"task {spec!r}: its factory raised {_told(error)}") from error
    if not isinstance(made, Task):
        raise InvalidInput(f"task {spec!r}: its factory gave a {type(made).__name__}, not a tasks.Task")
    return made


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
