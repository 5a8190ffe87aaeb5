"""Steering from the page: some methods of the control service as POST, for who shows the operator's token."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

from google.protobuf import json_format

from hypergpu.common import strict_json
from hypergpu.common.call_budgets import CallBudgets
from hypergpu.common.errors import HyperGPUError, InvalidInput, PermissionDenied, Unavailable
from hypergpu.common.http import Action, Answer, Request, Routes
from hypergpu.common.roles import Role, require_role
from hypergpu.common.token import TokenSource
from hypergpu.coordinator.control import ControlService
from hypergpu.coordinator.page.routes import CONTROL, OnRefused, refusal, shown_token
from hypergpu.coordinator.what_if import WhatIfs
from hypergpu.protos import coordinator_pb2 as pb

_REQUESTS: Final[Mapping[str, Callable[[], Any]]] = {
    "Pause": pb.PauseRequest,
    "Resume": pb.ResumeRequest,
    "SetNodeRule": pb.SetNodeRuleRequest,
    "SetPolicy": pb.SetPolicyRequest,
}
"""Methods of the control service that the page calls, and their messages, which it sends as JSON."""
_WHAT_IF: Final = "WhatIf"
"""Call beside those of the control service: it changes nothing, and costs CPU. `SetPolicy` has its roles."""
_PATIENCE_SECONDS: Final = 10.0
_Call = Callable[[], Awaitable[object]]


class Steering:
    """Calls of the control service over HTTP, with the roles and budgets of gRPC.

    Without an operator token nobody may steer: a site in the same browser could, where no token is needed.

    Args:
        control: the service.
        what_ifs: what-ifs of the run.
        tokens: tokens of each role.
        budgets: budgets of callers, shared with gRPC.
        on_refused: told of refused calls.
    """

    def __init__(
        self,
        control: ControlService,
        what_ifs: WhatIfs,
        tokens: Mapping[Role, TokenSource],
        budgets: CallBudgets,
        on_refused: OnRefused = lambda _: None,
    ) -> None:
        self._control, self._what_ifs = control, what_ifs
        self._tokens, self._budgets, self._on_refused = tokens, budgets, on_refused
        self._loop = asyncio.get_running_loop()

    def routes(self) -> Routes:
        """Return a route for each method."""
        control = {method: self._action(method, partial(self._control_call, method), b"done\n") for method in _REQUESTS}
        what_if = self._action("SetPolicy", self._what_if_call, b"begun; the answer takes some seconds\n")
        return {f"/control/{name}": action for name, action in (control | {_WHAT_IF: what_if}).items()}

    def _action(self, method: str, prepare: Callable[[Request], _Call], done: bytes) -> Action:
        """Return what answers requests of who may call `method`; `prepare` parses one and returns the call."""
        return Action(partial(self._act, method, prepare, done))

    def _act(self, method: str, prepare: Callable[[Request], _Call], done: bytes, request: Request) -> Answer:
        """Answer a request, on a thread of the HTTP server."""
        try:
            if not self._tokens.get(Role.OPERATOR):
                raise PermissionDenied("the page steers only where the coordinator has an operator token")
            require_role(self._tokens, f"{CONTROL}{method}", shown_token(request))
            asked = asyncio.run_coroutine_threadsafe(self._called(prepare(request), request.address), self._loop)
            asked.result(_PATIENCE_SECONDS)
        except TimeoutError:
            return refusal(Unavailable(f"the coordinator has not answered for {_PATIENCE_SECONDS:g} s"))
        except HyperGPUError as error:
            self._on_refused(error)
            return refusal(error)
        return Answer(done)

    async def _called(self, call: _Call, address: str) -> None:
        """Make a call within the budget of its caller, on the loop of the coordinator."""
        self._budgets.user(address, controls=True)
        await call()

    def _control_call(self, method: str, request: Request) -> _Call:
        """Return the call of a method of the control service."""
        return partial(getattr(self._control, method), _parsed(method, request.body), None)

    def _what_if_call(self, request: Request) -> _Call:
        """Return the call that begins a what-if."""
        try:
            asked = strict_json.parse_object(request.body or b"{}")
        except ValueError as error:
            raise InvalidInput(f"the body is no object in JSON: {str(error)[:200]}") from error

        async def begin() -> None:
            self._what_ifs.begin(asked.get("policy"), asked.get("round", 0))

        return begin


def _parsed(method: str, body: bytes) -> Any:
    try:
        return json_format.Parse(body or b"{}", _REQUESTS[method]())
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the body is no {method}Request in JSON: {str(error)[:200]}") from error
