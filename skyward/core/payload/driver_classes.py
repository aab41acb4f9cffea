"""Classes that a driver has sent by value, in results: by a name that only that driver can look up.

cloudpickle sends classes of ``__main__`` and of functions with all their code, both ways. Where results are read as
data no code may come back, and none has to: the driver has the class.
"""

from __future__ import annotations

from typing import Any

from cloudpickle import cloudpickle

from skyward.core.payload import pickling

__all__ = ["find", "find_owned", "install"]


def find(tracker: str) -> type | None:
    """The class of this process that is known by that name, or None."""
    found: type | None = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker)  # noqa: SLF001
    return found


def find_owned(tracker: str, module: str, name: str) -> type:
    """The class again; called by the pickle."""
    found = find(tracker)
    if found is None:
        raise AttributeError(f"no class {name!r} of {module!r} was sent from here")
    return found


def _reduce(kind: type) -> Any:
    tracker = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS.get(kind)  # noqa: SLF001
    return None if tracker is None else (find_owned, (tracker, kind.__module__, kind.__qualname__))


def install() -> None:
    """Send such classes this way from now on, in this process. May be repeated."""
    if _reduce not in pickling.CLASS_REDUCERS:
        pickling.CLASS_REDUCERS.append(_reduce)
