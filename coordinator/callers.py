"""Identity of a caller: the node that a call names, the secret that proves it, and the address it comes from."""

from collections.abc import Mapping
from typing import Final

from hypergpu.common.errors import PermissionDenied
from hypergpu.common.grpc_server import Context, peer_host
from hypergpu.common.roles import ROLES, Role, role_check
from hypergpu.common.rpc import LEASE, NODE_ID
from hypergpu.common.token import TokenSource
from hypergpu.coordinator.budgets import NodeBudgets
from hypergpu.coordinator.core.leases import Leases
from hypergpu.protos import coordinator_pb2

TRAINING: Final = coordinator_pb2.DESCRIPTOR.services_by_name["Training"].full_name
REGISTER: Final = f"/{TRAINING}/Register"
"""The method of nodes that have no lease yet."""
HEARTBEAT: Final = f"/{TRAINING}/Heartbeat"
_NAMES: Final = ("x509_common_name", "x509_subject_alternative_name")


def caller(context: Context) -> str:
    """Return the node named in the call's metadata, or an empty string."""
    return _metadata(context, NODE_ID)


def shown_lease(context: Context) -> str:
    """Return the secret of a lease that the call shows, or an empty string."""
    return _metadata(context, LEASE)


class Admission:
    """Check of all calls: the role by its token, for nodes the name and the secret of the lease, and the budget.

    Args:
        tokens: tokens of each role.
        leases: leases of the nodes' names.
        budgets: budgets of callers.
        certified: whether a node's name must also be one of its certificate's.
    """

    def __init__(
        self, tokens: Mapping[Role, TokenSource], leases: Leases, budgets: NodeBudgets, *, certified: bool = False
    ) -> None:
        self._require_role, self._leases, self._budgets = role_check(tokens), leases, budgets
        self._certified = certified

    def __call__(self, method: str, context: Context) -> None:
        """Check the caller of a method.

        Raises:
            NotAuthenticated: The token is missing or wrong, or does not permit the call.
            NotFound: The secret of the node's lease is missing or wrong.
            ResourceExhausted: The caller's budget is spent.
        """
        self._require_role(method, context)
        if not method.startswith(f"/{TRAINING}/"):
            self._budgets.user(peer_host(context), controls=ROLES.get(method) == (Role.OPERATOR,))
            return
        node, lease = caller(context), shown_lease(context)
        if self._certified:
            require_name(context, node)
        if method != REGISTER:
            self._leases.require(node, lease)
        elif not self._leases.knows(node, lease):
            self._budgets.newcomer(peer_host(context))
            return
        self._budgets.node(node, is_heartbeat=method == HEARTBEAT)


def require_name(context: Context, node: str) -> None:
    """Check that the certificate of the caller is that of a node.

    Raises:
        PermissionDenied: It has other names.
    """
    found = context.auth_context()
    names = {name.decode("utf-8", "replace") for key in _NAMES for name in found.get(key, ())}
    if node not in names:
        shown = ", ".join(sorted(names))[:200] or "nobody"
        raise PermissionDenied(
            f"the certificate is for {shown}, and the call for node {node[:80]!r}: start the node with --node-id and "
            "the certificate of that name"
        )


def require_caller(context: Context, node: str) -> None:
    """Check that a message refers to the node that sent it.

    Raises:
        PermissionDenied: The metadata names another node.
    """
    named = caller(context)
    if named and named != node:
        raise PermissionDenied(f"node {named[:80]!r} ({NODE_ID}) calls on behalf of node {node[:80]!r}")


def _metadata(context: Context, wanted: str) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == wanted:
            return value if isinstance(value, str) else value.decode("ascii", "replace")
    return ""
