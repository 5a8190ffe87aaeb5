"""The base of every part of the configuration tree."""

from pydantic import BaseModel, ConfigDict


class ConfigSection(BaseModel):
    """Typed, frozen, and closed: an unknown key is an error. Field docstrings are the documentation."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,
    )
