"""Classes in results that the driver itself sent by value: they come back by an identifier that only it can look up.

cloudpickle sends classes of ``__main__`` and of functions with all their code, in both directions. Where results are
read as data no code may come back, and none has to: the driver has the class.
"""

from __future__ import annotations

from typing import Any

from cloudpickle import cloudpickle

from skyward.core.payload import pickling

__all__ = ["find", "find_owned", "install"]


def find(tracker: str) -> type | None:
    """The class of this process that cloudpickle tracks by that identifier, or None."""
    found: type | None = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker)  # noqa: SLF001
    return found


def find_owned(tracker: str, module: str, name: str) -> type:
    """Look up the class; called by the pickle.

    Parameters
    ----------
    tracker
        cloudpickle's identifier of the class.
    module, name
        Its name, for the error.

    Raises
    ------
    AttributeError
        This process has sent no such class.
    """
    found = find(tracker)
    if found is None:
        raise AttributeError(f"no class {name!r} of {module!r} was sent from here")
    return found


def _reduce(kind: type) -> Any:
    tracker = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS.get(kind)  # noqa: SLF001
    return None if tracker is None else (find_owned, (tracker, kind.__module__, kind.__qualname__))


def install() -> None:
    """Send such classes by identifier from now on, in this process. May be repeated."""
    if _reduce not in pickling.CLASS_REDUCERS:
        pickling.CLASS_REDUCERS.append(_reduce)
