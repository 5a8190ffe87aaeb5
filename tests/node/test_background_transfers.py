"""Transfers that go on while a node trains: their end, their failure, and what is left of them."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from hypergpu.common.errors import StaleWork, Unavailable
from hypergpu.node.background_transfers import BackgroundTransfers
from hypergpu.protos import coordinator_pb2 as pb

REPLY = pb.PushUpdateReply(outcome=pb.PushUpdateReply.RECEIVED)


async def ends(result: Any, after: "asyncio.Event | None" = None) -> Any:
    if after is not None:
        await after.wait()
    if isinstance(result, Exception):
        raise result
    return result


def task(of: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    return asyncio.create_task(of)


async def test_an_upload_that_ends_is_whole_and_one_that_breaks_is_not() -> None:
    transfers, go = BackgroundTransfers(), asyncio.Event()
    transfers.upload(ends(REPLY, go))
    assert transfers.has_upload
    assert transfers.is_active
    go.set()
    assert await transfers.wait_for_upload()
    assert not transfers.has_upload
    assert not transfers.is_active
    transfers.upload(ends(Unavailable("broken")))
    assert not await transfers.wait_for_upload()
    assert not transfers.has_upload


async def test_an_error_of_ours_in_an_upload_is_not_hidden() -> None:
    transfers = BackgroundTransfers()
    transfers.upload(ends(KeyError("a fault")))
    with pytest.raises(KeyError):
        await transfers.wait_for_upload()


async def test_parameters_that_do_not_arrive_are_an_error_when_they_are_needed() -> None:
    transfers = BackgroundTransfers()
    await transfers.wait_for_download()
    transfers.download(task(ends(None)))
    await transfers.wait_for_download()
    transfers.download(task(ends(StaleWork("the round is over"))))
    with pytest.raises(StaleWork):
        await transfers.wait_for_download()
    await transfers.wait_for_download()


async def test_what_is_left_is_cancelled_also_after_the_waiting_was() -> None:
    transfers, never = BackgroundTransfers(), asyncio.Event()
    download = task(ends(None, never))
    transfers.download(download)
    transfers.upload(ends(REPLY, never))
    waiting = task(transfers.wait_for_download())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert transfers.is_active
    await transfers.cancel()
    assert download.cancelled()
    assert not transfers.is_active
    assert not transfers.has_upload
