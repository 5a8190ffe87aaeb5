"""Work that nobody awaits, and jobs that are done again and again."""

import asyncio

from hypergpu.common.background import Background
from hypergpu.coordinator.background import Repeated
from tests.patience import patience


async def test_the_failure_of_a_task_or_call_is_told_with_its_name() -> None:
    told: list[tuple[str, str]] = []
    background = Background(lambda what, error: told.append((what, str(error))))

    async def fails() -> None:
        raise ValueError("no")

    async def works() -> None:
        await asyncio.sleep(0)

    background.spawn("a task", fails())
    background.spawn("another", works())
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    background.watch("a call", future)
    future.set_exception(OSError("full"))
    await background.settle()
    await asyncio.sleep(0)
    assert told == [("a call", "full"), ("a task", "no")]


async def test_settle_waits_for_tasks_that_tasks_begin() -> None:
    done: list[int] = []
    background = Background(lambda what, error: None)

    async def count(left: int) -> None:
        await asyncio.sleep(0)
        done.append(left)
        if left:
            background.spawn("next", count(left - 1))

    background.spawn("first", count(3))
    await background.settle()
    assert done == [3, 2, 1, 0]


async def test_a_cancelled_task_is_no_failure() -> None:
    told: list[str] = []
    background = Background(lambda what, error: told.append(what))
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    background.watch("a call", future)
    future.cancel()
    await asyncio.sleep(0)
    assert told == []


async def test_a_repeated_job_survives_its_failures_and_tells_how_it_goes() -> None:
    told: list[str] = []
    enough = asyncio.Event()

    async def step() -> None:
        if len(told) == 1:
            raise KeyError("odd")
        if len(told) == 3:
            enough.set()

    repeated = Repeated(step, 0.0, told.append)
    repeated.start()
    await asyncio.wait_for(enough.wait(), patience(30))
    await repeated.stop()
    assert told[:3] == ["", "KeyError: 'odd'", ""]
    assert repeated._task is not None
    assert repeated._task.done()
