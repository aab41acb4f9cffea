"""Listeners do not disturb the pool, nor each other; the user's Ctrl-C gets through."""

from __future__ import annotations

import pytest

from skyward.core.events import Event, Events, Note, TasksQueued


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


def test_a_listener_hears_of_some_kinds_until_it_ends_that() -> None:
    events, notes, everything = Events(), list[Event](), list[Event]()
    end = events.subscribe(notes.append, (Note,))
    events.emit(TasksQueued(1))
    events.subscribe(everything.append)
    for event in (TasksQueued(2), Note("a")):
        events.emit(event)
    end()
    end()
    events.emit(Note("b"))
    assert notes == [Note("a")]
    assert everything == [TasksQueued(2), Note("a"), Note("b")]


def test_one_that_subscribes_twice_hears_twice() -> None:
    events, heard = Events(), list[Event]()
    ends = [events.subscribe(heard.append) for _ in range(2)]
    events.emit(Note("a"))
    ends[0]()
    events.emit(Note("b"))
    assert heard == [Note("a"), Note("a"), Note("b")]
