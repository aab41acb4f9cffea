"""Exceptions to bytes and back: with their causes, and with the traceback of the process in which they were raised.

An exception's pickle may not load although it was written without error: its ``__init__`` may take other arguments than
its ``args``, or its attributes may not pickle. So each is loaded once where it is dumped, and is rebuilt without its
``__init__``, or without what can't be carried, if the plain way fails.
"""

from __future__ import annotations

import io
import mmap
import pickle
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cloudpickle

from skyward.core.errors import TaskFailed
from skyward.core.payload.diagnose import describe, first_line
from skyward.core.payload.pickling import reduce_class
from skyward.core.payload.source_lines import fill, formatted, read_places
from skyward.core.visible import shown

__all__ = ["NO_ITEM", "FailedItem", "RemoteTraceback", "chain", "dump", "load", "traceback_text"]


class FailedItem(NamedTuple):
    """Which of a task's calls has failed: its number in the task, -1 if that is not known, and the call as text."""

    number: int
    call: str


NO_ITEM = FailedItem(-1, "")


class RemoteTraceback(Exception):
    """The traceback on the node, as text; the cause of an exception that came from there."""

    item = NO_ITEM
    """Which call has failed."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{shown(self.text)}"""'


def dump(error: BaseException, item: FailedItem = NO_ITEM, *, as_data: bool = False) -> list[bytes]:
    """Pickle an exception with its causes and the text of its traceback. Never raises.

    Parameters
    ----------
    error
        The exception.
    item
        Which of the task's calls has raised it.
    as_data
        Pickle it so that no code of its class runs when it is read, with its class named as `CLASS_REDUCERS` say.
    """
    text, places = formatted(error)
    links: list[tuple[bytes, str]] = []
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        links.append((_dump_one(link, _AS_DATA if as_data else _WAYS), describe(link)))
        link = link.__cause__
    return [pickle.dumps((links, text, tuple(item), [tuple(place) for place in places]), protocol=5)]


def load(head: bytes | bytearray | memoryview | mmap.mmap) -> BaseException:
    """Load an exception, with its remote traceback at the end of its chain of causes. Never raises.

    An exception that can't be rebuilt here becomes a `TaskFailed` that describes it.
    """
    links, text, item, places = pickle.loads(head)
    errors: list[BaseException] = []
    for data, description in links:
        try:
            error = pickle.loads(data)
            if not isinstance(error, BaseException):
                raise TypeError(f"{type(error).__name__} is not an exception")
        except BaseException as problem:  # whatever the user's __setstate__ raises
            error = TaskFailed(f"the task raised {description}; it can't be rebuilt here: {first_line(problem)}")
        errors.append(error)
    return chain(errors, fill(text, read_places(places)), FailedItem(*item))


def chain(errors: Sequence[BaseException], text: str, item: FailedItem = NO_ITEM) -> BaseException:
    """Make each error the cause of the one before it, and the remote traceback the cause of the last; return the first.

    Parameters
    ----------
    errors
        One exception or more, outermost first.
    text
        The traceback on the node.
    item
        Which call has failed.
    """
    remote = RemoteTraceback(text)
    remote.item = item
    for error, cause in zip(errors, [*errors[1:], remote], strict=True):
        BaseException.__setattr__(error, "__cause__", cause)  # a frozen dataclass refuses plain assignment
    return errors[0]


def traceback_text(error: BaseException) -> str:
    """The traceback to show for a task's exception: the node's if there is one, with the notes that were added here.

    Python would print that of the node as a cause, and the exception a second time below it.
    """
    link: BaseException | None = error
    remote, seen = None, 0
    while link is not None and seen < 100:  # a chain may be a ring
        if isinstance(link, RemoteTraceback):
            remote = link  # the last one is of the node that answered, and has the others in its text
        link, seen = link.__cause__, seen + 1
    if remote is None:
        return "".join(traceback.format_exception(error))
    text = remote.text if remote.text.endswith("\n") else f"{remote.text}\n"
    notes = getattr(error, "__notes__", None)
    return text + "".join(f"{note}\n" for note in (notes if isinstance(notes, list) else ()) if str(note) not in text)


def _dump_one(error: BaseException, ways: Sequence[Callable[[BaseException], bytes]]) -> bytes:
    """Pickle one exception in the first way that loads again; bytes that don't load if none does."""
    for way in ways:
        try:
            data = way(error)
            if type(pickle.loads(data)).__qualname__ == type(error).__qualname__:
                return data
        except BaseException:  # noqa: S112  the next way is tried; the other side reports that none worked
            continue
    return b""


def _dump_plainly(error: BaseException) -> bytes:
    return bytes(cloudpickle.dumps(error, protocol=5))


def _dump_rebuilt(error: BaseException, *, filtered: bool = False) -> bytes:
    file = io.BytesIO()
    _ErrorPickler(file, filtered).dump(error)
    return file.getvalue()


def _dump_filtered(error: BaseException) -> bytes:
    return _dump_rebuilt(error, filtered=True)


def _dump_builtin(error: BaseException) -> bytes:
    if type(error).__module__ != "builtins":
        raise TypeError("only Python's own exceptions are data in their plain pickle")
    return _dump_plainly(error)


_WAYS = (_dump_plainly, _dump_rebuilt, _dump_filtered)
_AS_DATA = (_dump_builtin, _dump_rebuilt, _dump_filtered)


class _ErrorPickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles exceptions so that they are rebuilt without their ``__init__``, whose signature need not match args.

    With `filtered`, attributes that don't pickle are left out, and such args are replaced by their repr.
    """

    def __init__(self, file: io.BytesIO, filtered: bool) -> None:
        super().__init__(file, protocol=5)
        self._filtered = filtered

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, BaseException):
            return reduce_class(obj) or super().reducer_override(obj)
        args, state = obj.args, dict(vars(obj))
        if self._filtered and not isinstance(obj, BaseExceptionGroup):  # a group's args are exceptions too
            args = tuple(arg if _carries(arg) else repr(arg) for arg in args)
            state = {key: value for key, value in state.items() if _carries(value)}
        return _rebuild, (type(obj), args, state)


def _rebuild(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    try:
        error = kind.__new__(kind, *args)
    except TypeError:
        error = kind.__new__(kind)
    BaseException.__setattr__(error, "args", args)
    error.__dict__.update(state)
    return error


def _carries(value: Any) -> bool:
    try:
        pickle.loads(cloudpickle.dumps(value, protocol=5))
    except BaseException:
        return False
    return True
