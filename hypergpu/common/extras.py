"""Extras of the distribution, by the modules that they install."""

from importlib.util import find_spec
from typing import Final

from hypergpu.common.errors import ConfigError

_EXTRA_OF: Final = {
    "torch": "train",
    "safetensors": "train",
    "sklearn": "train",
    "scipy": "train",
    "mlxtend": "data",
    "torchvision": "vision",
    "datasets": "hf",
    "pynvml": "gpu",
    "Crypto": "chain",
    "mlflow": "mlflow",
    "opentelemetry": "otel",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}


def missing_extra(error: ImportError) -> ConfigError | None:
    """Return an error that names the extra of a module that could not be imported; None if no extra has it."""
    module = (error.name or "").partition(".")[0]
    extra = _EXTRA_OF.get(module)
    if extra is None:
        return None
    return ConfigError(f"this needs {module}, which is not installed: pip install 'hypergpu[{extra}]'")


def is_installed(module: str) -> bool:
    """Return whether a module is installed, without importing it."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package above it is not
        return False


def require_extra(module: str) -> None:
    """Check that a module is installed, without importing it.

    Raises:
        ConfigError: it is not installed; the message names its extra.
    """
    if not is_installed(module):
        error = ModuleNotFoundError(name=module)
        raise missing_extra(error) or error
