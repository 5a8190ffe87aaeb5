"""Who is calling: the node that a call names, and the address that it comes from."""

from hypergpu.common.errors import InvalidInput
from hypergpu.common.grpc_server import Context
from hypergpu.common.rpc import NODE_ID


def caller(context: Context) -> str:
    """Return the node that the call's metadata names; empty if it names none."""
    for key, value in context.invocation_metadata() or ():
        if key == NODE_ID:
            return value if isinstance(value, str) else value.decode("ascii", "replace")
    return ""


def require_caller(context: Context, node: str) -> None:
    """Check that the message is about the node that calls.

    Raises:
        InvalidInput: the metadata names another node.
    """
    named = caller(context)
    if named and named != node:
        raise InvalidInput(f"node {named[:80]!r} ({NODE_ID}) calls on behalf of node {node[:80]!r}")


def peer_host(context: Context) -> str:
    """Return the address that the call comes from, without its port: `ipv4:10.0.0.7:4711` -> `10.0.0.7`."""
    kind, _, address = context.peer().partition(":")
    host = address.rpartition(":")[0] if kind in ("ipv4", "ipv6") else ""
    return host.replace("%5B", "").replace("%5D", "").strip("[]")
