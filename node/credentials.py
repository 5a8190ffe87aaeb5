"""Credentials of a node: its name, the join token, the secret of its lease, and the key of its receipts."""

from hypergpu.common.rpc import metadata_for
from hypergpu.common.token import TokenSource
from hypergpu.node.countersigning import Countersigning
from hypergpu.node.lease_file import LeaseFile


class Credentials:
    """Name, token and lease that the calls of a node show.

    Args:
        node_id: name of the node.
        tokens: join tokens; the first is shown.
        file: where the secret of the lease is kept for the next process of the node; None: nowhere.
        countersigning: signs the receipts of the node, and watches the ledger; None: with a key of this process.
    """

    def __init__(
        self,
        node_id: str,
        tokens: TokenSource | None = None,
        file: LeaseFile | None = None,
        countersigning: Countersigning | None = None,
    ) -> None:
        self.node_id = node_id
        self.countersigning = countersigning or Countersigning()
        self._tokens, self._file = tokens or TokenSource(), file
        self._lease = ""

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata of a call."""
        if not self._lease and self._file is not None:
            self._lease = self._file.read()
        return metadata_for(self.node_id, self._tokens.first, self._lease)

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
