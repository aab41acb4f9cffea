"""The I/O thread of a pool: an asyncio loop that owns all I/O and all mutable state."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["IOThread"]

_T = TypeVar("_T")


class IOThread:
    """An event loop in a daemon thread.

    Parameters
    ----------
    name
        Name of the thread.

    Attributes
    ----------
    on_error
        Called, in the loop, with each exception from a callback or from a task that nobody awaits, after it was logged.
        Failures of a single node's session are reported to that session instead; see guard.py.
    """

    def __init__(self, name: str) -> None:
        # Not through the policy, which is the user's: other loops may differ in transports and exceptions.
        self.loop: asyncio.AbstractEventLoop = asyncio.SelectorEventLoop()
        self.loop.set_exception_handler(self._unexpected)
        self.on_error: Callable[[Exception], object] = lambda _: None
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def _main(self) -> None:
        try:
            self.loop.run_forever()
        finally:
            self.loop.run_until_complete(_cancel_all())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            with contextlib.suppress(RuntimeError):  # it needs a thread, but the interpreter is exiting
                self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        loop.default_exception_handler(context)
        error = context.get("exception")
        if isinstance(error, Exception) and "transport" not in context:  # asyncio itself closes the transport
            self.on_error(error)

    @property
    def is_here(self) -> bool:
        """Whether the caller is running in this thread."""
        return threading.current_thread() is self._thread

    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Schedule a function call in the loop; from any thread."""
        self.loop.call_soon_threadsafe(function, *args)

    def start(self, coroutine: Coroutine[Any, Any, _T]) -> concurrent.futures.Future[_T]:
        """Run a coroutine in the loop; from any thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def stop(self, timeout: float = 5.0) -> None:
        """Stop the loop and its thread, and cancel whatever is still running in it. May be repeated."""
        if self._thread.is_alive() and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)
        if not self.is_here:
            self._thread.join(timeout)


async def _cancel_all() -> None:
    """Cancel all other tasks of the running loop."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
