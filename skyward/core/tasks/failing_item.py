"""Says in a note which of the user's calls a failure is about. Pure."""

from __future__ import annotations

from skyward.core.payload.exceptions import NO_ITEM, FailedItem, RemoteTraceback
from skyward.core.tasks.jobs import Job

__all__ = ["add_note", "item_of", "number_of", "say"]


def item_of(error: BaseException) -> FailedItem:
    """Which call of its task has raised an error, as its node says."""
    link: BaseException | None = error
    item, seen = NO_ITEM, 0
    while link is not None and seen < 100:  # a chain may be a ring
        if isinstance(link, RemoteTraceback):
            item = link.item  # the last one is of the node that answered; others are of tasks of that task
        link, seen = link.__cause__, seen + 1
    return item


def number_of(job: Job, position: int) -> int:
    """Return the number of a call among those that were submitted together; -1 if it is by itself, or not known."""
    if job.first < 0 or not 0 <= position < job.options.count:
        return -1
    return job.first + (position if job.options.keeper is None else job.options.keeper.number(position))


def say(job: Job, item: FailedItem) -> str:
    """Name the call; empty if there is nothing to add to what every message says.

    Parameters
    ----------
    job
        The task.
    item
        Which of its calls, and how it was called.
    """
    where = f" on {job.node}" if job.node else ""
    if (number := number_of(job, item.number if job.options.count > 1 else 0)) >= 0:
        which = f"item {number} (the first is 0)"
    elif job.first >= 0:
        which = f"one of the items {job.first} to {job.first + job.options.count - 1} (the first is 0)"
    elif item.call:
        return f"in the call{where}: {item.call}"
    else:
        return ""
    return f"{which}{where}: {item.call}" if item.call else f"{which}{where}"


def add_note(error: BaseException, text: str) -> None:
    """Add a note to an exception, even if its class lets nobody set attributes; nothing else about it changes."""
    if text:
        state = vars(error)
        notes = state.get("__notes__")
        state["__notes__"] = [*notes, text] if isinstance(notes, list) else [text]
