"""Run of a coroutine in a thread of its own, for callers whose thread may have a running event loop."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

Value = TypeVar("Value")


def run_apart(main: Callable[[], Coroutine[Any, Any, Value]]) -> Value:
    """Run a coroutine to its end and return its value; Ctrl-C cancels it, and is raised when it has cleaned up.

    A notebook has a running event loop in its main thread, where `asyncio.run` refuses to work.
    """
    found: Future[Value] = Future()
    begun, ended = threading.Event(), threading.Event()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []

    async def noted() -> Value:
        task = asyncio.current_task()
        assert task is not None
        running.append((asyncio.get_running_loop(), task))
        begun.set()
        return await main()

    def body() -> None:
        try:
            found.set_result(asyncio.run(noted()))
        except BaseException as error:  # raised again in the caller's thread
            found.set_exception(error)
        finally:
            ended.set()

    try:
        threading.Thread(target=body, name="hypergpu-run").start()  # Ctrl-C may come in the middle of it
        return found.result()
    except KeyboardInterrupt:
        begun.wait()
        loop, task = running[0]
        with suppress(RuntimeError):  # the loop is closed: the coroutine has just ended
            loop.call_soon_threadsafe(task.cancel)
        raise
    finally:
        ended.wait()
