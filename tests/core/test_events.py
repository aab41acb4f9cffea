"""Listeners do not disturb the pool, nor each other; the user's Ctrl-C gets through."""

from __future__ import annotations

import pytest

from skyward.core.events import Event, Events, Note


def failing(error: type[BaseException]) -> tuple[Events, list[Event]]:
    """A listener that raises, and another after it."""
    events, heard = Events(), list[Event]()

    def fail(event: Event) -> None:
        raise error(event)

    events.subscribe(fail)
    events.subscribe(heard.append)
    return events, heard


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_listener_that_fails_is_logged(error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    events, heard = failing(error)
    events.emit(Note("hello"))
    assert heard == [Note("hello")]
    assert "a listener failed on Note(text='hello'" in caplog.text


def test_an_interrupt_that_meets_a_listener_is_not_lost() -> None:
    events, heard = failing(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        events.emit(Note("hello"))
    assert heard == [Note("hello")]
