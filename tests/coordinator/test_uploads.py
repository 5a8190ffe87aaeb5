"""Uploads: resumed, superseded, bounded."""

import asyncio

import numpy as np
import pytest

from common.errors import StaleWork
from common.tensors import chunks
from coordinator.uploads import Uploads

FLAT = np.arange(1000, dtype=np.float32)


async def test_a_broken_upload_keeps_what_it_has() -> None:
    uploads = Uploads(FLAT.nbytes, 1 << 20)
    parts = list(chunks(FLAT, chunk_bytes=1000))
    first = object()
    upload = await uploads.open("a", (1, 1), first)
    upload.assembler.add(parts[0])
    uploads.suspend(upload, first)
    assert uploads.progress("a", (1, 1)) == 1000
    assert uploads.progress("a", (1, 2)) == 0
    second = object()
    again = await uploads.open("a", (1, 1), second)
    assert again is upload
    with pytest.raises(StaleWork):
        uploads.require_current(upload, first)
    for part in parts[1:]:
        again.assembler.add(part)
    np.testing.assert_array_equal(uploads.detach(again), FLAT)


async def test_another_attempt_starts_afresh() -> None:
    uploads = Uploads(FLAT.nbytes, 1 << 20)
    upload = await uploads.open("a", (1, 1), object())
    upload.assembler.add(next(iter(chunks(FLAT, chunk_bytes=1000))))
    assert (await uploads.open("a", (1, 2), object())).assembler.next_offset == 0
    assert uploads.progress("a", (1, 1)) == 0


async def test_no_more_buffers_than_allowed_and_who_waits_gets_the_next() -> None:
    uploads = Uploads(FLAT.nbytes, 0)  # two are always let in
    await uploads.open("a", (1, 1), object())
    b = await uploads.open("b", (1, 1), object())
    waiting = asyncio.create_task(uploads.open("c", (1, 1), object()))
    await asyncio.sleep(0)
    assert not waiting.done()
    buffer = uploads.detach(b)
    uploads.recycle(buffer)
    c = await asyncio.wait_for(waiting, 1)
    assert c.assembler.flat is buffer


async def test_an_idle_upload_makes_room_for_a_busy_one() -> None:
    uploads = Uploads(FLAT.nbytes, 0)
    stream = object()
    idle = await uploads.open("a", (1, 1), stream)
    await uploads.open("b", (1, 1), object())
    waiting = asyncio.create_task(uploads.open("c", (1, 1), object()))
    await asyncio.sleep(0)
    assert not waiting.done()
    uploads.suspend(idle, stream)
    await asyncio.wait_for(waiting, 1)
    assert uploads.progress("a", (1, 1)) == 0
