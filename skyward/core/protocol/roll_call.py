"""Finds tasks that one side counts as running on the other, while the other has never heard of them, or has lost them.

There is no known way in which that can happen. That is why it is asked: a task that nobody runs would be waited for
without end and without a word. Pure; used by the driver for its nodes and by an agent for its slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["RollCall"]


class RollCall:
    """Asks one peer, one question at a time.

    A task is held under a *mark*, which is another one each time it is handed over. So an answer about an earlier
    hand-over is never taken for one about a later, whatever overtook what.
    """

    def __init__(self) -> None:
        self._seen: Mapping[int, int] = {}
        self._asked: Mapping[int, int] | None = None
        self.unanswered = 0
        """How often `ask` has been called since a question that has no answer yet."""

    def __repr__(self) -> str:
        return f"<RollCall {len(self._asked)} asked>" if self._asked else "<RollCall>"

    def ask(self, held: Mapping[int, int]) -> list[int]:
        """Which tasks to ask about now: those that were held the last time too.

        Parameters
        ----------
        held
            Tasks that the peer should have, with their marks. It must not be able to get the question before the task.
        """
        seen, self._seen = self._seen, held
        if self._asked is not None:
            self.unanswered += 1
            return []
        asked = {task: mark for task, mark in held.items() if seen.get(task) == mark}
        self._asked = asked or None
        return list(asked)

    def lost(self, missing: Iterable[int], held: Mapping[int, int]) -> list[int]:
        """Of the tasks that the peer does not have, those that it should have; to be called with each answer."""
        asked, self._asked, self.unanswered = self._asked or {}, None, 0
        return [task for task in missing if task in asked and held.get(task) == asked[task]]
