"""Credentials of a node: its name, the join token, and the secret of its lease."""

from collections.abc import Callable

from hypergpu.common.rpc import metadata_for
from hypergpu.node.lease_file import LeaseFile


class Credentials:
    """Name, token and lease that the calls of a node show.

    Args:
        node_id: name of the node.
        token: returns the present join token; empty if there is none.
        file: where the secret of the lease is kept for the next process of the node; None: nowhere.
    """

    def __init__(self, node_id: str, token: Callable[[], str] = str, file: LeaseFile | None = None) -> None:
        self.node_id = node_id
        self._token, self._file = token, file
        self._lease = ""

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata of a call."""
        if not self._lease and self._file is not None:
            self._lease = self._file.read()
        return metadata_for(self.node_id, self._token(), self._lease)

    def keep(self, lease: str) -> None:
        """Show the secret of this lease from now on."""
        if lease != self._lease and self._file is not None:
            self._file.write(lease)
        self._lease = lease

    def forget(self) -> None:
        """Forget the lease, which has ended."""
        if self._file is not None:
            self._file.remove()
        self._lease = ""
