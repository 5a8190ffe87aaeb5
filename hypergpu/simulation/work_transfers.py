"""Transfers of one work unit in virtual time, as `node/background_transfers.py` has them in real time."""

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class WorkTransfers:
    """Transfers that go on while a node trains, and where the upload of its update stands."""

    offset: int = 0
    """First byte of the update that the present stream sends."""
    is_background: bool = False
    """The node trains while its fragments travel."""
    is_downloading: bool = False
    is_uploading: bool = False
    download_failed: bool = False
    upload_failed: bool = False
    is_sent: bool = False
    """The update is at the coordinator, and its figures are not."""
    is_trained: bool = False
    """The node has trained, and waits for its parameters."""
    pushes: bool = False
    """The node has all that it needs for its figures, and waits for the upload."""
