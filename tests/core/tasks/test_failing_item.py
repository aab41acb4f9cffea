"""Which call a failure is about, in words."""

from __future__ import annotations

import dataclasses
from typing import Any

from skyward.core.payload import exceptions
from skyward.core.payload.exceptions import NO_ITEM, FailedItem
from skyward.core.tasks import failing_item
from skyward.core.tasks.futures import TaskFuture
from skyward.core.tasks.jobs import Job, Keeper, TaskGroup, TaskOptions


def job(first: int = -1, **options: Any) -> Job:
    made = Job(1, "f", TaskFuture(lambda _: None, 1), TaskOptions(**options), TaskGroup(), None, [], {})
    made.first, made.node = first, "node-1"
    return made


def test_items() -> None:
    assert failing_item.say(job(40, count=8), FailedItem(3, "f(43)")) == "item 43 (the first is 0) on node-1: f(43)"
    assert failing_item.say(job(40), NO_ITEM) == "item 40 (the first is 0) on node-1"
    assert failing_item.say(job(40, count=8), NO_ITEM) == "one of the items 40 to 47 (the first is 0) on node-1"
    assert failing_item.say(job(), FailedItem(0, "f(43)")) == "in the call on node-1: f(43)"
    assert failing_item.say(job(), NO_ITEM) == ""


def test_a_node_may_say_anything() -> None:
    assert failing_item.say(job(40, count=8), FailedItem(8, "f(43)")).startswith("one of the items 40 to 47")


class Half(Keeper):
    """Only every other call was run."""

    seconds = 0.0

    def number(self, position: int) -> int:
        return 2 * position

    def merge(self, job: Job, answer: Any, read: Any) -> tuple[Any, BaseException | None]:
        raise NotImplementedError


def test_items_of_which_some_were_known() -> None:
    assert failing_item.say(job(40, count=8, keeper=Half()), FailedItem(3, "f(6)")).startswith("item 46 ")


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


def test_notes_change_nothing_else() -> None:
    for error in (ValueError("x"), Frozen(3)):
        before = type(error), error.args, str(error)
        failing_item.add_note(error, "one")
        failing_item.add_note(error, "")
        failing_item.add_note(error, "two")
        assert error.__notes__ == ["one", "two"]
        assert (type(error), error.args, str(error)) == before


def test_the_item_of_the_node_that_answered() -> None:
    """A task of a task has failed: both say which."""
    inner = exceptions.load(*exceptions.dump(ValueError("x"), FailedItem(1, "inner(1)")))
    outer = exceptions.load(*exceptions.dump(inner, FailedItem(2, "outer(2)")))
    assert failing_item.item_of(inner) == FailedItem(1, "inner(1)")
    assert failing_item.item_of(outer) == FailedItem(2, "outer(2)")
    assert failing_item.item_of(ValueError()) == NO_ITEM
    ring = ValueError()
    ring.__cause__ = ring
    assert failing_item.item_of(ring) == NO_ITEM
