"""What simulated tasks do, and the large arrays that they take and return."""

from __future__ import annotations

import contextlib
import functools
import pickle
import zlib
from array import array
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple

from skyward.core.tasks.several_calls import STAND_INS
from tests.simulation.odd import Riddle, odd

__all__ = ["MAX_BYTES", "Array", "Imported", "Load", "Uses", "carry_out", "carry_out_as_well", "importing"]


class Load(NamedTuple):
    """What a simulated task does.

    Attributes
    ----------
    number
        Comes back as the result, so that a wrong one is seen.
    seconds
        It takes, of virtual time.
    end
        ``"return"``, ``"raise"``, ``"odd"`` (raises something odd), ``"riddle"`` (returns what can't be unpickled),
        ``"die"`` (killed half way), ``"hang"`` (never ends) or ``"lacks"`` (needs a package that nodes lack at first).
    size
        Bytes of the result.
    prints
        Bytes of text, in lines.
    talks
        Bytes that it sends to the driver's process, and gets back.
    """

    number: int
    seconds: float = 0.01
    end: str = "return"
    size: int = 0
    prints: int = 0
    talks: int = 0


MAX_BYTES = 5_000_000
"""Bytes of the largest argument or result."""
_ORDERLY = array("I", range(MAX_BYTES // 4)).tobytes()  # compressed to some 60 %, and no two places are alike
_NOISE = Random(1).randbytes(MAX_BYTES)


class Array:
    """A large argument or result, in which a byte at a wrong place is seen. Its bytes stay out of the pickle.

    Parameters
    ----------
    data
        Its bytes; `made` makes some.
    """

    def __init__(self, data: Any) -> None:
        self.data = memoryview(data)

    @classmethod
    def made(cls, size: int, *, noise: bool = False) -> Array:
        """One of so many bytes."""
        return cls(memoryview(_made(size, noise)).toreadonly())

    def __reduce_ex__(self, _: object) -> tuple[type[Array], tuple[pickle.PickleBuffer]]:
        return Array, (pickle.PickleBuffer(self.data),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Array) and self.content == other.content

    __hash__ = None  # type: ignore[assignment]

    @property
    def content(self) -> str:
        """Which array it is, in short."""
        size = len(self.data)
        for noise in (False, True):  # comparing takes a tenth of the time that a checksum does
            if _made(size, noise) == self.data:
                return f"{size}, {'noise' if noise else 'in order'}"
        return f"{size}, {zlib.crc32(self.data)}"


@functools.lru_cache(maxsize=64)
def _made(size: int, noise: bool) -> bytearray:  # which is compared with any buffer as fast as memory is read
    return bytearray(memoryview(_NOISE if noise else _ORDERLY)[:size])


STAND_INS[Array.__module__, Array.__name__] = lambda array: bytes(array.data)


class Uses:
    """An argument that refers to one of the user's modules, as a function of it does."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[Callable[[str], Imported], tuple[str]]:
        return subimport, (self.name,)


class Imported:
    """What a task gets then."""

    def __init__(self, text: str) -> None:
        self.content = text


_import: list[Callable[[str], str]] = []  # how the process whose turn it is imports


def subimport(name: str) -> Imported:
    """Import a module while a task is unpickled; called as cloudpickle's own is, so that the driver finds it."""
    return Imported(_import[-1](name))


@contextlib.contextmanager
def importing(find: Callable[[str], str]) -> Iterator[None]:
    """Have modules imported in a way, which is given a name and returns what the module says."""
    _import.append(find)
    try:
        yield
    finally:
        _import.pop()


def carry_out(plan: Load, *arrays: Array | Imported, item: int = 0) -> tuple[int, int, list[str], Array]:
    """The task's function, as slots call it when its time is over; `item`: which call of a batch it is."""
    if plan.end == "raise":
        raise ValueError(plan.number)
    if plan.end == "odd":
        raise odd(plan.number)
    if plan.end == "riddle":
        return Riddle(plan.number)  # type: ignore[return-value]
    return plan.number, item, [each.content for each in arrays], Array.made(plan.size)


def carry_out_as_well(plan: Load, *arrays: Array | Imported) -> tuple[int, int, list[str], Array]:
    """The same by another name, since a pool tells functions apart."""
    return carry_out(plan, *arrays)
