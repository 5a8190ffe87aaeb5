"""Operations on many links in slices, so that the event loop keeps delivering between them."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from hypergpu.netsim_proxy.relay.paced_link import PacedLink

log = structlog.get_logger()
Operation = Callable[[PacedLink], None]

_SLICE: Final = 50
"""Links per slice; one takes a few milliseconds."""


class Sweep:
    """Operations on links, each link's in the order in which they were asked for.

    The first links are done at once. The others follow in slices, and the event loop runs between them. A link that is
    needed earlier is done by `catch_up`. `settle` is called after each slice.
    """

    def __init__(self, settle: Callable[[], None]) -> None:
        self._settle = settle
        self._pending: OrderedDict[PacedLink, list[Operation]] = OrderedDict()

    @property
    def busy(self) -> bool:
        """True if operations are pending."""
        return bool(self._pending)

    def start(self, links: Iterable[PacedLink], operation: Operation) -> None:
        """Apply `operation` to each of `links`."""
        begun = self.busy
        for paced in links:
            self._pending.setdefault(paced, []).append(operation)
        if not begun:
            self._run_slice()

    def catch_up(self, paced: PacedLink) -> None:
        """Apply the pending operations of one link now."""
        _run(self._pending.pop(paced, []), paced)

    async def done(self) -> None:
        """Wait until every link is done."""
        while self.busy:  # noqa: ASYNC110 - the loop turns anyway until then
            await asyncio.sleep(0)

    def _run_slice(self) -> None:
        for _ in range(min(_SLICE, len(self._pending))):
            paced, operations = self._pending.popitem(last=False)
            _run(operations, paced)
        self._settle()
        if self._pending:
            asyncio.get_running_loop().call_soon(self._run_slice)


def _run(operations: list[Operation], paced: PacedLink) -> None:
    for operation in operations:
        try:
            operation(paced)
        except Exception:  # the other links must get theirs
            log.exception("a link could not be changed", link=paced.name)
