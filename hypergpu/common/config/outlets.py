"""Settings of the outlets: other programs that show a run."""

from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator

from hypergpu.common.config.section import ConfigSection


def _switch(value: object) -> object:
    """Return a truth value, as YAML reads `true` and `off`, as its text."""
    return ("true" if value else "") if isinstance(value, bool) else value


def _without_password(uri: str) -> str:
    """Check that a URI has no password: settings are written to the run directory, and shown.

    Raises:
        ValueError: it has one, or is no URI.
    """
    parts = urlsplit(uri)
    if parts.password and parts.scheme in {"http", "https"}:
        raise ValueError("leave the password out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    return uri


Switch = Annotated[str, BeforeValidator(_switch)]


class OutletsConfig(ConfigSection):
    """Other programs that show a run while it goes on; see docs/outlets.md. Each needs its extra."""

    tensorboard: Switch = ""
    """TensorBoard: `true` writes to `tensorboard/` in the run directory, another text is a directory, in which the run
    has one of its own name. Empty: none."""

    mlflow: Annotated[str, AfterValidator(_without_password)] = ""
    """MLflow: the tracking URI, such as `http://mlflow:5000` or `sqlite:///mlflow.db`. Empty: none."""

    wandb: Annotated[Literal["", "offline", "online"], BeforeValidator(_switch)] = ""
    """Weights & Biases: `online`, with the key in WANDB_API_KEY, or `offline`, into `wandb/` in the run directory.
    Empty: none."""

    @property
    def chosen(self) -> Mapping[str, str]:
        """Name of each outlet that is on, with what it writes to."""
        targets = {"tensorboard": self.tensorboard, "mlflow": self.mlflow, "wandb": self.wandb}
        return {name: target for name, target in targets.items() if target}
