"""Leases of node names: which process may speak for a node.

A node's process draws an incarnation, a random text that only it and the coordinator know. `Register` answers with the
secret of the lease, which is derived from the name, the incarnation and a key in the run directory. So the answer can
be lost and asked for again, and a coordinator that restarts knows its nodes again without a list of secrets.

A lease lives as long as its node is connected. While it does, only two may register under the name: the same
incarnation, and a process that shows the secret, which is the same node after a restart. The newest lease counts:
calls with the secret of an earlier one are refused. When the node has left or is lost, the name is free.
"""

import hashlib
import hmac
import math
import re
from base64 import urlsafe_b64encode
from typing import Final

from hypergpu.common.errors import InvalidInput, NameInUse, NotFound
from hypergpu.coordinator.core.rounds.membership import ConnectionState, Membership

TOLD_EVERY_SECONDS: Final = 60.0
"""Interval at which one node's contests are recorded: whoever contests a name must not fill the disk."""
_INCARNATION: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NO_PROOF: Final = ""


class Leases:
    """The leases of a run's nodes.

    Args:
        key: secret of the coordinator, from which the secrets of leases are derived.
        members: nodes of the run.
        reserved_until: time until which the names of a resumed run are kept for the nodes that had them.
    """

    def __init__(self, key: bytes, members: Membership, *, reserved_until: float = -math.inf) -> None:
        self._key, self._members, self._reserved_until = key, members, reserved_until
        self._contests: dict[str, tuple[float, str]] = {}
        """Connected nodes whose names others wanted: when that was last recorded, and the address, until it is told."""

    def secret(self, node: str, incarnation: str) -> str:
        """Return the secret of the lease of a node's process."""
        digest = hmac.digest(self._key, f"{node} {incarnation}".encode(), hashlib.sha256)
        return f"{incarnation}.{urlsafe_b64encode(digest).decode().rstrip('=')}"

    def require(self, node: str, shown: str) -> None:
        """Check that a call shows the secret of the node's present lease.

        Raises:
            NotFound: it does not; the node has to register again.
        """
        incarnation = self._proven(node, shown)
        if incarnation == _NO_PROOF:
            what = "is not that of a lease here" if shown else "is missing"
            raise NotFound(f"node {node[:80]!r}: the secret of its lease (x-node-lease) {what}: register again")
        member = self._members.get(node)
        if member is not None and member.incarnation not in ("", incarnation):
            raise NotFound(f"node {node!r}: another process has its lease now: register again, or take another name")

    def knows(self, node: str, shown: str) -> bool:
        """Return whether a secret is that of a lease of the node, the present or an earlier one."""
        return self._proven(node, shown) != _NO_PROOF

    def require_free(self, node: str, incarnation: str, shown: str, now: float) -> None:
        """Check that a process may register under this name.

        Raises:
            InvalidInput: the incarnation is malformed.
            NameInUse: another process has the name.
        """
        if not _INCARNATION.fullmatch(incarnation):
            raise InvalidInput("the incarnation of a process is 1 to 64 letters, digits, '_' or '-': draw it at random")
        proven = self._proven(node, shown)
        member = self._members.connected.get(node)
        if member is not None:
            if proven != member.incarnation and not hmac.compare_digest(incarnation, member.incarnation):
                raise NameInUse(
                    f"another process is registered as {node!r}: stop it, or choose another name; "
                    "if it was killed, its lease ends soon"
                )
        elif self._is_reserved(node, now) and proven == _NO_PROOF:
            raise NameInUse(
                f"the name {node!r} is kept for the node that had it before the coordinator restarted, for another "
                f"{self._reserved_until - now:.0f} s"
            )

    def contest(self, node: str, address: str, now: float) -> bool:
        """Note that another process wanted the name of a connected node; return whether to record it."""
        recorded_at, _ = self._contests.get(node, (-math.inf, ""))
        if node not in self._members.connected or now - recorded_at < TOLD_EVERY_SECONDS:
            return False
        for gone in self._contests.keys() - self._members.connected.keys():
            del self._contests[gone]
        self._contests[node] = (now, address or "an unknown address")
        return True

    def take_contest(self, node: str) -> str:
        """Return the address of a process that wanted the node's name, once; empty if there was none."""
        recorded_at, address = self._contests.get(node, (0.0, ""))
        if address:
            self._contests[node] = (recorded_at, "")
        return address

    def _proven(self, node: str, shown: str) -> str:
        """Return the incarnation whose secret is shown; empty if it is the secret of no lease of this node."""
        incarnation = shown.partition(".")[0]
        expected = self.secret(node, incarnation)
        is_genuine = hmac.compare_digest(shown.encode(), expected.encode())
        return incarnation if is_genuine and _INCARNATION.fullmatch(incarnation) else _NO_PROOF

    def _is_reserved(self, node: str, now: float) -> bool:
        member = self._members.get(node)
        if member is None or now >= self._reserved_until:
            return False
        return member.connection is ConnectionState.LOST and not member.incarnation
