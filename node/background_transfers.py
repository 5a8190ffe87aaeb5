"""Transfers of a work unit that go on while the node trains."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from hypergpu.common.errors import HyperGPUError
from hypergpu.protos import coordinator_pb2 as pb

log = structlog.get_logger()


class BackgroundTransfers:
    """Download of the parameters and upload of the update of one work unit, at most one of each."""

    def __init__(self) -> None:
        self._download: asyncio.Task[None] | None = None
        self._upload: asyncio.Task[pb.PushUpdateReply] | None = None

    @property
    def is_active(self) -> bool:
        """True while bytes travel."""
        return any(task is not None and not task.done() for task in (self._download, self._upload))

    @property
    def has_upload(self) -> bool:
        """True from the beginning of an upload until its end was waited for."""
        return self._upload is not None

    def download(self, task: asyncio.Task[None]) -> None:
        """Take a download that has begun."""
        self._download = task

    def upload(self, sending: Coroutine[Any, Any, pb.PushUpdateReply]) -> None:
        """Begin an upload."""
        self._upload = asyncio.create_task(sending)

    async def wait_for_download(self) -> None:
        """Wait until the parameters have arrived.

        Raises:
            HyperGPUError: They have not.
        """
        if self._download is not None:
            await asyncio.wait((self._download,))
            download, self._download = self._download, None
            download.result()

    async def wait_for_upload(self) -> bool:
        """Wait until the upload has ended; return False if it broke."""
        if self._upload is not None:
            await asyncio.wait((self._upload,))
        upload, self._upload = self._upload, None
        error = upload.exception() if upload is not None else None
        if error is not None and not isinstance(error, HyperGPUError):
            raise error
        if error is not None:
            log.info("an upload beside the training broke; the rest is sent now", detail=str(error))
        return error is None

    async def cancel(self) -> None:
        """End what is left of the transfers."""
        tasks = [task for task in (self._download, self._upload) if task is not None]
        self._download = self._upload = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
