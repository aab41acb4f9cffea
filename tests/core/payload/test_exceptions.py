"""Errors always arrive, with their type and what can be carried of them."""

from __future__ import annotations

import copy
import dataclasses
import threading
from typing import Any

import pytest

from skyward.core.errors import TaskFailed
from skyward.core.payload import exceptions
from skyward.core.payload.exceptions import RemoteTraceback


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


@dataclasses.dataclass(frozen=True)
class FrozenEmpty(Exception):
    pass


class Finicky(Exception):
    def __init__(self, a: int, *, b: str) -> None:
        super().__init__(f"{a}{b}")
        self.a, self.b = a, b


class WithLock(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()
        self.code = 5


class BadStr(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Strange(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("will not be pickled")


class Liar(Exception):
    def __reduce__(self) -> Any:
        return (copy.copy, ([1, 2],))


def carried(error: BaseException) -> BaseException:
    """Raise, dump, load."""
    try:
        raise error
    except BaseException as caught:
        (head,) = exceptions.dump(caught)
    return exceptions.load(bytearray(head))


@pytest.mark.parametrize(
    "error",
    [ValueError("x", 3), KeyError("k"), OSError(2, "gone", "file"), Finicky(1, b="z"), WithLock("t"), Strange("s"),
     UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), KeyboardInterrupt(), SystemExit(3), StopIteration(4),
     ExceptionGroup("several", [ValueError(1), Finicky(2, b="y")]), Frozen(6), FrozenEmpty()],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_exceptions_keep_type_args_and_attributes(error: BaseException) -> None:
    """Odd signatures, attributes that don't pickle, classes that refuse: the type and what can be carried arrive."""
    back = carried(error)
    assert type(back) is type(error)
    assert str(back) == str(error)
    for name in ("a", "b", "code", "errno", "filename", "exceptions"):
        if hasattr(error, name) and name != "exceptions":
            assert getattr(back, name) == getattr(error, name)
    assert isinstance(back.__cause__, RemoteTraceback)


def test_what_cant_be_rebuilt_is_described() -> None:
    """An exception that does not rebuild arrives as TaskFailed with its text, never as another exception here."""
    back = carried(Liar("hello"))
    assert isinstance(back, (TaskFailed, Liar))
    assert "hello" in str(back)
    assert isinstance(carried(BadStr()), BadStr)


def test_the_chain_of_causes_stays_and_ends_in_the_traceback() -> None:
    """`raise B from A` arrives as B from A from the remote traceback."""
    try:
        try:
            raise KeyError("a")
        except KeyError as cause:
            raise Finicky(1, b="2") from cause
    except Finicky as error:
        back = exceptions.load(*exceptions.dump(error))
    assert isinstance(back.__cause__, KeyError)
    assert "Finicky" in str(back.__cause__.__cause__)


def test_a_local_class_of_the_user_arrives_as_itself() -> None:
    """Exceptions and values of classes from `__main__` or a function keep their identity in this process."""

    class Local(Exception):
        pass

    assert type(carried(Local("x"))) is Local


def test_a_circle_of_causes_ends() -> None:
    """A cause that leads back is not followed for ever."""
    one, two = ValueError(1), ValueError(2)
    one.__cause__, two.__cause__ = two, one
    assert str(exceptions.load(*exceptions.dump(one))) == "1"


def test_what_is_shown_is_the_nodes_traceback_and_the_notes_of_here() -> None:
    try:
        raise KeyError("the node's") from OSError("before")
    except KeyError as error:
        error.add_note("added there")
        back = exceptions.load(*exceptions.dump(error))
    back.__notes__ = ["added there", "item 3 on node-1"]
    text = exceptions.traceback_text(back)
    assert text.count('KeyError: "the node\'s"') == 1
    assert "OSError: before" in text
    assert text.endswith("added there\nitem 3 on node-1\n")
    assert text.count("added there") == 1
    assert "RemoteTraceback" not in text


def test_without_a_nodes_traceback_pythons_own_is_shown() -> None:
    error = TaskFailed("lost")
    assert exceptions.traceback_text(error) == "skyward.core.errors.TaskFailed: lost\n"
    error.__cause__ = error
    assert exceptions.traceback_text(error).endswith("TaskFailed: lost\n")
