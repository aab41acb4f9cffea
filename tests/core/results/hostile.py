"""Pickles that do what data does not, written instruction by instruction where no pickler would write them."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
from typing import Any

from skyward.core.results.names import Allowed, Trusted
from skyward.core.results.unpickler import loads

__all__ = ["Reduced", "assemble", "binary", "call", "changed", "name", "plain", "read", "text"]

HEAD = b"\x80\x05"


class Reduced:
    """Pickles to whatever it is told."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


def changed(value: Any, **state: Any) -> bytes:
    """A pickle of a value of which some parts are others."""
    file = io.BytesIO()
    _Changing(file, value, state).dump(value)
    return file.getvalue()


class _Changing(pickle.Pickler):
    def __init__(self, file: io.BytesIO, value: Any, state: dict[str, Any]) -> None:
        super().__init__(file, protocol=5)
        self._value, self._state = value, state

    def reducer_override(self, obj: Any) -> Any:
        if obj is not self._value:
            return NotImplemented
        made, args, state, *rest = obj.__reduce_ex__(5)
        return made, args, {**state, **self._state}, *rest


def read(data: bytes, *buffers: Any, trusted: Any = ()) -> Any:
    """A pickle as data."""
    return loads(data, buffers, Allowed(Trusted.parse(list(trusted))))


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def binary(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def plain(value: Any) -> bytes:
    """The instructions of a value that names nothing."""
    return pickletools.optimize(pickle.dumps(value, protocol=4))[2:-1]


def name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


def call(module: str, attribute: str, *args: bytes) -> bytes:
    """A call with arguments that are instructions."""
    return name(module, attribute) + b"(" + b"".join(args) + b"tR"


def assemble(*instructions: bytes) -> bytes:
    return HEAD + b"".join(instructions) + b"."
