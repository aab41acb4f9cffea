"""Pickles warning categories so that nodes without their module can load them.

scikit-learn sends the process's ``warnings.filters`` with each task, and with them classes of pytest, of cloud
libraries, or of anything else that is loaded here. Categories outside the standard library are pickled so that a node
without their module gets a stand-in. Nothing there can issue such a warning, so the filter has no effect, as it should.
The user's own filters are not changed.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterable
from typing import Any

from skyward.core.payload import pickling
from skyward.core.payload.by_value import is_asked_for

__all__ = ["find_category", "install"]


@functools.cache
def find_category(module: str, name: str) -> type[Warning]:
    """Return the warning class of that name, or a stand-in if it is not available here. Called when unpickling."""
    found: Any = None
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception:  # importing a third-party module may raise anything
        found = None
    if isinstance(found, type) and issubclass(found, Warning):
        return found
    return type(name.rpartition(".")[2], (Warning,), {"__module__": module, "__qualname__": name})


_known: dict[type, str] = {}


def _reduce(kind: type) -> Any:
    if (name := _known.get(kind)) is not None:
        return name  # pickle takes a string for the name of a global
    if not issubclass(kind, Warning) or kind.__module__.partition(".")[0] in sys.stdlib_module_names:
        return None
    if not _goes_by_name(kind):
        return None  # cloudpickle sends the class itself
    return find_category, (kind.__module__, kind.__qualname__)


def _goes_by_name(kind: type) -> bool:
    """Whether cloudpickle pickles a class by name: not classes of __main__ or local to functions, nor on request."""
    module = kind.__module__
    if module == "__main__" or is_asked_for(module):
        return False
    found: Any = sys.modules.get(module)
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is kind


def install(known: Iterable[type] = ()) -> None:
    """Make core's pickler use this. May be repeated.

    Parameters
    ----------
    known
        Classes that both ends have. They are in every batch, and asking cloudpickle each time would cost more than the
        rest of a small batch.
    """
    _known.update({kind: kind.__qualname__ for kind in known})
    if _reduce not in pickling.CLASS_REDUCERS:
        pickling.CLASS_REDUCERS.append(_reduce)
