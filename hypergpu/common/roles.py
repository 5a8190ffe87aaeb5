"""Roles of callers: which token may call which method. A method without a row here is closed to everybody."""

import hmac
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final

from hypergpu.common.errors import NotAuthenticated, PermissionDenied
from hypergpu.common.grpc_server import Admit, Context
from hypergpu.common.rpc import AUTHORIZATION
from hypergpu.common.token import JOIN, OPERATOR, VIEWER, TokenKind, TokenSource


class Role(StrEnum):
    """Role of a caller, by the token that it shows."""

    NODE = "node"
    VIEWER = "viewer"
    OPERATOR = "operator"


KINDS: Final[Mapping[Role, TokenKind]] = {Role.NODE: JOIN, Role.VIEWER: VIEWER, Role.OPERATOR: OPERATOR}
"""Token of each role."""
_NODES, _VIEWERS, _OPERATORS = (Role.NODE,), (Role.VIEWER, Role.OPERATOR), (Role.OPERATOR,)
_EVERYBODY = (Role.NODE, Role.VIEWER, Role.OPERATOR)
_TABLE: Final[Mapping[str, Mapping[str, tuple[Role, ...]]]] = {
    "hypergpu.coordinator.v1.Training": {
        "Register": _NODES,
        "Heartbeat": _NODES,
        "PullWork": _NODES,
        "PullParameters": _NODES,
        "PushUpdate": _NODES,
        "GetUploadProgress": _NODES,
        "ReturnWork": _NODES,
        "Leave": _NODES,
    },
    "hypergpu.coordinator.v1.Control": {
        "GetStatus": _EVERYBODY,
        "ListNodes": _VIEWERS,
        "WatchEvents": _VIEWERS,
        "Pause": _OPERATORS,
        "Resume": _OPERATORS,
        "Stop": _OPERATORS,
        "Restart": _OPERATORS,
        "SetNodeRule": _OPERATORS,
        "SetPolicy": _OPERATORS,
    },
    "hypergpu.netsim.v1.Netsim": {
        "ListLinks": _VIEWERS,
        "ListScheduled": _VIEWERS,
        "Watch": _VIEWERS,
        "SetProfile": _OPERATORS,
        "SetUpstreamBandwidth": _OPERATORS,
        "Inject": _OPERATORS,
        "Schedule": _OPERATORS,
        "Clear": _OPERATORS,
        "AnnounceRound": _OPERATORS,
        "LoadScenario": _OPERATORS,
        "Reload": _OPERATORS,
    },
}
ROLES: Final[Mapping[str, tuple[Role, ...]]] = {
    f"/{service}/{method}": roles for service, methods in _TABLE.items() for method, roles in methods.items()
}
"""Roles that may call a method, by its path; the first is the least."""


def role_check(tokens: Mapping[Role, TokenSource]) -> Admit:
    """Return the check that a call shows the token of a role that may make it.

    A method is open to everybody if no role that may call it has a token.
    """

    def admit(method: str, context: Context) -> None:
        require_role(tokens, method, _shown(context))

    return admit


def require_role(tokens: Mapping[Role, TokenSource], method: str, shown: bytes) -> None:
    """Check that `shown`, as in `Bearer TOKEN`, is the token of a role that may call a method.

    Raises:
        NotAuthenticated: It is none.
        PermissionDenied: It is that of another role.
    """
    allowed = ROLES.get(method, ())
    if allowed and not any(tokens.get(role) for role in allowed):
        return
    held = _held(tokens, shown)
    if held.isdisjoint(allowed):
        raise _refusal(method, allowed, held)


def _held(tokens: Mapping[Role, TokenSource], shown: bytes) -> set[Role]:
    """Return the roles whose token is shown; every token is compared, in constant time."""
    return {
        role
        for role, source in tokens.items()
        if sum(hmac.compare_digest(f"Bearer {token}".encode(), shown) for token in source.all)
    }


def _shown(context: Context) -> bytes:
    given = dict(context.invocation_metadata() or ()).get(AUTHORIZATION, "")
    return given.encode() if isinstance(given, str) else given


def _refusal(method: str, allowed: Iterable[Role], held: Iterable[Role]) -> NotAuthenticated:
    kinds = [KINDS[role] for role in allowed]
    if not kinds:
        return PermissionDenied(f"nobody may call {method}: it has no role")
    needed = " or ".join(f"the {kind.name}" for kind in kinds)
    name = method.rpartition("/")[2]
    for role in held:
        return PermissionDenied(f"{name} needs {needed}; the {KINDS[role].name} does not permit it")
    if kinds == [JOIN]:
        return NotAuthenticated("the join token is missing or wrong: give the coordinator's --token")
    return NotAuthenticated(f"the token is missing or wrong: {name} needs {needed}")
