"""Settings of what is measured of the nodes' contributions."""

from typing import Annotated

from pydantic import Field

from hypergpu.common.config.section import ConfigSection


class ContributionConfig(ConfigSection):
    """Measurement of what nodes contribute, beside the direction of their updates; see docs/contribution.md."""

    measured_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the updates whose gain on held-out data is measured, drawn by a secret key; two of a round at most, in
    a twentieth of the time. 0 measures none."""
    spot_check_share: Annotated[float, Field(ge=0, le=0.25)] = 0.0
    """Share of the accepted updates that another node computes again and that are compared, drawn by a secret key; it
    is that share of the nodes' work, and takes the memory of up to two models. Needs partition `iid` or `dirichlet`,
    whole models, `local_state` `reset`, and suspicion; see docs/contribution.md."""
