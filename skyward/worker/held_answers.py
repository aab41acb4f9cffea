"""Answers about tasks that wait until what the tasks wrote is saved. Tasks that end meanwhile are saved together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

__all__ = ["HeldAnswers", "Save"]

Save: TypeAlias = Callable[["frozenset[int] | None"], "str | None"]
"""Saves what was written before the call, and returns why that is not possible. Blocks.

The argument is the process groups whose tasks have ended: new files that others are still writing may wait. None: no
file may wait.
"""

_Release: TypeAlias = Callable[["str | None"], object]


class HeldAnswers:
    """The answers of one node. Belongs to the agent's loop.

    Parameters
    ----------
    loop
        The loop.
    save
        Called in a thread; never twice at once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, save: Save) -> None:
        self._loop = loop
        self._save = save
        self._waiting: dict[int, tuple[int | None, _Release]] = {}  # task -> its process group, and what to call
        self._saving: dict[int, tuple[int | None, _Release]] = {}  # the same, of those being saved
        self._round: asyncio.Task[None] | None = None
        self._flushes = 0

    def __repr__(self) -> str:
        return f"<HeldAnswers {len(self._waiting)} waiting, {len(self._saving)} being saved>"

    def __contains__(self, task: int) -> bool:
        return task in self._waiting or task in self._saving

    def hold(self, task: int, group: int | None, release: _Release) -> None:
        """Call `release` once all is saved that was written before now, or can't be.

        Parameters
        ----------
        task
            A task that has ended.
        group
            The process group that it ran in; None if that is not known.
        release
            Called with None, or the reason why something is not saved.
        """
        self._waiting[task] = group, release
        self._begin()

    async def flush(self) -> str | None:
        """Save everything that anybody wrote before now; returns why that is not possible."""
        self._flushes -= 1  # no task's number
        done: asyncio.Future[str | None] = self._loop.create_future()
        self.hold(self._flushes, None, lambda problem: None if done.done() else done.set_result(problem))
        return await done

    def close(self) -> None:
        """Stop saving; no answer is released any more."""
        if self._round is not None:
            self._round.cancel()

    def _begin(self) -> None:
        if self._round is None and self._waiting:
            self._round = self._loop.create_task(self._save_all())

    async def _save_all(self) -> None:
        """Save as long as something waits. What comes during a round may have been written after it looked."""
        while self._waiting:
            self._saving, self._waiting = self._waiting, {}
            groups = [group for group, _ in self._saving.values()]
            known = None if None in groups else frozenset(group for group in groups if group is not None)
            unexpected: Exception | None = None
            try:
                problem = await self._loop.run_in_executor(None, self._save, known)
            except Exception as error:
                unexpected, problem = error, f"unexpected error: {type(error).__name__}: {error}"
            saved, self._saving = self._saving, {}
            for _, release in saved.values():
                release(problem)
            if unexpected is not None:
                self._loop.call_exception_handler({"message": "saving failed", "exception": unexpected})
        self._round = None
