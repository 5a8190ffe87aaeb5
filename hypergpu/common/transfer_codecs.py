"""Names of the codecs of a node's transfers."""

from dataclasses import dataclass
from typing import Final, Literal

UpdateCodecName = Literal["none", "bf16", "int8", "int4", "topk"]
ParametersCodecName = Literal["none", "bf16", "int8"]


@dataclass(frozen=True, slots=True)
class TransferCodecs:
    """Codecs of one node's transfers; `none` sends float32."""

    update: str = "none"
    parameters: str = "none"

    def __str__(self) -> str:
        return f"{self.update}/{self.parameters}"


NO_CODECS: Final = TransferCodecs()
