"""User override of the node selection."""

from enum import StrEnum


class NodeOverride(StrEnum):
    """Override that a user sets for one node. It applies to every round until it is changed."""

    AUTOMATIC = "automatic"
    """The selector decides."""
    INCLUDE = "include"
    """The node takes part in every round for which it is available."""
    EXCLUDE = "exclude"
    """The node takes part in no round."""
