"""A user's rule for one node."""

from enum import StrEnum


class NodeOverride(StrEnum):
    """Rule of a user for one node. It holds for every round until it is changed."""

    AUTOMATIC = "automatic"
    """The selector decides."""
    INCLUDE = "include"
    """In every round for which the node is available."""
    EXCLUDE = "exclude"
    """In no round."""
