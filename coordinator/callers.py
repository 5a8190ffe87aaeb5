"""Identity of a caller: the node that a call names, and the address it comes from."""

from hypergpu.common.errors import InvalidInput
from hypergpu.common.grpc_server import Context
from hypergpu.common.rpc import NODE_ID


def caller(context: Context) -> str:
    """Return the node named in the call's metadata, or an empty string."""
    for key, value in context.invocation_metadata() or ():
        if key == NODE_ID:
            return value if isinstance(value, str) else value.decode("ascii", "replace")
    return ""


def require_caller(context: Context, node: str) -> None:
    """Check that a message refers to the node that sent it.

    Raises:
        InvalidInput: The metadata names another node.
    """
    named = caller(context)
    if named and named != node:
        raise InvalidInput(f"node {named[:80]!r} ({NODE_ID}) calls on behalf of node {node[:80]!r}")


def peer_host(context: Context) -> str:
    """Return the caller's address without the port: `ipv4:10.0.0.7:4711` -> `10.0.0.7`."""
    kind, _, address = context.peer().partition(":")
    host = address.rpartition(":")[0] if kind in ("ipv4", "ipv6") else ""
    return host.replace("%5B", "").replace("%5D", "").strip("[]")
