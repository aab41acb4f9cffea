"""What computes a cached function's result in a slot, whose node need not have joblib."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sys
import time
import types
from collections.abc import Callable
from typing import Any

from skyward.core.errors import PayloadError
from skyward.core.labels import label

__all__ = ["Computing", "check_code", "code_mark"]


def code_mark(function: Any) -> str:
    """Identify the code of a function among those of that name; empty if it has none that can be inspected."""
    code = getattr(function, "__code__", None)
    return _mark(code) if isinstance(code, types.CodeType) else ""


@functools.lru_cache(maxsize=256)
def _mark(code: types.CodeType) -> str:
    parts = [code.co_code, code.co_names, code.co_varnames, code.co_freevars, *map(_constant, code.co_consts)]
    version = "{}.{}.{}".format(*sys.version_info[:2], sys.flags.optimize)  # assertions are compiled or left out
    return f"{version} {hashlib.blake2b(repr(parts).encode(errors='replace'), digest_size=12).hexdigest()}"


def _constant(value: object) -> str:
    if isinstance(value, types.CodeType):
        return _mark(value)
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)  # sets have no order of their own


def check_code(function: Any, mark: str) -> None:
    """Check that a function is the one that was sent.

    A function of a module is sent by name. If the module was changed after this process had imported it, the function
    here is the old one, and its results would be cached as the new one's.

    Parameters
    ----------
    function
        The function here.
    mark
        The `code_mark` of the one that was sent.

    Raises
    ------
    PayloadError
        It is a different one.
    """
    here = code_mark(function)
    if here and mark and here != mark and here.split()[0] == mark.split(maxsplit=1)[0]:
        raise PayloadError(
            f"{label(function)} has a different source in this task than in your program, where its module has changed "
            "since: open a new pool"
        )


class Computing:
    """A function that `joblib.Memory` caches, without its cache: it prints what joblib prints when it computes.

    Parameters
    ----------
    function
        The function itself.
    verbose
        As for `joblib.Memory`.
    mark
        The `code_mark` of the function where it was sent; None for here.
    """

    __slots__ = ("__weakref__", "function", "mark", "verbose")

    def __init__(self, function: Callable[..., Any], verbose: int, mark: str | None = None) -> None:
        self.function = function
        self.verbose = verbose
        self.mark = code_mark(function) if mark is None else mark

    def __repr__(self) -> str:
        return f"<Computing {self.label}>"

    def __reduce__(self) -> Any:
        return Computing, (self.function, self.verbose, self.mark)

    @property
    def label(self) -> str:
        """Its name in messages."""
        return label(self.function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function. Raises `PayloadError` if it is a different one here."""
        check_code(self.function, self.mark)
        if self.verbose <= 0:
            return self.function(*args, **kwargs)
        with contextlib.suppress(ImportError):  # the node may lack it
            from joblib.func_inspect import format_call  # noqa: PLC0415 - see above

            sys.stdout.write(f"{format_call(self.function, args, kwargs)}\n")
        began = time.time()
        result = self.function(*args, **kwargs)
        with contextlib.suppress(ImportError):
            from joblib.func_inspect import get_func_name  # noqa: PLC0415 - as above
            from joblib.logger import format_time  # noqa: PLC0415 - as above

            text = f"{get_func_name(self.function)[1]} - {format_time(time.time() - began)}"
            sys.stdout.write(f"{text:_>80}\n")
        return result
