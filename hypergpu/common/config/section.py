"""Base of every section of the configuration tree."""

from pydantic import BaseModel, ConfigDict


class ConfigSection(BaseModel):
    """Frozen section in which an unknown key is an error; field docstrings are the documentation."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,
    )
