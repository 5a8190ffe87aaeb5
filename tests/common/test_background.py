"""Background tasks and periodic ones."""

import asyncio

from hypergpu.common.background import Background, PeriodicTask
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


async def test_a_periodic_task_survives_its_failures_and_tells_how_it_goes() -> None:
    told: list[str] = []
    enough = asyncio.Event()

    async def step() -> None:
        if len(told) == 1:
            raise KeyError("odd")
        if len(told) == 3:
            enough.set()

    periodic = PeriodicTask(step, 0.0, told.append)
    periodic.start()
    assert periodic.is_running
    await asyncio.wait_for(enough.wait(), patience(30))
    await periodic.stop()
    assert not periodic.is_running
    ended = list(told)
    assert ended[:3] == ["", "KeyError: 'odd'", ""]
    for _ in range(5):
        await asyncio.sleep(0)
    assert told == ended


async def test_a_periodic_task_that_runs_is_not_started_twice() -> None:
    runs: list[int] = []
    periodic = PeriodicTask(lambda: _append(runs), 3600.0)
    periodic.start()
    periodic.start()
    for _ in range(5):
        await asyncio.sleep(0)
    assert runs == [0]
    await periodic.stop()


async def test_a_periodic_task_waits_before_its_first_run_if_told_to() -> None:
    runs: list[int] = []
    periodic = PeriodicTask(lambda: _append(runs), 3600.0)
    periodic.start(delay_seconds=3600.0)
    for _ in range(5):
        await asyncio.sleep(0)
    assert runs == []
    await periodic.stop()
    await periodic.stop()  # a second time does nothing
    periodic.start()
    for _ in range(5):
        await asyncio.sleep(0)
    assert runs == [0]
    await periodic.stop()


async def _append(runs: list[int]) -> None:
    runs.append(len(runs))
