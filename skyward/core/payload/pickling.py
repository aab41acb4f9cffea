"""Values to bytes and back: calls, results and exceptions, with large buffers kept out of the pickle.

Pickling is cloudpickle at protocol 5. A payload is a head (the pickle) and out-of-band buffers, which are views of
the caller's memory; who keeps them beyond the call copies them. Nothing in this module does I/O or knows where the
bytes go.

Arrays of numpy are `memmaps`' affair: those of at least `large` bytes may be given to the receiver as maps of a file
that holds their bytes, as loky does with joblib's ``max_nbytes`` and ``mmap_mode``.
"""

from __future__ import annotations

import io
import mmap
import pickle
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cloudpickle

from skyward.core.errors import PayloadError, TaskFailed
from skyward.core.interrupts import is_interrupt
from skyward.core.payload import memory_maps
from skyward.core.payload.diagnose import find_culprit
from skyward.core.visible import shown

__all__ = [
    "CLASS_REDUCERS",
    "LARGE",
    "PLAIN",
    "Payload",
    "RemoteTraceback",
    "chain_of",
    "dump_error",
    "dumps",
    "load_error",
    "loads",
]

LARGE = 1 << 20
"""Bytes from which an array is worth a file of its own on a node; joblib's default `max_nbytes`."""

_OUT_OF_BAND = 16 * 1024  # buffers from this size stay out of the pickle; below, a copy is cheaper than a frame entry

_MOST = 60_000  # buffers out of band; a message carries up to 65,535


CLASS_REDUCERS: list[Callable[[type], Any]] = []
"""Asked in turn how to pickle a class: each gives what a ``__reduce__`` gives, or None for the usual way. For parts of
skyward that know of classes which the other side may lack."""


PLAIN: dict[type, Callable[[Any], Sequence[Any] | None]] = {}
"""Classes of ours -> what an instance holds; None where it must be pickled with care. See `_is_plain`."""

_ATOMS = frozenset((int, float, complex, str, bytes, bool, type(None)))
_PLAIN_MOST = 24  # more parts than these cost more to look at than is gained


class Payload(NamedTuple):
    """A pickle and the buffers that it refers to, in order."""

    head: bytes
    buffers: list[memoryview]


class RemoteTraceback(Exception):
    """Shown as the cause of an exception that came from a node: the traceback over there, as text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{shown(self.text)}"""'


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle, except for numpy's arrays."""

    def __init__(
        self,
        file: io.BytesIO,
        arrays: tuple[Any, ...],
        buffer_callback: Callable[[Any], bool],
        on_proxy: Callable[[Any], object] | None = None,
    ) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffer_callback)
        self._arrays = arrays  # how they are pickled: further arguments of `reduce_array`
        managers = sys.modules.get("multiprocessing.managers")
        self._proxy: type | None = None if managers is None else managers.BaseProxy
        self._on_proxy = on_proxy

    def reducer_override(self, obj: Any) -> Any:
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(obj, numpy.ndarray):
            return memory_maps.reduce_array(obj, numpy, *self._arrays)
        if self._proxy is not None and self._on_proxy is not None and isinstance(obj, self._proxy):
            self._on_proxy(obj)
        return _reduce_class(obj) or super().reducer_override(obj)


def _reduce_class(obj: Any) -> Any:
    if CLASS_REDUCERS and isinstance(obj, type):
        for reduce in CLASS_REDUCERS:
            if (reduced := reduce(obj)) is not None:
                return reduced
    return None


def dumps(
    value: Any,
    what: str = "value",
    *,
    large: int | None = LARGE,
    mode: str = "c",
    named: memory_maps.Named = "none",
    on_proxy: Callable[[Any], object] | None = None,
) -> Payload:
    """Pickle a value.

    Parameters
    ----------
    value
        Anything that cloudpickle can carry.
    what
        What the value is, for the error's text; a path to the culprit is appended to it.
    large
        Bytes from which numpy arrays may arrive as memory maps; None for never.
    mode
        ``"r"``: such a map is read-only. ``"c"``: it may be written, which nobody else sees. ``"r+"``: the same, with
        a warning.
    named
        Which memory maps of files go by the file's name; see `memmaps`.
    on_proxy
        Called with each proxy of a `multiprocessing` Manager that is in it.

    Raises
    ------
    PayloadError
        It can't be pickled; the message names the object at fault and where it sits.
    """
    if _is_plain(value):
        return Payload(pickle.dumps(value, protocol=5), [])
    buffers: list[memoryview] = []
    least = _OUT_OF_BAND if large is None else min(_OUT_OF_BAND, large)  # what is to be mapped must be a buffer

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous: pickle copies it
            return True
        if view.nbytes < least or len(buffers) >= _MOST:
            return True
        buffers.append(view)
        return False

    file = io.BytesIO()
    try:
        _Pickler(file, (large, mode, named), keep_in_band, on_proxy).dump(value)
    except PayloadError:  # it says what is at fault
        raise
    except BaseException as error:
        if is_interrupt(error):
            raise
        # SystemExit too: an object that ends the program when it is pickled has not been asked to.
        raise PayloadError(f"can't pickle {find_culprit(value, what)}: {_first_line(error)}") from error
    return Payload(file.getvalue(), buffers)


def _is_plain(value: Any) -> bool:
    """Whether a value has few parts, all of which plain pickle carries as cloudpickle would, only much faster."""
    todo, left = [value], _PLAIN_MOST
    while todo:
        part = todo.pop()
        kind = type(part)
        if kind in _ATOMS:
            continue
        if kind is tuple or kind is list:
            parts = part
        elif kind is dict:
            parts = [*part.keys(), *part.values()]
        elif kind not in PLAIN or (parts := PLAIN[kind](part)) is None:
            return False
        left -= len(parts)
        if left < 0:
            return False
        todo += parts
    return True


def loads(head: bytes | bytearray | memoryview | mmap.mmap, buffers: Sequence[Any] = ()) -> Any:
    """The value again. Raises whatever unpickling raises."""
    return pickle.loads(head, buffers=buffers)


# --- exceptions -----------------------------------------------------------------------------------------------------


def dump_error(error: BaseException, *, as_data: bool = False) -> list[bytes]:
    """Pickle an exception with its causes and traceback text. Never raises.

    With `as_data`, no code of its class is needed to read it, and its class is named as `CLASS_REDUCERS` say.
    """
    text = "".join(traceback.format_exception(error))
    chain: list[tuple[bytes, str]] = []
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        chain.append((_dump_one(link, _AS_DATA if as_data else _WAYS), _describe(link)))
        link = link.__cause__
    return [pickle.dumps((chain, text), protocol=5)]


def load_error(head: bytes | bytearray | memoryview | mmap.mmap) -> BaseException:
    """The exception again, its remote traceback at the end of its chain of causes. Never raises.

    One that can't be rebuilt here becomes a `TaskFailed` that says what it was.
    """
    chain, text = pickle.loads(head)
    errors: list[BaseException] = []
    for data, description in chain:
        try:
            error = pickle.loads(data)
            if not isinstance(error, BaseException):
                raise TypeError(f"{type(error).__name__} is not an exception")
        except BaseException as problem:  # whatever the user's __setstate__ raises
            error = TaskFailed(f"the task raised {description}; it can't be rebuilt here: {_first_line(problem)}")
        errors.append(error)
    return chain_of(errors, text)


def chain_of(errors: Sequence[BaseException], text: str) -> BaseException:
    """The first of some errors, each caused by the next, and the last by the remote traceback of this text."""
    for error, cause in zip(errors, [*errors[1:], RemoteTraceback(text)], strict=True):
        BaseException.__setattr__(error, "__cause__", cause)  # a frozen dataclass refuses the plain way
    return errors[0]


def _dump_one(error: BaseException, ways: Sequence[Callable[[BaseException], bytes]]) -> bytes:
    """Pickle one exception so that it surely loads again; bytes that don't load where nothing helps."""
    for dump in ways:
        try:
            data = dump(error)
            if type(pickle.loads(data)).__qualname__ == type(error).__qualname__:
                return data
        except BaseException:  # noqa: S112  the next way is tried; that none worked shows on the other side
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
        raise TypeError("one of Python's own holds more than its args")
    return _dump_plainly(error)


_WAYS = (_dump_plainly, _dump_rebuilt, _dump_filtered)
_AS_DATA = (_dump_builtin, _dump_rebuilt, _dump_filtered)


class _ErrorPickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles exceptions so that they are rebuilt without their ``__init__``, whose signature need not match args.

    With `filtered`, whatever in them can't be carried is left out (attributes) or replaced by its repr (args).
    """

    def __init__(self, file: io.BytesIO, filtered: bool) -> None:
        super().__init__(file, protocol=5)
        self._filtered = filtered

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, BaseException):
            return _reduce_class(obj) or super().reducer_override(obj)
        args, state = obj.args, dict(vars(obj))
        if self._filtered and not isinstance(obj, BaseExceptionGroup):  # a group's args are exceptions, as this is
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


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__module__}.{type(error).__qualname__}: {error}"
    except Exception:  # a broken __str__ of the user's
        return f"{type(error).__module__}.{type(error).__qualname__}"


def _first_line(error: BaseException) -> str:
    return _describe(error).splitlines()[0]
