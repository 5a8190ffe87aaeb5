"""Reading that stops for as long as anything asks for it."""

import asyncio


class HeldReader:
    """One end of a connection whose reading any number of reasons may hold."""

    def __init__(self) -> None:
        self.source: asyncio.Transport | None = None
        self._holds: set[object] = set()

    def hold(self, reason: object) -> None:
        """Stop reading until every reason is released."""
        source = self._open_source()
        if source is not None and not self._holds:
            source.pause_reading()
        self._holds.add(reason)

    def release(self, reason: object) -> None:
        """Read on, unless there are other reasons not to."""
        if reason in self._holds:
            self._holds.remove(reason)
            source = self._open_source()
            if source is not None and not self._holds:
                source.resume_reading()

    def _open_source(self) -> asyncio.Transport | None:
        return self.source if self.source is not None and not self.source.is_closing() else None
