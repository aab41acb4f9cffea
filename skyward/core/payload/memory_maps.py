"""numpy arrays to pickles and back: large ones arrive as memory maps, and windows on a file remain windows on it.

What a program writes into a `numpy.memmap` is meant for the file, so a task must get the file itself or something it
can't write into: with a private copy, what it writes would be lost silently. Where a node sees the driver's files, the
map is sent as the name of its file and opened again there, as joblib does with loky. Everywhere else its content is
sent, and arrives read-only. The same holds for arrays in anonymous shared memory, such as ``multiprocessing.RawArray``.

This module knows nothing about tasks or nodes, and must load where numpy is not installed.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import sys
import threading
import warnings
import weakref
from pathlib import Path
from typing import Any, Literal, NamedTuple

from skyward.core.errors import PayloadError

__all__ = [
    "Named",
    "begin_task",
    "explain",
    "map_array",
    "open_map",
    "reduce_array",
    "seal",
    "writes_through",
]

Named = Literal["all", "given", "none", "data"]
"""Which maps are sent as the name of their file: all, those that were received that way, or none. ``"data"``: none, and
they are sent as plain arrays, for a reader that accepts no file names."""

_KEEP = "; keep the file as it is until the tasks have ended"
_NO_SHARED_MEMORY = (
    "mmap_mode='r+' gives each task its own copy-on-write map, since machines share no memory: neither the caller nor "
    "other tasks see what it writes into an array. Return results instead, or pass a numpy.memmap of a file, which "
    "tasks on this machine can write to. mmap_mode='c' does the same without this warning"
)


class _Window(NamedTuple):
    """An array whose memory belongs to an `mmap`."""

    holder: Any  # the array directly on the map: the `numpy.memmap` itself, or one made from a buffer
    memory: mmap.mmap


class _Received(threading.local):
    """What the task in this thread received."""

    sealed: tuple[str, ...] = ()  # why some of its arrays are read-only


_received = _Received()
_identities: weakref.WeakKeyDictionary[mmap.mmap, tuple[int, int]] = weakref.WeakKeyDictionary()
_shared: weakref.WeakKeyDictionary[mmap.mmap, bool] = weakref.WeakKeyDictionary()
_MAPS = Path("/proc/self/maps")
_given: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()  # maps opened by `open_map`


# --- to a pickle ----------------------------------------------------------------------------------------------------


def reduce_array(array: Any, numpy: Any, large: int | None, mode: str, named: Named) -> Any:
    """What ``__reduce__`` should return for an array; NotImplemented for numpy's own way.

    Parameters
    ----------
    array, numpy
        The array and the module.
    large
        Size in bytes from which it may arrive as a memory map; None for never.
    mode
        Mode of such a map: ``"r"``, ``"c"``, or ``"r+"``, which warns that it means ``"c"``.
    named
        Which maps are sent as the name of their file.

    Raises
    ------
    PayloadError
        There is no way to send it without losing what is written into it, or its file was truncated.
    """
    if array.base is not None and (window := _window(array, numpy)) is not None:
        reduced = _reduce_window(array, window, numpy, named)
        if reduced is not None:
            return reduced
        if getattr(window.holder, "mode", None) == "c" and _may_write(array):
            mode = "c"  # writable and private for the caller, so also for the task
    known = type(array) in (numpy.ndarray, numpy.memmap)
    if not known or array.dtype.hasobject or large is None or array.nbytes < large:
        # A map of a file here becomes a plain array there; numpy would also copy the bytes of a subclass.
        return numpy.asarray(array).__reduce_ex__(5) if type(array) is numpy.memmap else NotImplemented
    if mode == "r+":
        warnings.warn(_NO_SHARED_MEMORY, UserWarning, stacklevel=2)
    return map_array, (*_content(array, numpy), "r" if mode == "r" else "c")


def writes_through(array: Any, numpy: Any) -> bool:
    """Whether a task that writes into an array writes into a file, or into memory that others share.

    Parameters
    ----------
    array, numpy
        The array and the module.
    """
    if array.base is None or not _may_write(array) or (window := _window(array, numpy)) is None:
        return False
    mode = getattr(window.holder, "mode", None)
    if mode is not None:
        return mode not in ("r", "c")
    return bool(window.holder.flags.writeable) and _is_shared(window.memory, _address(window.holder))


def _content(array: Any, numpy: Any) -> tuple[pickle.PickleBuffer, Any, tuple[int, ...], Literal["C", "F"]]:
    order: Literal["C", "F"] = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    flat = numpy.ascontiguousarray(array.T if order == "F" else array).reshape(-1).view(numpy.uint8)
    return pickle.PickleBuffer(flat), array.dtype, array.shape, order


def _window(array: Any, numpy: Any) -> _Window | None:
    """Follow the owners of an array's memory down to an `mmap`; None if it belongs to something else."""
    ctypes = sys.modules.get("ctypes")
    holder, base = array, array.base
    while base is not None:
        if isinstance(base, mmap.mmap):
            return _Window(holder, base)
        if isinstance(base, numpy.ndarray):
            holder, base = base, base.base
        elif isinstance(base, memoryview):
            base = base.obj
        elif ctypes is not None and isinstance(base, ctypes.Array):  # like multiprocessing's, over a memoryview
            parts = (getattr(base, "_objects", None) or {}).values()
            base = next((part for part in parts if isinstance(part, memoryview)), None)
        else:
            return None
    return None


def _reduce_window(array: Any, window: _Window, numpy: Any, named: Named) -> Any:
    """Reduce to the same window on the other side, or to a read-only copy; None if a plain copy will do."""
    holder, memory = window
    low, high = _bounds(array)
    file = getattr(holder, "filename", None) if isinstance(holder, numpy.memmap) else None
    mode = getattr(holder, "mode", None)
    if mode is not None:
        offset = holder.offset + low - _bounds(holder)[0]
        _check_size(file, memory, offset + high - low)
        if array.size == 0 or mode == "c" or named == "data":  # nothing to write, or only into the caller's memory
            return None
    elif named == "data" or array.size == 0 or not holder.flags.writeable or not _is_shared(memory, _address(holder)):
        return None
    kind, writes = type(array), mode != "r"
    if not _is_numpys(kind, numpy):
        if not writes:
            return None
        raise PayloadError(
            f"a {kind.__qualname__} over {_what(file, mode)} pickles itself as a copy, so what a task writes into it "
            "would be lost: pass the underlying array, or a copy (.copy()) if nothing has to be written back"
        )
    by_name = file is not None and (named == "all" or (named == "given" and memory in _given))
    if by_name and (identity := _identify(file, memory, _address(holder))) is not None:
        way = file, identity, "r+" if writes else "r", offset, high - low
        return open_map, (*way, kind, array.dtype, array.shape, array.strides, _address(array) - low, _may_write(array))
    if named == "given" and not writes:  # a result, which belongs to its reader from now on
        return None
    explains = writes and _may_write(array) and named != "given"
    return seal, (*_content(array, numpy), kind, _why_sealed(file, mode, named) if explains else None)


def _check_size(file: Any, memory: mmap.mmap, end: int) -> None:
    """Check that the file still has the bytes of the array: reading beyond its end would kill this process."""
    size = memory.size()
    if size < end:
        raise PayloadError(
            f"{_what(file, None)} extends to byte {end:,} of a file that was truncated to {size:,}: open it again"
        )


def _may_write(array: Any) -> bool:
    return bool(array.flags.writeable)


def _what(file: Any, mode: str | None) -> str:
    if file is None and mode is None:
        return "an array in shared memory (mmap or multiprocessing)"
    opened = f" (opened {mode!r})" if mode is not None else ""
    return f"the numpy.memmap of {'a file without a name' if file is None else repr(str(file))}{opened}"


def _why_sealed(file: Any, mode: str | None, named: Named) -> str:
    """The explanation for a task that writes into it."""
    also = ""
    if named == "none":
        why = "some nodes of the pool can't access your program's files and memory"
    elif file is not None:
        why = "its file has been removed or replaced"
    else:
        why, also = "it has no name by which a task could open it", ", pass a numpy.memmap of a file that has a name"
    return (
        f"{_what(file, mode)} is read-only in this task, because {why} and anything written would be lost: return "
        f"results and write them in the caller{also}, or pass a copy (numpy.array(x)) if nothing has to be written back"
    )


def _is_numpys(kind: type, numpy: Any) -> bool:
    """Whether instances of an array subclass are pickled like plain arrays."""
    names = ("__reduce__", "__reduce_ex__", "__setstate__")
    return all(getattr(kind, name) is getattr(numpy.ndarray, name) for name in names)


def _address(array: Any) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _bounds(array: Any) -> tuple[int, int]:
    """Addresses of an array's first byte and of the byte after its last."""
    low = _address(array)
    high = low + array.itemsize
    for length, stride in zip(array.shape, array.strides, strict=True):
        if length == 0:
            return low, low
        if stride < 0:
            low += (length - 1) * stride
        else:
            high += (length - 1) * stride
    return low, high


# --- which file it is -----------------------------------------------------------------------------------------------


def _identify(file: Any, memory: mmap.mmap, address: int) -> tuple[int, int] | None:
    """Device and inode of the mapped file; None if its name no longer certainly refers to that file."""
    try:
        known = _identities.get(memory)
        if known is None:
            known = _identities[memory] = _compare(file, memory, address)
        status = Path(file).stat()
    except (OSError, ValueError, LookupError):
        return None
    return known if known == (status.st_dev, status.st_ino) else None


def _compare(file: Any, memory: mmap.mmap, address: int) -> tuple[int, int]:
    """Device and inode of the file with that name, if it is the one mapped at the address.

    This is checked with a second map of it, since on some file systems the kernel's list of maps does not match `stat`.
    Where there is no such list, the name is trusted, as by loky, if at least the size is right. Raises LookupError if
    it is another file.
    """
    with Path(file).open("rb") as opened:
        status = os.fstat(opened.fileno())
        if not _MAPS.exists():
            if memory.size() != status.st_size:
                raise LookupError(f"{file} is another file")
            return status.st_dev, status.st_ino
        with mmap.mmap(opened.fileno(), 1, mmap.MAP_SHARED, mmap.PROT_READ) as other:
            numpy = sys.modules["numpy"]
            probe = numpy.frombuffer(other, numpy.uint8)
            ours, its = _lines([address, _address(probe)])
            del probe
    if ours is None or its is None or ours[3:5] != its[3:5]:
        raise LookupError(f"{file} is another file")
    return status.st_dev, status.st_ino


def _is_shared(memory: mmap.mmap, address: int) -> bool:
    """Whether others who map the same memory see what is written into a map, which the map itself does not say."""
    known = _shared.get(memory)
    if known is None:
        try:
            (line,) = _lines([address])
        except OSError:
            return False
        known = _shared[memory] = line is not None and line[1].endswith(b"s")
    return known


def _lines(addresses: list[int]) -> list[list[bytes] | None]:
    """The kernel's entries for the maps at some addresses: range, permissions, offset, device, inode."""
    found: list[list[bytes] | None] = [None] * len(addresses)
    with _MAPS.open("rb") as lines:
        for line in lines:
            start, _, end = line.partition(b" ")[0].partition(b"-")
            first, last = int(start, 16), int(end, 16)
            for index, address in enumerate(addresses):
                if first <= address < last:
                    found[index] = line.split(None, 5)
    return found


# --- from a pickle --------------------------------------------------------------------------------------------------


def map_array(buffer: Any, dtype: Any, shape: tuple[int, ...], order: Literal["C", "F"], mode: str) -> Any:
    """Rebuild an array on the receiving side; called by the pickle.

    Parameters
    ----------
    buffer
        A `numpy.memmap` of uint8 if the receiver has the bytes in a file that it may open, otherwise any writable
        buffer.
    dtype, shape, order
        The array's.
    mode
        ``"r"`` for a read-only array.
    """
    import numpy  # noqa: PLC0415  the array needs it anyway, and this module must load without it

    if isinstance(buffer, numpy.memmap):
        if mode == "r":
            buffer = MAPS.read_only(buffer, numpy)
        return buffer.view(dtype).reshape(shape, order=order)
    if mode == "r":
        buffer = memoryview(buffer).toreadonly()
    return numpy.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


def seal(buffer: Any, dtype: Any, shape: tuple[int, ...], order: Literal["C", "F"], kind: type, why: str | None) -> Any:
    """Rebuild an array that nobody can write into; called by the pickle.

    Parameters
    ----------
    buffer, dtype, shape, order
        As for `map_array`.
    kind
        Class of the array.
    why
        The explanation for a task that writes into it; None for none.
    """
    import numpy  # noqa: PLC0415  as in map_array

    array = map_array(buffer, dtype, shape, order, "r")
    if why is not None and why not in _received.sealed:
        _received.sealed += (why,)
    return array if kind in (numpy.ndarray, numpy.memmap) else array.view(kind)


def open_map(
    file: Any,
    identity: tuple[int, int],
    mode: Literal["r", "r+"],
    offset: int,
    length: int,
    kind: type,
    dtype: Any,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    start: int,
    writeable: bool,
) -> Any:
    """Reopen a window on a file of this machine; called by the pickle.

    Parameters
    ----------
    file, identity
        The file's name, and the device and inode it must have.
    mode, offset, length
        The part to map, in bytes.
    kind, dtype, shape, strides, start, writeable
        The array in it, which starts at byte `start`.

    Raises
    ------
    PayloadError
        The file is gone, has been replaced, or is too short.
    """
    import numpy  # noqa: PLC0415  as in map_array

    try:
        with Path(file).open("rb" if mode == "r" else "r+b") as opened:
            status = os.fstat(opened.fileno())
            if (status.st_dev, status.st_ino) != identity:
                raise PayloadError(f"{_what(file, mode)}: another file has that name now{_KEEP}")
            if status.st_size < offset + length:  # numpy would extend it
                raise PayloadError(f"{_what(file, mode)}: the file was truncated to {status.st_size:,} bytes{_KEEP}")
            base = numpy.memmap(opened, numpy.uint8, mode, offset, (length,))
    except OSError as error:
        raise PayloadError(f"{_what(file, mode)} can't be opened: {error.strerror}{_KEEP}") from error
    base.filename = file
    memory: Any = base.base
    _identities[memory] = identity
    _given.add(memory)
    array = numpy.ndarray(shape, dtype, base, start, strides)
    if kind is not numpy.ndarray:
        array = array.view(kind)
        if issubclass(kind, numpy.memmap):
            array.__array_finalize__(base)  # takes over the name and all that
    if not writeable:
        array.flags.writeable = False
    return array


class Maps:
    """Keeps the read-only maps of a process's last task for its next one, since a new map costs a page fault per page.

    Only those of the last task, so that a blob which the node has dropped does not stay in memory.
    """

    def __init__(self) -> None:
        self._now: dict[tuple[int, int], Any] = {}  # by device and inode, which are not reused while a map exists
        self._before: dict[tuple[int, int], Any] = {}

    def __repr__(self) -> str:
        return f"<Maps {len(self._now)} of this task, {len(self._before)} of the last>"

    def next_task(self) -> None:
        """Start a task that has files."""
        self._before, self._now = self._now, {}

    def read_only(self, buffer: Any, numpy: Any) -> Any:
        """Map the file of a `numpy.memmap` read-only."""
        status = Path(buffer.filename).stat()
        key = status.st_dev, status.st_ino
        found = self._now.get(key, self._before.get(key))
        if found is None:
            found = numpy.memmap(buffer.filename, dtype=numpy.uint8, mode="r", shape=buffer.shape)
        self._now[key] = found
        return found


MAPS = Maps()


# --- a task ---------------------------------------------------------------------------------------------------------


def begin_task(files: bool) -> None:
    """Prepare to load a task's arguments in this thread; `files` says whether some are blobs."""
    _received.sealed = ()
    if files:
        MAPS.next_task()


def explain(error: BaseException) -> None:
    """Add to a task's error why arrays were read-only, if that caused it."""
    if _received.sealed and isinstance(error, Exception):
        with contextlib.suppress(Exception):  # the user's exception may fail in str() or add_note()
            text = str(error).lower()
            if "read-only" in text or "readonly" in text:
                for why in _received.sealed:
                    error.add_note(why)
