"""States of a node's life cycle."""

from enum import StrEnum


class State(StrEnum):
    """Activity of a node."""

    JOINING = "joining"
    """Registering with the coordinator."""
    PREPARING = "preparing"
    """Loading the data and building the model of the run."""
    IDLE = "idle"
    """Waiting for work."""
    PULLING = "pulling"
    """Receiving the parameters of its work."""
    TRAINING = "training"
    PUSHING = "pushing"
    """Sending its update."""
    BACKING_OFF = "backing_off"
    """Waiting before it tries again."""
    LEAVING = "leaving"


TRANSFERRING = frozenset({State.PULLING, State.PUSHING})
"""States in which parameters or an update are on the node's link."""
