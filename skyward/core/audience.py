"""Who else is told of a pool: listeners of its events, and front ends to use while it is open, ours and others'.

Both are found by entry point, in the groups ``skyward.listeners`` and ``skyward.frontends``; nobody has to name them in
a program. One of ours that fails ends the pool; a third party's that fails is said, and the pool goes on without it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

from skyward.core import registry
from skyward.core.events import Events, Note
from skyward.core.interfaces import Listener

__all__ = ["Audience"]

_log = logging.getLogger("skyward.audience")


class Audience:
    """Those of one pool.

    Parameters
    ----------
    events
        What listeners hear.
    live
        What they are told of the pool's ``console=``.
    """

    def __init__(self, events: Events, *, live: bool) -> None:
        self._events = events
        self._closing: list[tuple[str, Callable[[], object]]] = []
        try:
            self._each(registry.LISTENERS, lambda name, made: self._subscribe(name, made(live=live)))
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Audience {', '.join(name for name, _ in self._closing)}>"

    def enter(self, pool: object, contexts: contextlib.ExitStack) -> None:
        """Enter each front end's context; they end with `contexts`."""
        self._each(registry.FRONTENDS, lambda _, made: contexts.enter_context(made(pool)))

    def close(self) -> None:
        """Tell the listeners nothing more, and close them. May be repeated."""
        while self._closing:
            name, close = self._closing.pop()
            try:
                close()
            except Exception:
                if registry.is_ours(registry.LISTENERS, name):
                    raise
                _log.exception("the listener %r failed when it was closed", name)

    def _subscribe(self, name: str, listener: Listener) -> None:
        unsubscribe = self._events.subscribe(listener.handle)

        def close() -> None:
            unsubscribe()
            listener.close()

        self._closing.append((name, close))

    def _each(self, group: str, use: Callable[[str, Any], object]) -> None:
        names = registry.names(group)
        names.sort(
            key=lambda name: not registry.is_ours(group, name)
        )  # so that the console hears of the others' faults
        for name in names:
            kind = group.removeprefix("skyward.").removesuffix("s")
            try:
                use(name, registry.load(group, name))
            except Exception as error:
                if registry.is_ours(group, name):
                    raise
                text = f"the {kind} {name!r} is not used, since it fails: {type(error).__name__}: {error}"
                self._events.emit(Note(text, warning=True))
            if package := registry.rival(group, name):
                text = f"the {kind} {name!r} of {package} is not used, since that is the name of one of ours"
                self._events.emit(Note(text, warning=True))
