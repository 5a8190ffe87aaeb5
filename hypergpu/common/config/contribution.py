"""Settings of what is measured of the nodes' contributions."""

from typing import Annotated

from pydantic import Field

from hypergpu.common.config.section import ConfigSection


class ContributionConfig(ConfigSection):
    """Measurement of what nodes contribute, beside the direction of their updates; see docs/contribution.md."""

    measured_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the updates whose gain on held-out data is measured, drawn by a secret key; two of a round at most, in
    a twentieth of the time. 0 measures none."""
