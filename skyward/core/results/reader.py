"""Reads what nodes send back as data: values, exceptions of known classes, and other exceptions as text."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

from skyward.core.errors import PayloadError, TaskFailed
from skyward.core.payload import exceptions
from skyward.core.payload.source_lines import fill, read_places
from skyward.core.results.names import Allowed, Trusted
from skyward.core.results.rules import RefusedPickle
from skyward.core.results.unpickler import loads
from skyward.core.visible import shown

__all__ = ["Reader"]

_MAX_CALL = 4000  # characters of the text about a call; see `payload/short_text.py`

_Bytes = bytes | bytearray | memoryview | mmap.mmap


class Reader:
    """Reads the results of one pool.

    Parameters
    ----------
    trusted
        What its user allows in results in addition to data.
    """

    def __init__(self, trusted: Trusted) -> None:
        self._allowed = Allowed(trusted)

    def __repr__(self) -> str:
        return f"<Reader {self._allowed}>"

    def value(self, head: _Bytes, buffers: Sequence[Any]) -> Any:
        """Read a result.

        Raises
        ------
        PayloadError
            It contains more than data; the message says what, and how to allow it.
        Exception
            It is broken.
        """
        try:
            return loads(head, buffers, self._allowed)
        except RefusedPickle as refused:
            raise PayloadError(f"it {refused}. {_advice(refused)}") from None

    def error(self, head: _Bytes) -> BaseException:
        """Read an exception, like `payload.exceptions.load`."""
        try:
            chain, text, item, places = loads(head, (), self._allowed)
            errors = [self._one(data, description) for data, description in chain]
        except Exception as problem:
            errors, text, item, places = [], problem, None, None
        if not errors:
            return TaskFailed(f"the task failed, and the node's report of its exception can't be read: {text}")
        return exceptions.chain(errors, fill(str(text), read_places(places)), _item(item))

    def _one(self, data: Any, description: Any) -> BaseException:
        if type(data) is not bytes or type(description) is not str:
            raise TypeError("an exception consists of its pickle and its text")
        try:
            error: object = loads(data, (), self._allowed)
        except Exception:  # the text says it all, so the user gets that
            error = None
        if not isinstance(error, BaseException):
            return TaskFailed(f"the task raised {description}")
        return error


def _item(item: Any) -> exceptions.FailedItem:
    """Read which call has failed; ignore a number that makes no sense."""
    if type(item) is not tuple or [type(part) for part in item] != [int, str]:
        return exceptions.NO_ITEM
    return exceptions.FailedItem(item[0], shown(item[1][:_MAX_CALL]))


def _advice(refused: RefusedPickle) -> str:
    known = refused.trusted
    if known is not None:
        known = repr(known) if ":" in known else known
        instead = f"if you expect that class, allow it with sky.Compute(trusted=[{known}]), or return plain values"
    elif refused.is_odd:
        instead = "return plain values or arrays; if none of your tasks returns such a thing, do not trust that machine"
    else:
        instead = 'return plain values or arrays, or trust the owners of these machines with sky.Compute(results="any")'
    return f"Results are read as data here, so that the owner of a machine can't run code on yours: {instead}"
