"""Routes of the page: its files, open to everybody, and the records of the run, for those who may watch it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from hypergpu.common.errors import HyperGPUError, NotAuthenticated, PermissionDenied, ResourceExhausted, Unavailable
from hypergpu.common.http import Answer, Chunks, Request, Routes, Stream
from hypergpu.common.roles import Role, require_role
from hypergpu.common.token import TokenSource
from hypergpu.coordinator.page.feed import About, Feed
from hypergpu.coordinator.page.static_files import static_routes

CONTROL: Final = "/hypergpu.coordinator.v1.Control/"
"""Beginning of the methods of gRPC whose roles hold here too."""
WATCH: Final = f"{CONTROL}WatchEvents"
"""Method whose roles may read the records."""
_NO_STORE: Final = {"Cache-Control": "no-store"}


OnRefused = Callable[[HyperGPUError], None]


def page_routes(
    directory: Path,
    tokens: Mapping[Role, TokenSource],
    about: About,
    on_refused: OnRefused = lambda _: None,
    *,
    beside: Path | None = None,
) -> Routes:
    """Return the routes of the page of a run.

    Args:
        directory: the run.
        tokens: tokens of each role, as for gRPC; the page shows them as `Authorization: Bearer TOKEN`.
        about: what a viewer is told first of the run.
        on_refused: told of refused requests.
        beside: another run, whose rounds are drawn beside those of this one.
    """

    def stream(feed: Feed) -> Stream:
        def events(request: Request) -> Answer | Chunks:
            try:
                require_role(tokens, WATCH, shown_token(request))
                return feed.open(request.address, request.headers.get("last-event-id", ""))
            except HyperGPUError as error:
                on_refused(error)
                return refusal(error)

        return Stream(events)

    if beside is None:
        return {**static_routes(), "/events": stream(Feed(directory, about))}
    name = beside.resolve().name
    told = {"/events": Feed(directory, lambda: {**about(), "beside": name}), "/beside": Feed(beside, dict)}
    return {**static_routes(), **{path: stream(feed) for path, feed in told.items()}}


def shown_token(request: Request) -> bytes:
    """Return what a request shows, as in `Bearer TOKEN`."""
    return request.headers.get("authorization", "").encode("latin-1")


def refusal(error: HyperGPUError) -> Answer:
    """Return the answer that refuses a request."""
    status = 400
    if isinstance(error, NotAuthenticated):
        status = 403 if isinstance(error, PermissionDenied) else 401
    elif isinstance(error, ResourceExhausted | Unavailable):
        status = 503
    return Answer(f"{error}\n".encode(), status=status, headers=_NO_STORE)


def page_address(address: str, token: str = "") -> str:
    """Return the address of the page of a server; browsers keep the fragment, with the token, to themselves."""
    return f"http://{address}/" + (f"#token={token}" if token else "")
