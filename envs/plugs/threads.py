"""Blocking functions beside an event loop, on daemon threads: one that hangs delays neither others nor the exit."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


async def in_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The result of ``function`` in a thread of its own. A cancelled call is not waited for."""
    return await _started(function, args, kwargs, lambda run: threading.Thread(target=run, daemon=True).start())


def outside(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """The result of ``coroutine`` on an event loop of its own, whether or not the caller is in one."""
    ended: list[tuple[BaseException | None, Any]] = []

    def run() -> None:
        try:
            ended.append((None, asyncio.run(coroutine)))
        except BaseException as error:
            ended.append((error, None))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    error, value = ended[0]
    if error is not None:
        raise error
    return value


class OwnThread:
    """A thread that runs calls one after another: for objects that only one thread may use. It starts when needed."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._started = False

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The result of ``function``, after all earlier calls."""
        if not self._started:
            self._started = True
            threading.Thread(target=self._run, daemon=True).start()
        return await _started(function, args, kwargs, self._calls.put)

    def end(self) -> None:
        """End the thread after the calls that wait."""
        self._calls.put(None)

    def _run(self) -> None:
        while call := self._calls.get():
            call()


async def _started(function: Callable[..., Any], args: Any, kwargs: Any, start: Callable[[Any], Any]) -> Any:
    loop, context = asyncio.get_running_loop(), contextvars.copy_context()
    future: asyncio.Future[Any] = loop.create_future()

    def tell(error: BaseException | None, value: Any) -> None:
        if not future.done():  # cancelled: its deadline passed
            future.set_exception(error) if error else future.set_result(value)

    def run() -> None:
        error, value = None, None
        try:
            value = context.run(function, *args, **kwargs)
        except StopIteration as stopped:  # a future takes none
            error = RuntimeError(f"StopIteration: {stopped}")
        except BaseException as raised:
            error = raised if isinstance(raised, Exception) else RuntimeError(repr(raised))
        if not loop.is_closed():
            loop.call_soon_threadsafe(tell, error, value)

    start(run)
    return await future
