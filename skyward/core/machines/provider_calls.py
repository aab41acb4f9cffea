"""Calls of providers, each in a thread. Only errors of our tree come out, and only results of the promised types."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from skyward.core.errors import CloudError, SkywardError

__all__ = ["ProviderCalls", "checked_list"]

_T = TypeVar("_T")
_log = logging.getLogger("skyward.provision")
_THREADS = 16


class ProviderCalls:
    """The threads in which one pool calls its providers. Used from the event loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, "skyward-provider")

    async def ask(self, name: str, function: Callable[..., _T], *args: Any) -> _T:
        """Call a provider's method.

        Parameters
        ----------
        name
            The provider's, for errors.
        function, args
            What to call.

        Raises
        ------
        SkywardError
            Whatever went wrong. Errors that the provider has not mapped are `CloudError`, since what it did is unknown.
        """
        return await self.run(_mapped, name, function, *args)

    async def run(self, function: Callable[..., _T], *args: Any) -> _T:
        """Call a function of our own in one of the threads."""
        try:
            work = asyncio.get_running_loop().run_in_executor(self._threads, functools.partial(function, *args))
        except RuntimeError:  # the interpreter is ending, and no thread can be started any more
            return function(*args)
        return await work

    def close(self) -> None:
        """Start no further call; those that run are not waited for."""
        self._threads.shutdown(wait=False)


def checked_list(kind: type[_T], function: Callable[..., Sequence[_T]], *args: object) -> Sequence[_T]:
    """Call a provider's method, and check what it returns.

    Parameters
    ----------
    kind
        The type of each item.
    function, args
        What to call.

    Raises
    ------
    TypeError
        It returned something else.
    """
    found: object = function(*args)
    if not isinstance(found, Sequence) or not all(isinstance(item, kind) for item in found):
        raise TypeError(f"it returned {found!r:.100} instead of a list of {kind.__name__}s")
    return found


def _mapped(name: str, function: Callable[..., _T], *args: object) -> _T:
    try:
        return function(*args)
    except SkywardError:
        raise
    except BaseException as error:  # a gap in the provider's error map, or an exit: it must not end the pool
        _log.debug("%s: unexpected error", name, exc_info=True)
        raise CloudError(f"{name}: {type(error).__name__}: {error}") from error
