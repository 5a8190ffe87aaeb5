"""Settings of the compression of transfers."""

from typing import Annotated

from pydantic import Field, model_validator

from hypergpu.common.config.section import ConfigSection
from hypergpu.common.strategies import CompressionStrategy
from hypergpu.common.transfer_codecs import ParametersCodecName, TransferCodecs, UpdateCodecName


class CompressionConfig(ConfigSection):
    """Codecs of the transfers between the coordinator and its nodes."""

    strategy: CompressionStrategy = CompressionStrategy.NONE
    """Strategy that chooses the codecs: `none` sends float32, and a model of bfloat16 as it is; `fixed` uses the two
    codecs below for every node, and `adaptive` chooses them for each node, direction and round by the expected progress
    per second. With policy `none`, `adaptive` sends float32."""
    update_codec: UpdateCodecName = "none"
    """Codec of updates, by its share of the bytes of float32: `bf16` 1/2, `int8` 1/4, `int4` 1/8, `topk` 1/136. What
    `int4` and `topk` lose of an update is added to the node's next one."""
    parameters_codec: ParametersCodecName = "none"
    """Codec of the parameters that nodes receive. `bf16` halves the bytes. `int8` sends the difference to the last
    round's parameters, a quarter of the bytes, to nodes that hold these; others receive float32."""
    max_noise: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Largest noise of an update's codec that `adaptive` accepts: |decoded - exact|² ÷ |exact|². `bf16` has about
    0.000003, `int8` 0.0005, `int4` 0.1 and `topk` 0.8."""

    @model_validator(mode="after")
    def _codecs_have_a_strategy(self) -> "CompressionConfig":
        if self.strategy is not CompressionStrategy.FIXED and self.codecs != TransferCodecs():
            raise ValueError(f"update_codec and parameters_codec need strategy fixed; {self.strategy} ignores them")
        return self

    @property
    def codecs(self) -> TransferCodecs:
        """Codecs of every node."""
        return TransferCodecs(self.update_codec, self.parameters_codec)
