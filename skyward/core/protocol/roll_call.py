"""Finds tasks that one side believes the other is running, while the other never received them or has lost them.

There is no known way for that to happen. It is checked all the same, since a task that nobody runs would be waited for
forever, silently. Pure; the driver uses it for its nodes, and an agent for its slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["RollCall"]


class RollCall:
    """Asks one peer, one question at a time.

    A task is held under a *mark*, a new one each time it is handed over. So an answer about an earlier hand-over is
    never mistaken for one about a later hand-over, whichever message overtook which.
    """

    def __init__(self) -> None:
        self._seen: Mapping[int, int] = {}
        self._asked: Mapping[int, int] | None = None
        self.unanswered = 0
        """How often `ask` has been called since the question that is still unanswered."""

    def __repr__(self) -> str:
        return f"<RollCall {len(self._asked)} asked>" if self._asked else "<RollCall>"

    def ask(self, held: Mapping[int, int]) -> list[int]:
        """Return the tasks to ask about now: those that were also held the last time.

        Parameters
        ----------
        held
            Tasks that the peer should have, with their marks. The question must not be able to overtake the task.
        """
        seen, self._seen = self._seen, held
        if self._asked is not None:
            self.unanswered += 1
            return []
        asked = {task: mark for task, mark in held.items() if seen.get(task) == mark}
        self._asked = asked or None
        return list(asked)

    def lost(self, missing: Iterable[int], held: Mapping[int, int]) -> list[int]:
        """Return the tasks that the peer lacks and should have; call this with each answer."""
        asked, self._asked, self.unanswered = self._asked or {}, None, 0
        return [task for task in missing if task in asked and held.get(task) == asked[task]]
