"""Steering from the page: some methods of the control service as POST, for who shows the operator's token."""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from google.protobuf import json_format

from hypergpu.common.call_budgets import CallBudgets
from hypergpu.common.errors import HyperGPUError, InvalidInput, PermissionDenied, Unavailable
from hypergpu.common.http import Action, Answer, Request, Routes
from hypergpu.common.roles import Role, require_role
from hypergpu.common.token import TokenSource
from hypergpu.coordinator.control import ControlService
from hypergpu.coordinator.page.routes import CONTROL, OnRefused, refusal, shown_token
from hypergpu.protos import coordinator_pb2 as pb

_REQUESTS: Final[Mapping[str, Callable[[], Any]]] = {
    "Pause": pb.PauseRequest,
    "Resume": pb.ResumeRequest,
    "SetNodeRule": pb.SetNodeRuleRequest,
    "SetPolicy": pb.SetPolicyRequest,
}
"""Methods of the control service that the page calls, and their messages, which it sends as JSON."""
_PATIENCE_SECONDS: Final = 10.0


class Steering:
    """Calls of the control service over HTTP, with the roles and budgets of gRPC.

    Without an operator token nobody may steer: a site in the same browser could, where no token is needed.

    Args:
        control: the service.
        tokens: tokens of each role.
        budgets: budgets of callers, shared with gRPC.
        on_refused: told of refused calls.
    """

    def __init__(
        self,
        control: ControlService,
        tokens: Mapping[Role, TokenSource],
        budgets: CallBudgets,
        on_refused: OnRefused = lambda _: None,
    ) -> None:
        self._control, self._tokens, self._budgets, self._on_refused = control, tokens, budgets, on_refused
        self._loop = asyncio.get_running_loop()

    def routes(self) -> Routes:
        """Return a route for each method."""
        return {f"/control/{method}": Action(partial(self._act, method)) for method in _REQUESTS}

    def _act(self, method: str, request: Request) -> Answer:
        """Answer a request, on a thread of the HTTP server."""
        try:
            if not self._tokens.get(Role.OPERATOR):
                raise PermissionDenied("the page steers only where the coordinator has an operator token")
            require_role(self._tokens, f"{CONTROL}{method}", shown_token(request))
            message = _parsed(method, request.body)
            asked = asyncio.run_coroutine_threadsafe(self._call(method, message, request.address), self._loop)
            asked.result(_PATIENCE_SECONDS)
        except TimeoutError:
            return refusal(Unavailable(f"the coordinator has not answered for {_PATIENCE_SECONDS:g} s"))
        except HyperGPUError as error:
            self._on_refused(error)
            return refusal(error)
        return Answer(b"done\n")

    async def _call(self, method: str, message: Any, address: str) -> None:
        """Call a method, on the loop of the coordinator."""
        self._budgets.user(address, controls=True)
        await getattr(self._control, method)(message, None)


def _parsed(method: str, body: bytes) -> Any:
    try:
        return json_format.Parse(body or b"{}", _REQUESTS[method]())
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the body is no {method}Request in JSON: {str(error)[:200]}") from error
