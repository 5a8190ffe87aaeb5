"""Transfers in a model's own type."""

from hypergpu.common.config.compression import CompressionConfig
from hypergpu.common.strategies import CompressionStrategy
from hypergpu.tasks.flat import FlatModel


def with_own_type(compression: CompressionConfig, model: FlatModel) -> CompressionConfig:
    """Return the settings of the transfers of a model: a bfloat16 model travels as bfloat16, unless a codec is chosen.

    Nothing is lost of the parameters that way: a node rounds what it receives to the model's type anyway.
    """
    if compression.strategy is not CompressionStrategy.NONE or not model.is_bfloat16:
        return compression
    return CompressionConfig(
        strategy=CompressionStrategy.FIXED,
        update_codec="bf16",
        parameters_codec="bf16",
        max_noise=compression.max_noise,
    )
