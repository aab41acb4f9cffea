"""Who follows an open pool: listeners to its events, front ends that are entered, and its live page. Ours and others'.

Listeners and front ends are found by entry points, in the groups ``skyward.listeners`` and ``skyward.frontends``;
programs need not name them. If one of ours fails, the pool ends; if a third party's fails, that is reported and the
pool goes on without it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

from skyward.core import registry
from skyward.core.events import Events, Note
from skyward.core.facts import Facts
from skyward.core.interfaces import Dashboard, Listener

__all__ = ["Audience", "Showing"]

_log = logging.getLogger("skyward.audience")


class Audience:
    """The listeners and front ends of one pool.

    Parameters
    ----------
    events
        What listeners subscribe to.
    live, facts
        The pool's ``console=``, and its running totals; both are passed to listeners.
    """

    def __init__(self, events: Events, *, live: bool, facts: Facts) -> None:
        self._events = events
        self._closing: list[tuple[str, Callable[[], object]]] = []
        try:
            self._each(registry.LISTENERS, lambda name, made: self._subscribe(name, made(live=live, facts=facts)))
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Audience {', '.join(name for name, _ in self._closing)}>"

    def enter(self, pool: object, contexts: contextlib.ExitStack) -> None:
        """Enter each front end's context in `contexts`."""
        self._each(registry.FRONTENDS, lambda _, made: contexts.enter_context(made(pool)))

    def close(self) -> None:
        """Unsubscribe and close the listeners. May be repeated."""
        while self._closing:
            name, close = self._closing.pop()
            try:
                close()
            except Exception:
                if registry.is_ours(registry.LISTENERS, name):
                    raise
                _log.exception("listener %r failed to close", name)

    def _subscribe(self, name: str, listener: Listener) -> None:
        unsubscribe = self._events.subscribe(listener.handle, getattr(listener, "kinds", None))

        def close() -> None:
            unsubscribe()
            listener.close()

        self._closing.append((name, close))

    def _each(self, group: str, use: Callable[[str, Any], object]) -> None:
        kind = group.removeprefix("skyward.").removesuffix("s")
        # Ours first, so that the console gets the reports about others.
        for name in sorted(registry.names(group), key=lambda name: not registry.is_ours(group, name)):
            try:
                use(name, registry.load(group, name))
            except Exception as error:
                if registry.is_ours(group, name):
                    raise
                text = f"the {kind} {name!r} is not used, because it failed: {type(error).__name__}: {error}"
                self._events.emit(Note(text, warning=True))
            if package := registry.rival(group, name):
                text = f"the {kind} {name!r} of {package} is not used, because a built-in one has that name"
                self._events.emit(Note(text, warning=True))


class Showing:
    """The live page of one pool, if it has one.

    Parameters
    ----------
    pool
        Name of the pool.
    port
        Port to listen on, 0 for any; None for no page until `show` is called.
    events, facts
        What it shows.

    Attributes
    ----------
    page
        The page; None if there is none.

    Raises
    ------
    ConfigError
        The port is taken.
    """

    def __init__(self, pool: str, port: int | None, events: Events, facts: Facts) -> None:
        self._pool, self._events, self._facts = pool, events, facts
        self._lock = threading.Lock()  # guards `page`, which any thread may ask for
        self.page = None if port is None else self._made(port)

    def __repr__(self) -> str:
        return f"<Showing {self.page}>"

    def start(self) -> None:
        """Serve the page, if there is one."""
        if self.page is not None:
            self._open(self.page)

    def show(self) -> Dashboard:
        """Return the page; starts it if there was none."""
        with self._lock:
            if self.page is None:
                page = self._made(0)
                self._open(page)
                self.page = page
            return self.page

    def close(self) -> None:
        """Stop the page."""
        with self._lock:
            if self.page is not None:
                self.page.close()

    def _made(self, port: int) -> Dashboard:
        page: Dashboard = registry.load(registry.DASHBOARDS, "page")(self._pool, port, self._facts)
        return page

    def _open(self, page: Dashboard) -> None:
        self._events.subscribe(page.handle, getattr(page, "kinds", None))
        page.start()
        self._events.emit(Note(f"live page: {page.link}"))
