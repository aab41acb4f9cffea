"""Values to bytes and back: calls and results, with large buffers kept out of the pickle.

Pickling is cloudpickle at protocol 5. A payload is a head (the pickle) and out-of-band buffers, which are views of the
caller's memory; whoever keeps them beyond the call has to copy them. This module does not know where the bytes go.

numpy arrays are left to `memory_maps`, which may look at the file behind one: the receiver may get those of at least
`large` bytes as maps of a file with their bytes, as loky does with joblib's ``max_nbytes`` and ``mmap_mode``. For
exceptions see `exceptions`.
"""

from __future__ import annotations

import io
import mmap
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from skyward.core.errors import PayloadError
from skyward.core.interrupts import is_interrupt
from skyward.core.payload import by_value, memory_maps
from skyward.core.payload.diagnose import find_culprit, first_line

__all__ = [
    "CLASS_REDUCERS",
    "LARGE",
    "PLAIN",
    "POOL_REDUCERS",
    "Payload",
    "dumps",
    "loads",
    "reduce_class",
]

LARGE = 1 << 20
"""Size in bytes from which an array gets a file of its own on a node; joblib's default `max_nbytes`."""

_OUT_OF_BAND = 16 * 1024  # bytes from which buffers stay out of the pickle; below, a copy is cheaper than a frame entry

_MAX_BUFFERS = 60_000  # out of band; a message carries up to 65,535


CLASS_REDUCERS: list[Callable[[type], Any]] = []
"""Tried in turn to pickle a class: each returns what ``__reduce__`` would, or None for the usual way. For parts of
skyward that know classes which the other side may lack."""


POOL_REDUCERS: dict[type, Callable[[Any, Any], Any]] = {}
"""Classes -> what returns, for an instance and the pool that it is sent to, what ``__reduce__`` would, or None for the
usual way. For objects that refer to something of the driver's."""


PLAIN: dict[type, Callable[[Any], Sequence[Any] | None]] = {}
"""Classes of ours -> the parts of an instance, or None if it needs the full pickler. See `_is_plain`."""

_ATOMS = frozenset((int, float, complex, str, bytes, bool, type(None)))
_MAX_PLAIN_PARTS = 24  # checking more parts than this costs more than plain pickling saves


class Payload(NamedTuple):
    """A pickle and the buffers that it refers to, in order."""

    head: bytes
    buffers: list[memoryview]


class _Pickler(by_value.Pickler):
    """That of `by_value`, except for numpy arrays and for classes with a reducer of ours."""

    def __init__(
        self,
        file: io.BytesIO,
        arrays: tuple[Any, ...],
        buffer_callback: Callable[[Any], bool],
        on_proxy: Callable[[Any], object] | None = None,
        pool: object = None,
    ) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffer_callback)
        self._pool = pool
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
        if self._pool is not None and type(obj) in POOL_REDUCERS:
            reduced = POOL_REDUCERS[type(obj)](obj, self._pool)
            if reduced is not None:
                return reduced
        return reduce_class(obj) or super().reducer_override(obj)


def reduce_class(obj: Any) -> Any:
    """The result of the first of `CLASS_REDUCERS` that knows this class; None if none does, or if it is not a class."""
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
    pool: object = None,
) -> Payload:
    """Pickle a value.

    Parameters
    ----------
    value
        Anything that cloudpickle can carry.
    what
        What the value is, for the error message, which appends the path to the culprit.
    large
        Size in bytes from which numpy arrays may arrive as memory maps; None for never.
    mode
        ``"r"``: such a map is read-only. ``"c"``: it is copy-on-write. ``"r+"``: the same, with a warning.
    named
        Which memory-mapped files are sent by name; see `memory_maps`.
    on_proxy
        Called with each proxy of a `multiprocessing` Manager in the value.
    pool
        The pool that it is sent to, for `POOL_REDUCERS`; None for the usual way.

    Raises
    ------
    PayloadError
        The value can't be pickled; the message names the object at fault and where it is.
    """
    if _is_plain(value):
        return Payload(pickle.dumps(value, protocol=5), [])
    buffers: list[memoryview] = []
    smallest = _OUT_OF_BAND if large is None else min(_OUT_OF_BAND, large)  # what is to be mapped must be a buffer

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous: pickle copies it
            return True
        if view.nbytes < smallest or len(buffers) >= _MAX_BUFFERS:
            return True
        buffers.append(view)
        return False

    file = io.BytesIO()
    try:
        _Pickler(file, (large, mode, named), keep_in_band, on_proxy, pool).dump(value)
    except PayloadError:  # it already says what is at fault
        raise
    except BaseException as error:
        if is_interrupt(error):
            raise
        # SystemExit too: an object must not end the program just because it is pickled.
        raise PayloadError(f"can't pickle {find_culprit(value, what)}: {first_line(error)}") from error
    return Payload(file.getvalue(), buffers)


def _is_plain(value: Any) -> bool:
    """Whether a value has few parts, all of which plain pickle handles as cloudpickle would, only much faster."""
    todo, left = [value], _MAX_PLAIN_PARTS
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
    """Load a value. Raises whatever unpickling raises."""
    return pickle.loads(head, buffers=buffers)
