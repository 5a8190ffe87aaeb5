"""Uploads: resumed, superseded, bounded, and never held up by a slow one."""

import asyncio
import os
from pathlib import Path

import numpy as np
import pytest

from hypergpu.common.connections import MAX_CONNECTIONS
from hypergpu.common.errors import StaleWork, StorageError, Unavailable
from hypergpu.common.tensors import Payload, checksum, chunks
from hypergpu.coordinator.spill import spilled_buffer
from hypergpu.coordinator.uploads import LEAST_MEASURED_SECONDS, STALLED_SECONDS, Disk, Upload, Uploads

FLAT = np.arange(1000, dtype=np.float32)
BYTES = FLAT.view(np.uint8)


async def test_a_broken_upload_keeps_what_it_has() -> None:
    uploads = Uploads(FLAT.nbytes, 1 << 20)
    parts = list(chunks(FLAT, chunk_bytes=1000))
    first = object()
    upload = await uploads.open("a", (1, 1), first)
    upload.assembler.add(parts[0])
    uploads.suspend(upload, first)
    held = uploads.progress("a", (1, 1))
    assert held is not None
    assert list(held.missing) == [(1000, 4000)]
    assert uploads.progress("a", (1, 2)) is None
    second = object()
    again = await uploads.open("a", (1, 1), second)
    assert again is upload
    with pytest.raises(StaleWork):
        uploads.require_current(upload, first)
    for part in parts[1:]:
        again.assembler.add(part)
    uploads.detach(again)
    np.testing.assert_array_equal(again.payload, BYTES)


async def test_a_payload_takes_the_beginning_of_its_buffer() -> None:
    uploads = Uploads(FLAT.nbytes, 0)
    small = await uploads.open("a", (1, 1), object(), 1000)
    assert small.payload.nbytes == 1000
    assert small.buffer.nbytes == FLAT.nbytes
    for part in chunks(BYTES[:1000], chunk_bytes=600):
        small.assembler.add(part)
    assert small.assembler.complete
    uploads.close(small)
    assert (await uploads.open("b", (1, 1), object())).payload.nbytes == FLAT.nbytes


async def test_another_attempt_starts_afresh() -> None:
    uploads = Uploads(FLAT.nbytes, 1 << 20)
    upload = await uploads.open("a", (1, 1), object())
    upload.assembler.add(next(iter(chunks(FLAT, chunk_bytes=1000))))
    assert (await uploads.open("a", (1, 2), object())).assembler.next_offset == 0
    assert uploads.progress("a", (1, 1)) is None


async def test_an_upload_of_another_payload_starts_afresh() -> None:
    uploads = Uploads(FLAT.nbytes, 1 << 20)
    first = object()
    upload = await uploads.open("a", (1, 1), first, announced=checksum(BYTES.data))
    upload.assembler.add(next(iter(chunks(FLAT, chunk_bytes=1000))))
    uploads.suspend(upload, first)
    assert uploads.checksum_of("a", (1, 1)) == checksum(BYTES.data)
    assert uploads.checksum_of("a", (1, 2)) is None
    assert await uploads.open("a", (1, 1), object(), announced=checksum(BYTES.data)) is upload
    other = await uploads.open("a", (1, 1), object(), announced=checksum((FLAT + 1).view(np.uint8).data))
    assert other.assembler.next_offset == 0
    for part in chunks(FLAT):
        other.assembler.add(part)
    assert not other.is_as_announced
    for part in chunks(FLAT + 1):
        other.assembler.payload[:] = part.data
    assert other.is_as_announced


async def test_no_more_buffers_than_allowed_and_who_waits_gets_the_next() -> None:
    uploads = Uploads(FLAT.nbytes, 0)  # two are always let in
    await uploads.open("a", (1, 1), object())
    b = await uploads.open("b", (1, 1), object())
    waiting = asyncio.create_task(uploads.open("c", (1, 1), object()))
    await asyncio.sleep(0)
    assert not waiting.done()
    uploads.detach(b)
    uploads.recycle(b)
    c = await asyncio.wait_for(waiting, 1)
    assert c.buffer is b.buffer


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
    assert uploads.progress("a", (1, 1)) is None


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def fill(upload: Upload, share: float = 1.0) -> None:
    parts = list(chunks(FLAT, chunk_bytes=40))
    for part in parts[: round(share * len(parts))]:
        upload.assembler.add(part)


def is_on_disk(buffer: Payload) -> bool:
    return buffer.base is not None


async def test_uploads_that_memory_does_not_hold_go_to_the_disk_and_give_it_back(tmp_path: Path) -> None:
    uploads = Uploads(FLAT.nbytes, 0, Disk(lambda size: spilled_buffer(tmp_path, size), 2 * FLAT.nbytes))
    opened = [await uploads.open(node, (1, 1), object()) for node in "abcd"]
    assert [is_on_disk(upload.buffer) for upload in opened] == [False, False, True, True]
    for upload in opened[2:]:
        fill(upload)
        np.testing.assert_array_equal(upload.payload, BYTES)
    waiting = asyncio.create_task(uploads.open("e", (1, 1), object()))
    await asyncio.sleep(0.05)
    assert not waiting.done(), "two in memory and two on the disk are all"
    uploads.detach(opened[2])
    uploads.recycle(opened[2])
    e = await asyncio.wait_for(waiting, 5)
    assert is_on_disk(e.buffer)
    assert e.assembler.next_offset == 0
    assert os.listdir(tmp_path) == [], "the files have no names"  # noqa: PTH208


@pytest.mark.parametrize(("limit", "expected"), [(FLAT.nbytes - 1, 0), (FLAT.nbytes, 1), (2 * FLAT.nbytes - 1, 1)])
async def test_the_disk_is_taken_up_to_its_bound(tmp_path: Path, limit: int, expected: int) -> None:
    made: list[int] = []

    def make(size: int) -> Payload:
        made.append(size)
        return spilled_buffer(tmp_path, size)

    uploads = Uploads(FLAT.nbytes, 0, Disk(make, limit))
    tasks = [asyncio.create_task(uploads.open(node, (1, 1), object())) for node in "abcd"]
    await asyncio.sleep(0.1)
    assert made == [FLAT.nbytes] * expected
    assert sum(task.done() for task in tasks) == 2 + expected
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_full_disk_is_told_and_uploads_wait_for_memory() -> None:
    told: list[str] = []

    def make(size: int) -> Payload:
        raise StorageError("No space left on device")

    uploads = Uploads(FLAT.nbytes, 0, Disk(make, 1 << 30, told.append))
    a = await uploads.open("a", (1, 1), object())
    await uploads.open("b", (1, 1), object())
    waiting = asyncio.create_task(uploads.open("c", (1, 1), object()))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    assert told == ["No space left on device"]
    uploads.close(a)
    c = await asyncio.wait_for(waiting, 5)
    assert not is_on_disk(c.buffer)


def test_a_disk_without_room_is_told_before_the_buffer_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match=r"cannot keep an upload of 4,000 bytes in .*: No space left on device"):
        spilled_buffer(tmp_path, 4000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("share", "seconds", "left"), [(0.5, 10.0, 10.0), (0.25, 10.0, 30.0), (1.0, 10.0, 0.0)])
async def test_the_time_that_an_upload_still_needs_follows_from_its_speed(
    share: float, seconds: float, left: float
) -> None:
    clock = Clock()
    uploads = Uploads(FLAT.nbytes, 0, clock=clock)
    upload = await uploads.open("a", (1, 1), object())
    fill(upload, share)
    assert upload.seconds_left(seconds) == pytest.approx(left)
    assert upload.seconds_left(LEAST_MEASURED_SECONDS / 2) == 0.0


async def test_an_upload_that_stopped_is_not_expected_to_go_on_until_a_stream_does() -> None:
    clock = Clock()
    uploads = Uploads(FLAT.nbytes, 0, clock=clock)
    upload = await uploads.open("a", (1, 1), object())
    assert upload.seconds_left(LEAST_MEASURED_SECONDS) == np.inf, "not a byte"
    fill(upload, 0.5)
    assert upload.seconds_left(10.0) == pytest.approx(10.0)
    assert upload.seconds_left(10.0 + STALLED_SECONDS) == pytest.approx(10.0 + STALLED_SECONDS)
    assert upload.seconds_left(10.1 + STALLED_SECONDS) == np.inf
    clock.now = 20.0
    await uploads.open("a", (1, 1), object())
    assert upload.seconds_left(20.5) == 0.0


@pytest.mark.parametrize(("deadline", "makes_room"), [(39.9, True), (40.0, False), (None, False)])
async def test_an_upload_that_cannot_arrive_in_time_makes_room_for_another(
    deadline: float | None, makes_room: bool
) -> None:
    clock = Clock()
    uploads = Uploads(FLAT.nbytes, 0, deadline=lambda: deadline, clock=clock)
    slow_stream, quick_stream = object(), object()
    slow = await uploads.open("slow", (1, 1), slow_stream)
    quick = await uploads.open("quick", (1, 1), quick_stream)
    fill(slow, 0.25)  # 30 s more at its speed
    fill(quick, 0.9)
    clock.now = 10.0
    waiting = asyncio.create_task(uploads.open("fast", (1, 1), object()))
    await asyncio.sleep(0.02)
    assert waiting.done() is makes_room
    uploads.require_current(quick, quick_stream)
    if makes_room:
        with pytest.raises(Unavailable, match="slow"):
            uploads.require_current(slow, slow_stream)
        assert uploads.progress("slow", (1, 1)) is None
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_node_that_made_room_takes_none_from_others_in_the_same_round() -> None:
    clock = Clock()
    uploads = Uploads(FLAT.nbytes, 0, deadline=lambda: 12.0, clock=clock)
    for node in "ab":
        await uploads.open(node, (1, 1), object())
    clock.now = 10.0
    await asyncio.wait_for(uploads.open("c", (1, 1), object()), 5)
    first = next(node for node in "ab" if node not in uploads._held)
    back = asyncio.create_task(uploads.open(first, (1, 2), object()))
    await asyncio.sleep(0.02)
    assert not back.done(), "or two slow uploads would take the buffer from each other for ever"
    uploads.begin_round(2)
    await asyncio.wait_for(back, 5)


async def test_a_late_upload_goes_on_when_the_next_round_begins_and_can_be_resumed() -> None:
    uploads = Uploads(FLAT.nbytes, 0)
    stream = object()
    late = await uploads.open("a", (1, 1), stream)
    uploads.suspend(late, stream)
    uploads.begin_round(2, lambda node, number: (node, number) == ("a", 1))
    assert await uploads.open("a", (1, 1), object()) is late
    uploads.begin_round(3, lambda node, number: False)
    assert not uploads._held


async def test_what_is_left_of_an_earlier_round_is_given_up_when_the_next_begins() -> None:
    uploads = Uploads(FLAT.nbytes, 0)
    old, now = object(), object()
    await uploads.open("a", (1, 1), old)
    kept = await uploads.open("b", (2, 1), now)
    uploads.begin_round(2)
    assert list(uploads._held) == ["b"]
    uploads.require_current(kept, now)


async def test_a_stream_that_ends_while_it_waits_gives_its_turn_to_the_next() -> None:
    uploads = Uploads(FLAT.nbytes, 0)
    a = await uploads.open("a", (1, 1), object())
    await uploads.open("b", (1, 1), object())
    first = asyncio.create_task(uploads.open("c", (1, 1), object()))
    await asyncio.sleep(0)
    second = asyncio.create_task(uploads.open("d", (1, 1), object()))
    await asyncio.sleep(0)
    uploads.close(a)
    first.cancel()
    await asyncio.wait_for(second, 5)
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_streams_that_open_together_share_one_upload_and_one_buffer() -> None:
    uploads = Uploads(FLAT.nbytes, 0)
    streams = [object() for _ in range(4)]
    opened = await asyncio.gather(*(uploads.open("a", (1, 1), stream) for stream in streams))
    assert all(upload is opened[0] for upload in opened)
    b = await asyncio.wait_for(uploads.open("b", (1, 1), object()), 1)  # the second of two buffers
    assert b.buffer is not opened[0].buffer
    for stream in streams[:3]:
        uploads.suspend(opened[0], stream)
    uploads.begin_round(1)
    uploads.require_current(opened[0], streams[3])
    uploads.suspend(opened[0], streams[3])
    assert not opened[0].streams
    uploads.begin_round(1)
    assert uploads.progress("a", (1, 1)) is None


async def test_the_streams_of_an_upload_are_bounded_and_the_silent_one_goes() -> None:
    clock = Clock()
    uploads = Uploads(FLAT.nbytes, 0, clock=clock)
    streams = [object() for _ in range(MAX_CONNECTIONS)]
    for stream in streams:
        clock.now += 1.0
        upload = await uploads.open("a", (1, 1), stream)
    uploads.require_current(upload, streams[0])  # it was opened first, and has just sent a chunk
    assert await uploads.open("a", (1, 1), object()) is upload
    assert len(upload.streams) == MAX_CONNECTIONS
    uploads.require_current(upload, streams[0])
    with pytest.raises(StaleWork, match="another upload of a"):
        uploads.require_current(upload, streams[1])
    uploads.suspend(upload, streams[1])
    assert len(upload.streams) == MAX_CONNECTIONS


async def test_an_upload_that_was_given_up_frees_its_buffer_once_and_its_successor_keeps_its_own() -> None:
    uploads = Uploads(FLAT.nbytes, 0)
    first = await uploads.open("a", (1, 1), object())
    stream = object()
    second = await uploads.open("a", (1, 2), stream)
    assert second is not first
    assert second.buffer is first.buffer, "the buffer of the first is used again"
    uploads.close(first)
    uploads.detach(first)
    uploads.require_current(second, stream)
    with pytest.raises(StaleWork, match="another upload of a"):
        uploads.require_current(first, stream)
    uploads.detach(second)
    with pytest.raises(StaleWork):
        uploads.require_current(second, stream)
    b = await uploads.open("b", (1, 1), object())
    c = asyncio.create_task(uploads.open("c", (1, 1), object()))
    await asyncio.sleep(0.01)
    assert not c.done(), "two buffers in all, of which one is detached and one is b's"
    uploads.recycle(second)
    assert (await asyncio.wait_for(c, 5)).buffer is second.buffer
    assert b.buffer is not second.buffer


@pytest.mark.parametrize(("memory", "expected"), [(0, 2), (4000 * 3, 3), (4000 * 4 - 1, 3), (4000 * 1000, 256)])
async def test_as_many_buffers_are_in_memory_as_were_allowed(memory: int, expected: int) -> None:
    uploads = Uploads(FLAT.nbytes, memory)
    for number in range(expected):
        await asyncio.wait_for(uploads.open(f"n{number}", (1, 1), object()), 5)
    late = asyncio.create_task(uploads.open("late", (1, 1), object()))
    await asyncio.sleep(0.01)
    assert not late.done()
    late.cancel()
