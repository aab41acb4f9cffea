"""Keeps shared memory that others have made when a slot ends that has attached to it.

As a process ends, its resource tracker removes what that process has attached to by `multiprocessing.shared_memory`, as
if it had been made there (CPython issue 82300; there is ``track=`` since 3.13). Children that multiprocessing or loky
starts share their parent's tracker, so that nothing goes too early. Slots have trackers of their own.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__all__ = ["install"]

_NAME = "multiprocessing.shared_memory"
_HAS_TRACK = sys.version_info >= (3, 13)
_made: set[str] = set()  # by this process, whose tracker has to remove them


def install() -> None:
    """Adapt the module, when it is imported: that takes milliseconds, and few tasks need it."""
    if (module := sys.modules.get(_NAME)) is not None:
        _adapt(module)
    else:
        sys.meta_path.insert(0, _SegmentFinder())


class _SegmentFinder:
    """A finder of that module only."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _NAME:
            return None
        spec = PathFinder.find_spec(name, path, target)
        loader: Any = spec and spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _adapt(module)

            loader.exec_module = exec_module
        return spec


def _adapt(module: Any) -> None:
    kind, tracker = module.SharedMemory, module.resource_tracker
    init, unlink = kind.__init__, kind.unlink

    @functools.wraps(init)
    def attach_or_make(self: Any, name: str | None = None, create: bool = False, size: int = 0, **more: Any) -> None:
        is_ours = create or name in _made
        if _HAS_TRACK:
            more.setdefault("track", is_ours)
        init(self, name, create, size, **more)
        if create:
            _made.add(self.name)
        if not is_ours and not _HAS_TRACK:
            tracker.unregister(self._name, "shared_memory")

    @functools.wraps(unlink)
    def remove(self: Any) -> None:
        if not _HAS_TRACK and self.name not in _made:
            tracker.register(self._name, "shared_memory")  # the tracker is about to be told that it is gone
        _made.discard(self.name)
        unlink(self)

    kind.__init__, kind.unlink = attach_or_make, remove
