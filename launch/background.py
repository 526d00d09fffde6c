"""Blocking calls on threads of their own, awaited with a deadline. A call that hangs never keeps the process alive."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

from funicular.cluster.calls import DeadlineExceeded

Result = TypeVar("Result")
Item = TypeVar("Item")


def in_background(function: Callable[[], Result], name: str) -> Future[Result]:
    """Begin a call on a daemon thread: unlike an executor's, the interpreter does not wait for it when it ends."""
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # handed to whoever waits
            future.set_exception(error)

    threading.Thread(target=work, name=name, daemon=True).start()
    return future


def wait(future: Future[Result], deadline_s: float, what: str) -> Result:
    """The call's result.

    Raises:
        DeadlineExceeded: it takes longer; the call itself may go on.
        Exception: whatever the call raised.
    """
    try:
        return future.result(timeout=deadline_s)
    except TimeoutError as error:
        if future.done():  # the call's own
            raise
        raise DeadlineExceeded(what, deadline_s) from error


async def wait_async(future: Future[Result], deadline_s: float, what: str) -> Result:
    """`wait` for coroutines. Cancelling it leaves the call as it is."""
    waiting = asyncio.wrap_future(future)
    # `future` has the error too. Asked for here, asyncio does not log it as one that nobody asked for.
    waiting.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    done, _ = await asyncio.wait({waiting}, timeout=deadline_s)  # which cancels nothing
    if not done:
        raise DeadlineExceeded(what, deadline_s)
    return future.result()


def within(function: Callable[[], Result], deadline_s: float, what: str) -> Result:
    """Call with a deadline what has none of its own."""
    return wait(in_background(function, what), deadline_s, what)


def each(function: Callable[[Item], Any], items: Iterable[Item], *, threads: int, name: str) -> dict[Item, Exception]:
    """Call a function for all items, several at a time. Returns what went wrong, by item."""
    waiting: queue.SimpleQueue[Item] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    errors: dict[Item, Exception] = {}

    def work() -> None:
        while True:
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                function(item)
            except Exception as error:
                errors[item] = error

    for future in [in_background(work, f"{name} {number}") for number in range(threads)]:
        future.result()  # no deadline here: the caller is a thread that something waits for with one
    return errors
