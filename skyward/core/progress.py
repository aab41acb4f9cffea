"""A pool's progress, as a line of text and as an HTML bar, which suits light and dark pages. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from skyward.core.status import PoolStatus, TaskCounts, duration
from skyward.core.visible import in_html, shown

__all__ = ["progress_html", "progress_text"]

_BAR = "display:flex;border-radius:3px;overflow:hidden;background:rgba(128,128,128,.25)"
_BOX = "font-family:system-ui,sans-serif;font-size:13px;line-height:1.5;max-width:46em"
_FAINT = "opacity:.7"
# Colours that people with any colour vision tell apart, on white and on black (Okabe and Ito, 2008).
_DONE, _FAILED = "#009e73", "#d55e00"


def progress_text(status: PoolStatus, before: PoolStatus | None) -> str:
    """Progress since some moment, in one line.

    Parameters
    ----------
    status
        The pool's state now.
    before
        The pool's state at that moment, without unfinished tasks; None for the progress since the pool was entered.
    """
    return shown(" · ".join(_words(status, before)), lines=False)


def progress_html(status: PoolStatus, before: PoolStatus | None) -> str:
    """The same as a bar with a line below it."""
    tasks, _ = _since(status, before)
    total = max(1, tasks.total)
    parts = "".join(
        f'<div style="height:6px;width:{100 * count / total:.1f}%;background:{colour}"></div>'
        for count, colour in ((tasks.done, _DONE), (tasks.failed + tasks.cancelled, _FAILED))
        if count > 0
    )
    first, *others = (in_html(word, lines=False) for word in _words(status, before))
    return (
        f'<div style="{_BOX}"><div role="progressbar" aria-valuemin="0" aria-valuemax="{total}" '
        f'aria-valuenow="{tasks.done}" '
        f'aria-label="tasks done" style="{_BAR}">'
        f"{parts or '<div style=height:6px></div>'}</div><b>{first}</b> "
        f'<span style="{_FAINT}">· {" · ".join(others)}</span></div>'
    )


def _since(status: PoolStatus, before: PoolStatus | None) -> tuple[TaskCounts, float]:
    """The tasks that ended after some moment or have not, and the seconds since then."""
    now = status.tasks
    if before is None:
        return now, status.seconds
    then = before.tasks
    ended = {name: getattr(now, name) - getattr(then, name) for name in ("done", "failed", "cancelled")}
    return replace(now, **ended), status.seconds - before.seconds


def _words(status: PoolStatus, before: PoolStatus | None) -> Iterable[str]:
    tasks, seconds = _since(status, before)
    yield f"skyward {status.provider}"
    if not tasks.total:
        starting = next((node.detail for node in status.nodes if node.state == "starting" and node.detail), "")
        yield f"{status.ready} of {status.wanted} nodes ready" + (f", {starting}" if starting else "")
    else:
        yield f"{tasks.done} of {tasks.total} tasks done"
        for count, word in ((tasks.failed, "failed"), (tasks.cancelled, "cancelled")):
            if count:
                yield f"{count} {word}"
        if tasks.unfinished:
            yield f"{status.rate:.3g} tasks/s"
            draining = ", draining" if any(node.state == "draining" for node in status.nodes) else ""
            yield f"{status.busy} of {status.slots} slots busy{draining}"
            if status.left:
                yield f"about {duration(status.left)} left"
    if status.lost:
        yield f"{status.lost} nodes lost"
    if status.cost or status.price:
        yield f"${status.cost:.2f}, ${status.price:.4g}/h"
    yield duration(seconds)
