"""Settings of the outlets: other programs that show a run."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator

from hypergpu.common.config.section import ConfigSection


def _switch(value: object) -> object:
    """Return a truth value, as YAML reads `true` and `off`, as its text."""
    return ("true" if value else "") if isinstance(value, bool) else value


Switch = Annotated[str, BeforeValidator(_switch)]


class OutletsConfig(ConfigSection):
    """Other programs that show a run while it goes on; see docs/outlets.md. Each needs its extra."""

    tensorboard: Switch = ""
    """TensorBoard: `true` writes to `tensorboard/` in the run directory, another text is a directory, in which the run
    has one of its own name. Empty: none."""

    @property
    def chosen(self) -> Mapping[str, str]:
        """Name of each outlet that is on, with what it writes to."""
        targets = {"tensorboard": self.tensorboard}
        return {name: target for name, target in targets.items() if target}
