"""Warning categories that a node may not have.

scikit-learn sends the process's ``warnings.filters`` with each task, and in it classes of pytest, of cloud libraries,
of whatever is loaded here. Those outside the standard library are pickled so that a node without their module gets a
stand-in, which nothing there can warn with; so the filter does nothing, as it should. The user's own filters are not
touched.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterable
from typing import Any

import cloudpickle

from skyward.core.payload import pickling

__all__ = ["find_category", "install"]


@functools.cache
def find_category(module: str, name: str) -> type[Warning]:
    """The warning class of that name, or a stand-in for one that can't be had here. Called by the pickle."""
    found: Any = None
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception:  # a foreign module may fail to load in any way
        found = None
    if isinstance(found, type) and issubclass(found, Warning):
        return found
    return type(name.rpartition(".")[2], (Warning,), {"__module__": module, "__qualname__": name})


_known: dict[type, str] = {}


def _reduce(kind: type) -> Any:
    if (name := _known.get(kind)) is not None:
        return name  # which pickle takes for a global's
    if not issubclass(kind, Warning) or kind.__module__.partition(".")[0] in sys.stdlib_module_names:
        return None
    if not _goes_by_name(kind):
        return None  # cloudpickle sends the class itself
    return find_category, (kind.__module__, kind.__qualname__)


def _goes_by_name(kind: type) -> bool:
    """Whether cloudpickle would send only its name: not for classes of __main__, of functions, and on request."""
    module = kind.__module__
    by_value = cloudpickle.list_registry_pickle_by_value()
    if module == "__main__" or any(module == name or module.startswith(f"{name}.") for name in by_value):
        return False
    found: Any = sys.modules.get(module)
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is kind


def install(known: Iterable[type] = ()) -> None:
    """Let payloads carry categories this way. May be repeated.

    Parameters
    ----------
    known
        Classes that both sides have. They are in every batch, and to ask cloudpickle each time costs more than all the
        rest of a small one.
    """
    _known.update({kind: kind.__qualname__ for kind in known})
    if _reduce not in pickling.CLASS_REDUCERS:
        pickling.CLASS_REDUCERS.append(_reduce)
